"""verl as it is on PyPI: its configuration loads our function, and each of its reward managers calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reward_service.child import RunningService, start_in_subprocess
from reward_service.settings import ServiceSettings
from tests.reward_service.clients.callers.installed import ROOT, installed, run_script

VERL = (
    "verl==0.9.1",
    "antlr4-python3-runtime==4.9.3",
    "codetiming==1.4.0",
    "hydra-core==1.3.8",
    "orjson==3.13.0",
    "pylatexenc==2.11",
    "pyvers==0.2.3",
    "tensordict==0.10.0",
    "torchdata==0.11.0",
)
SCORES = [1.5, 0.5, 0.0]
OWN_FILE = """
from reward_service.clients.verl import compute_score, compute_score_async, compute_score_batch
"""


@pytest.fixture(scope="module")
def verl() -> Path:
    return installed("verl-0.9.1", *VERL)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("service")
    settings = ServiceSettings(port=0, num_workers=1, rewards=("gsm8k_format", "gsm8k_correctness"))
    with start_in_subprocess(settings, log_path=folder / "log") as running:
        yield running


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """What `custom_reward_function.path` may be."""
    own = tmp_path / "own.py"
    own.write_text(OWN_FILE)
    return ["pkg://reward_service.clients.verl", str(ROOT / "reward_service" / "clients" / "verl.py"), str(own)]


@pytest.mark.slow
@pytest.mark.cluster
def test_every_manager_that_calls_it_itself_or_in_rays_actors(
    verl: Path, service: RunningService, paths: list[str]
) -> None:
    found = run_script(verl, "verl_calls.py", service.url, *paths)
    for path in paths:
        assert len(found[path]) == 13
        assert {manager: scores for manager, scores in found[path].items() if scores != SCORES} == {}
