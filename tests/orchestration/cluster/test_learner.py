"""The learner's port over its ranks: who is told what, and how long it may take. A scripted rank stands in for Ray."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from learner.types import UpdateMetrics
from orchestration.cluster.learner import RayLearner
from orchestration.settings.config import RunConfig, load_config


class Rank:
    """Keeps what it was asked, and within how long."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float, tuple[Any, ...]]] = []

    def call(self, method: Callable[..., Any], *, timeout_s: float) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def called(*args: Any) -> Any:
            self.asked.append((method.__name__, timeout_s, args))
            return UpdateMetrics(step=8) if method.__name__ == "update" else 7

        return called


SETTINGS = ["max_staleness=1", "learner.update_timeout_s=11", "learner.start_timeout_s=22"]


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr("orchestration.cluster.learner.shared", lambda value: value)
    return load_config("tiny", SETTINGS)


async def test_calls_have_the_limits_of_the_settings(config: RunConfig) -> None:
    ranks = (Rank(), Rank())
    learner = RayLearner(ranks, config)  # type: ignore[arg-type]
    assert await learner.load_checkpoint("folder") == 7
    assert (await learner.update(())).step == 8
    await learner.save_checkpoint("folder", {})
    expected = [
        ("load_checkpoint", 22.0, ("folder",)),
        ("update", 11.0, ((), 1)),
        ("save_checkpoint", 11.0, ("folder", {})),
    ]
    assert [rank.asked for rank in ranks] == [expected, expected]
