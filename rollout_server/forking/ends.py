"""How processes ended, in words."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import Any


def describe_ends(processes: Sequence[Any], wait_s: float = 2.0) -> str:
    """Which of the engine's processes ended, and how; a process that is going down gets a moment to be gone."""
    deadline = time.monotonic() + wait_s
    while all(process.is_alive() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    ended = [f"process {p.name} (pid {p.pid}) {describe_exit(p.exitcode)}" for p in processes if not p.is_alive()]
    return "; ".join(ended) or "its processes are there but do not answer; see the log above"


def describe_exit(exit_code: int | None) -> str:
    """An exit code as a predicate."""
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}; its traceback is in the log above"
    name = signal.Signals(-exit_code).name
    hint = ", by hand or by a system short of memory" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
