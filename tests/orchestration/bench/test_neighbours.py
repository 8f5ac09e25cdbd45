"""Busy loops beside a measurement."""

from __future__ import annotations

import psutil
import pytest

from orchestration.bench.neighbours import busy_neighbours, neighbour_figures


def test_they_are_busy_while_the_block_lasts_and_gone_after_it():
    before = set(psutil.Process().children())
    with busy_neighbours(2):
        loops = set(psutil.Process().children()) - before
        assert len(loops) == 2
        while any(loop.cpu_times().user < 0.05 for loop in loops):
            pass
    assert not any(loop.is_running() for loop in loops)


def test_ratios_are_taken_within_a_round():
    assert neighbour_figures([1.0, 10.0, 2.0], [2.0, 30.0, 3.0]) == {"ratio_neighbours": 2.0}
    assert neighbour_figures([1.0], []) == {}
    with pytest.raises(ValueError, match="shorter"):
        neighbour_figures([1.0, 2.0], [1.0])
