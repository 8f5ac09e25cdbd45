"""What a person finds in a browser, with nothing but this service to be reached."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from reward_service.child import RunningService, start_in_subprocess
from reward_service.settings import ServiceSettings

REFERENCES = re.compile(r"""(?:src|href|spec-url)=["']([^"'#]+)["']|url: '([^']+)'""")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("service")
    settings = ServiceSettings(
        port=0, num_workers=1, rewards=("gsm8k_format", "gsm8k_correctness"), root_path="/rewards"
    )
    with start_in_subprocess(settings, log_path=folder / "log") as running:
        yield running


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False).raise_for_status()


def test_the_root_says_what_this_is_and_where_to_go(service: RunningService) -> None:
    told = get(service.url).json()
    assert told["service"] == "rlvr reward service"
    for path in told["get"]:
        get(f"{service.url}{path}")
    described = get(f"{service.url}/openapi.json").json()["paths"]
    assert told["post"].keys() <= described.keys()
    page = get(service.url, accept="text/html,*/*").text
    assert all(f'<a href="/rewards{path}">' in page for path in told["get"])
    assert all(f"POST {path}" in page for path in told["post"])


@pytest.mark.parametrize("page", ["docs", "redoc"])
def test_a_page_needs_nothing_from_elsewhere(service: RunningService, page: str) -> None:
    found = [link or url for link, url in REFERENCES.findall(get(f"{service.url}/{page}").text)]
    assert len(found) >= 3
    for link in found:
        url = urljoin(f"{service.url}/{page}", link)
        assert url.startswith(service.url), url
        assert len(get(url).content) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs", "redoc"])
def test_a_browser_shows_it_without_the_internet(service: RunningService, page: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or pytest.skip("there is no Chromium here")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--dump-dom"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={tmp_path}"]
    command += ["--virtual-time-budget=20000", f"{service.url}/{page}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    text = re.sub(r"(?s)<script.*?</script>|<style.*?</style>|<[^>]+>", " ", shown)
    assert "Reward service" in text
    assert "List Rewards" in text
