"""Rewards that misbehave as the completion tells them to, in a module because workers load them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_service.rewards.base import Reward, RewardParams
from reward_service.types import RewardScore

Reference = Mapping[str, Any] | None


def fails(completion: str, reference: Reference, params: object) -> Any:
    """1.0, unless the first word is one of these."""
    match completion.split(maxsplit=1)[0]:
        case "raises":
            raise ZeroDivisionError("oops")
        case "nan":
            return float("nan")
        case "inf":
            return float("inf")
        case "text":
            return "high"
        case "sys.exit":
            sys.exit(0)
        case "recursion":
            return fails(completion, reference, params)
    return 1.0


def hangs(completion: str, reference: Reference, params: object) -> float:
    """1.0, unless the first word is one of these."""
    match completion.split(maxsplit=1)[0]:
        case "sleeps":
            time.sleep(3600)
        case "spins":
            while True:
                pass
        case "holds":  # the interpreter's lock, in C, for ever
            ctypes.PyDLL(None).pause()
        case "deaf":
            signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
            while True:
                time.sleep(1)
        case "slow":
            time.sleep(0.3)
    return 1.0


def dies(completion: str, reference: Reference, params: object) -> float:
    """1.0, unless the first word is one of these."""
    match completion.split(maxsplit=1)[0]:
        case "segfaults":
            ctypes.string_at(0)
        case "exits":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "once":  # dies the first time only; the second word is a file that remembers
            path = Path(completion.split()[1])
            if not path.exists():
                path.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case "eats":
            return float(len(b"x" * 2**40))
        case "shuts":  # the descriptors, the worker's socket among them
            os.closerange(3, 1000)
    return 1.0


_warm: list[bool] = []


def cold(completion: str, reference: Reference, params: object) -> RewardScore:
    """Where it runs; the first item of a process takes 0.3 s of the processor."""
    began = time.process_time()
    while not _warm and time.process_time() - began < 0.3:
        pass
    _warm.append(True)
    return RewardScore(score=1.0, details={"pid": os.getpid()})


def tells(completion: str, reference: Reference, params: object) -> Any:
    """Where it runs."""
    from reward_service.types import RewardScore

    return RewardScore(score=1.0, details={"pid": os.getpid(), "nice": os.nice(0), "odd": {1, 2}, "big": 10**40})


SLOW_AT_FIRST = Reward(
    name="slow_at_first",
    description="Needs a library that takes a second to import.",
    low=0.0,
    high=1.0,
    params=RewardParams,
    score=lambda completion, reference, params: RewardScore(score=1.0),
    on_demand=("tests.reward_service.pool.slow_to_import", "no_such_library"),
)
