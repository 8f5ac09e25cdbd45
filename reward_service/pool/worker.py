"""A worker: takes jobs from its end of a socket pair, scores item after item, sends what it has.

Before every reward of every item it notes in shared memory what it is at and since when, so that the server can tell
which item holds it up and kill it. It never bounds itself: code that hangs cannot be asked to stop.

Forked from a server of forks that has imported what rewards need, it starts in some milliseconds.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from reward_service.custom import CustomRewardError
from reward_service.pool.applying import NO_VERDICTS, score_item
from reward_service.pool.messages import Batch, ReceivedJob, RewardStats, decode_job, decode_specs, encode_batch
from reward_service.registry import installed_rewards, load_rewards
from reward_service.rewards.base import Reward
from reward_service.scoring import Plan, make_plan
from reward_service.settings import ServiceSettings
from reward_service.types import Reason

FLUSH_S: Final = 0.02
"""What was scored is sent at least this often, so that a kill undoes little."""
_PR_SET_PDEATHSIG: Final = 1
_MAX_PLANS: Final = 64

with suppress(CustomRewardError):  # the server says it; here it is done before the forks, a third of whose start it was
    installed_rewards()


def main(connection: Connection, progress: Any, settings_json: str, parent_pid: int) -> None:
    """Process entry. `progress` is shared: [since (time.monotonic), item * 64 + reward, -1 between jobs]."""
    _settle(parent_pid)
    settings = ServiceSettings.model_validate_json(settings_json)
    worker = _Worker(connection, memoryview(progress).cast("B").cast("d"), load_rewards(settings))
    gc.freeze()
    _limit_memory(settings.worker_memory_bytes)
    try:
        connection.send_bytes(b"")  # ready
        while True:
            worker.run(decode_job(connection.recv_bytes()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the server let go of it, or is gone


class _Worker:
    def __init__(self, connection: Connection, progress: Any, rewards: Mapping[str, Reward]) -> None:
        self._connection, self._progress, self._rewards = connection, progress, rewards
        self._plans: dict[bytes, Plan] = {}

    def run(self, job: ReceivedJob) -> None:
        plan = self._plan(job.specs)
        batch = _new_batch(plan)
        sent = time.monotonic()
        for position, item in enumerate(job.items):
            verdicts = job.verdicts.get(position, NO_VERDICTS)
            scored = score_item(plan, item, batch.stats, self._progress, position, verdicts)
            batch.items.append(scored)
            now = time.monotonic()
            if None in scored.scores and any(Reason.OUT_OF_MEMORY in stats.reasons for stats in batch.stats):
                batch.leaving = "out of memory"
                break
            if now - sent > FLUSH_S and position + 1 < len(job.items):
                self._connection.send_bytes(encode_batch(batch))
                batch, sent = _new_batch(plan), now
        self._progress[1] = -1.0
        self._connection.send_bytes(encode_batch(batch))
        if batch.leaving:
            sys.exit(0)

    def _plan(self, specs: bytes) -> Plan:
        if specs not in self._plans:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[specs] = make_plan(decode_specs(specs), self._rewards)
            _import({module for planned in plan for module in planned.reward.on_demand})
            for planned in plan:
                with suppress(Exception):  # the item will say what is wrong
                    planned.reward.prepare()
        return self._plans[specs]


def _import(modules: Iterable[str]) -> None:
    """Before any item, whose time this is not; what is missing the reward itself will name."""
    for module in modules:
        with suppress(ImportError):
            importlib.import_module(module)


def _new_batch(plan: Plan) -> Batch:
    return Batch([], [RewardStats.none(planned.reward.name) for planned in plan])


def _settle(parent_pid: int) -> None:
    """Ends with the process it was forked from, leaves Ctrl-C to the server, and prints where the log is.

    The server of forks ends when the last end of a pipe is closed, and gives each fork one, so that it could fork too:
    a worker that hangs would keep it, and itself, alive after the service was killed.
    """
    forks: Any = forkserver._forkserver  # has no public name
    if (alive_fd := getattr(forks, "_forkserver_alive_fd", None)) is not None:
        os.close(alive_fd)
        forks._forkserver_alive_fd = None
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(2, 1)
    if not Path(f"/proc/{parent_pid}").exists():
        sys.exit(0)


def _limit_memory(limit: int) -> None:
    """Lets the address space grow by `limit` bytes over what it is now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + limit
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
