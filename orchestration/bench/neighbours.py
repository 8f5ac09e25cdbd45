"""Busy neighbours: processes that do nothing but take what time the kernel gives them."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def busy_neighbours(count: int) -> Iterator[None]:
    """So many busy loops run as long as the block lasts."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def neighbour_figures(alone: Sequence[float], beside: Sequence[float]) -> dict[str, float]:
    """How much longer a turn takes beside the neighbours: the median over rounds of the ratio within one round. Nothing
    for rounds without neighbours."""
    if not beside:
        return {}
    return {"ratio_neighbours": statistics.median(b / a for a, b in zip(alone, beside, strict=True))}
