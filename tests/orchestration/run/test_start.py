"""How long a start took: from the command to the end of the first step."""

from __future__ import annotations

import time

import psutil
import pytest

from orchestration.run.start import StartClock


def test_phases_add_up_and_the_total_runs_from_the_command():
    clock = StartClock(time.perf_counter() - 100)
    for _ in range(2):
        with clock.phase("model"):
            time.sleep(0.01)
    assert clock.seconds() is None
    clock.finish(first_step_s=7.0)
    seconds = clock.seconds()
    assert seconds is not None
    assert list(seconds) == ["model", "first_step", "total"]
    assert 0.02 <= seconds["model"] < 5
    assert seconds["first_step"] == 7.0
    assert 100 <= seconds["total"] < 110
    assert clock.line().startswith("first step done 100.")
    assert "first_step 7.0" in clock.line()


def test_a_phase_that_fails_is_counted_too():
    clock = StartClock(time.perf_counter())
    with pytest.raises(ValueError, match="no model"), clock.phase("model"):
        raise ValueError("no model")
    clock.finish(first_step_s=0.0)
    assert "model" in (clock.seconds() or {})


def test_the_process_began_with_the_command():
    clock = StartClock.of_this_process()
    clock.finish(first_step_s=0.0)
    seconds = clock.seconds()
    assert seconds is not None
    assert 0 < seconds["command"] <= seconds["total"] <= time.time() - psutil.Process().create_time() + 0.02
