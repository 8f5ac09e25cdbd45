"""`rlvr bench monkey` for three minutes; `make soak` runs it for longer."""

from __future__ import annotations

import pytest

from orchestration.bench.runs import monkey
from tests.orchestration.cluster.test_faults import fork_server

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.mark.timeout(1800)
def test_a_run_whose_processes_are_killed_and_stopped_at_random_moments_loses_nothing() -> None:
    """Counted by faults and not by seconds: a slow machine takes longer, and shows the same."""
    num_faults = len(monkey.FAULTS)
    plan = monkey.Plan(num_faults=num_faults, every_s=5, steps=24, seed=0, servers=(fork_server().pid,))
    print(plan)
    figures = monkey.run(plan, lambda what, share: print(what))["figures"]
    print(figures)
    assert [number for name, number in figures.items() if name.startswith("faults: ")] == [1] * num_faults
