"""How often a process looks for garbage in cycles."""

from __future__ import annotations

import atexit
import gc


def collect_seldom() -> None:
    """For a process that makes objects by the million, hardly any of them in cycles: a driver's groups live for a step
    or two, and to look through all of them again and again takes up to a third of its time. What is there by now, such
    as modules, is not looked at any more until the process ends, when libraries would call it leaked."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.set_threshold(100_000, 50, 50)
