"""The examples of the clients' README, each run by the framework that it is for, as that is on PyPI."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from reward_service.child import RunningService, start_in_subprocess
from reward_service.settings import ServiceSettings
from tests.reward_service.clients.callers.installed import ROOT, installed, run_script

README = (ROOT / "reward_service" / "clients" / "README.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", README, re.DOTALL))
URL = "http://localhost:8300"

VERIFIERS = (
    *("verifiers==0.4.0", "aiofiles==25.1.0", "connectrpc==0.11.1", "gepa==0.1.4", "httpx2==2.16.2", "loguru==0.7.3"),
    *("mcp==2.0.0", "mcp-types==2.0.0", "msgpack==1.2.4", "opentelemetry-api==1.45.2", "prime-pydantic-config==0.4.3"),
    *("prime-runs==0.1.4", "prime-sandboxes==0.5.1", "prime-traces==0.0.10", "prime-tunnel==0.1.15"),
    *("protobuf-py==0.1.1", "pyqwest==0.12.0", "renderers==0.1.12", "tenacity==9.2.1", "tomli-w==1.2.0"),
)
AREAL = (
    *("areal==1.0.4", "aiofiles==25.1.0", "antlr4-python3-runtime==4.9.3", "colorlog==6.12.0", "hydra-core==1.3.8"),
    *("orjson==3.13.0", "tenacity==9.2.1", "torchdata==0.11.0"),
)
CALLERS = {
    "verifiers-0.4.0": (VERIFIERS, "verifiers_calls.py"),
    "skyrl-gym-0.4.0": (("skyrl-gym==0.4.0",), "skyrl_gym_calls.py"),
    "areal-1.0.4": (AREAL, "areal_calls.py"),
}
GOOD = "48 + 24 = 72\n#### The final answer is 72"
WRONG = "#### The final answer is 71"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("service")
    settings = ServiceSettings(
        port=0, num_workers=1, rewards=("gsm8k_format", "gsm8k_correctness"), end_tokens=("<|im_end|>",)
    )
    with start_in_subprocess(settings, log_path=folder / "log") as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLERS)
def test_an_example_runs_where_it_belongs(service: RunningService, name: str, tmp_path: Path) -> None:
    requirements, script = CALLERS[name]
    folder = installed(name, *requirements)
    for file, source in EXAMPLES.items():
        (tmp_path / file).write_text(source.replace(URL, service.url))
    assert run_script(folder, script, GOOD, WRONG, "no idea", beside=tmp_path) == [1.5, 0.5, 0.0]


def test_no_example_is_left_out() -> None:
    assert EXAMPLES.keys() == {"scoring.py", "gsm_remote.py", "gym_remote.py", "areal_remote.py"}
    assert all(URL not in source for file, source in EXAMPLES.items() if file != "scoring.py")
