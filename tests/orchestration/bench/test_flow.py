"""What `rlvr bench flow` makes of its runs' metrics, and what it refuses. The runs are `rlvr train`'s."""

from __future__ import annotations

from typing import Any

import pytest

from orchestration.bench.runs.flow import figures, run
from orchestration.errors import RlvrError


def rows(step_s: float, **changes: Any) -> list[dict[str, Any]]:
    row = {
        "step_s": step_s,
        "generation_s": 4.0,
        "learning_s": 5.0,
        "publishing_s": 0.5,
        "policy_age_mean": 1.0,
        "policy_age_max": 2,
        "reward_mean": 0.25,
        "kl_to_sampler": None,
    }
    return [{**row, **changes} for _ in range(8)]


def test_efficiency_is_the_longer_alone_over_the_step() -> None:
    warming_up = [{**row, "step_s": 100.0} for row in rows(9.5)[:2]]
    found = figures({0: warming_up + rows(9.5)[2:], 1: rows(6.25, kl_to_sampler=0.5)})
    assert found["learning_alone_s"] == 5.0
    assert found["overlap_efficiency_1"] == pytest.approx(0.8)
    assert found["overlap_efficiency_0"] == pytest.approx(5 / 9.5)
    assert (found["age_mean_1"], found["age_max_1"], found["reward_1"]) == (1.0, 2, 0.25)
    assert found["kl_to_sampler_1"] == 0.5
    assert "kl_to_sampler_0" not in found


@pytest.mark.parametrize(("word", "told"), [("max_staleness=3", "leave it out"), ("max_steps=2", "at least 4")])
def test_what_leaves_nothing_to_compare_is_refused(word: str, told: str) -> None:
    with pytest.raises(RlvrError, match=told):
        run([word], lambda message, share: None)
