"""The service behind a real nginx (RLVR_NGINX, or on the PATH): a prefix that is taken off or left, TLS, HTTP/1.0 to
the service, connections that end after three requests, a body limit of 1 MB, pages in place of answers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import requests

from reward_service.child import start_in_subprocess
from reward_service.clients.errors import BadAnswerError, RequestRefusedError, RewardServiceUnavailable
from reward_service.clients.trl import RemoteReward
from reward_service.clients.verl import make_compute_score
from reward_service.settings import ServiceSettings
from tests.learner.helpers import free_port
from tests.waiting import until

GOOD = "48 + 24 = 72\n#### The final answer is 72"
CONFIGURATION = """
daemon off; pid FOLDER/pid; error_log FOLDER/errors; worker_processes 1; events { worker_connections 64; }
http {
  access_log off; client_body_buffer_size 1m; gzip on; gzip_types application/json; gzip_min_length 1;
  client_body_temp_path FOLDER/b; proxy_temp_path FOLDER/p; fastcgi_temp_path FOLDER/f; uwsgi_temp_path FOLDER/u;
  scgi_temp_path FOLDER/s;
  server {
    listen 127.0.0.1:PORT ssl; ssl_certificate FOLDER/cert.pem; ssl_certificate_key FOLDER/key.pem;
    keepalive_requests 3;
    location /rewards/ { proxy_pass SERVICE; proxy_http_version 1.1; proxy_request_buffering off; }
    location /stripped/ { proxy_pass SERVICE/; }
    location /moved/ { return 302 https://login.example/; }
    location /away/ { return 503 "<html><body>maintenance</body></html>"; }
    location / { return 404; }
    location /login/ { return 200 "<html>please log in</html>"; }
  }
}
"""


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Its URL, and whose certificate it has."""
    program = os.environ.get("RLVR_NGINX") or shutil.which("nginx")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("no nginx on the PATH, nor as RLVR_NGINX, or no openssl")
    folder = tmp_path_factory.mktemp("nginx")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=rewards -addext subjectAltName=IP:127.0.0.1"
    files = ["-out", str(folder / "cert.pem"), "-keyout", str(folder / "key.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True, timeout=60)
    settings = ServiceSettings(port=0, num_workers=1, rewards=("gsm8k_correctness",), root_path="/rewards")
    port = free_port()
    with start_in_subprocess(settings, log_path=folder / "log") as service:
        text = CONFIGURATION.replace("FOLDER", str(folder)).replace("PORT", str(port)).replace("SERVICE", service.url)
        (folder / "conf").write_text(text)
        with subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "conf")]) as process:
            try:
                until(lambda: (folder / "pid").exists() and (folder / "pid").read_text() != "")
                yield f"https://127.0.0.1:{port}", str(folder / "cert.pem")
            finally:
                process.terminate()


def reward(url: str, certificate: str | None, deadline_s: float = 30.0) -> RemoteReward:
    names = {"final_answer": "answer"}
    return RemoteReward(url, "gsm8k_correctness", reference=names, ca_file=certificate, deadline_s=deadline_s)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["rewards", "rewards/", "stripped"])
def test_callers_through_it(nginx: tuple[str, str], prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url, certificate = f"{nginx[0]}/{prefix}", nginx[1]
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ask = reward(url, certificate)
    for _ in range(5):  # more than a connection lasts
        assert ask(["q"] * 2, [GOOD] * 2, answer=["72", "73"]) == [1.0, 0.0]
    blanks = " " * 600_000
    assert ask(["q"] * 2, [blanks + GOOD] * 2, answer=["72", "73"]) == [1.0, 0.0]  # in halves
    verl = make_compute_score(url, ca_file=certificate, rewards={"*": ["gsm8k_correctness"]})
    assert verl("any", GOOD, "72")["score"] == 1.0
    page = requests.get(f"{url.rstrip('/')}/docs", verify=certificate, timeout=30).text
    assert "/rewards/openapi.json" in page


@pytest.mark.slow
def test_what_stands_between_is_named(nginx: tuple[str, str]) -> None:
    url, certificate = nginx
    said: dict[str, type[Exception]] = {
        r"status 302, it points to 'https://login\.example/'": RequestRefusedError,
        "status 404": RequestRefusedError,
        "in [1-9] tr.* within 0.3 s; the last: status 503, ' ?maintenance ?'": RewardServiceUnavailable,
        "not JSON .*please log in": BadAnswerError,
    }
    for (sentence, kind), path in zip(said.items(), ("moved", "nowhere", "away", "login"), strict=True):
        with pytest.raises(kind, match=sentence):
            reward(f"{url}/{path}", certificate, deadline_s=0.3)(["q"], [GOOD], answer=["72"])
    with pytest.raises(RewardServiceUnavailable, match=r"CERTIFICATE_VERIFY_FAILED.*; ca_file, or SSL_CERT_FILE"):
        reward(f"{url}/rewards", None)
    with pytest.raises(RequestRefusedError, match="413 Request Entity Too Large"):
        reward(f"{url}/rewards", certificate)(["q"], [" " * 1_100_000 + GOOD], answer=["72"])
