"""How vLLM's processes wait for each other: asleep, missing no call, and the longer the less there is to do; and with
how many threads they compute.

Slow, as vLLM must be imported: in a process forked from the one that has done so for the other tests.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
import torch

from rollout_server.forking.client import ForkedProcess
from rollout_server.forking.hosted import host
from rollout_server.hosted_engine import start_fork_server
from rollout_server.vllm_extension import place, probe_on_one_thread, wait_asleep, working_threads
from rollout_server.vllm_types import vllm_probe_parameters

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

LONG_MS = 100_000


class Conditions:
    """A writer and a reader as in two processes of vLLM's, in the forked one."""

    def __init__(self) -> None:
        import zmq

        wait_asleep()
        from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
        from vllm.utils.network_utils import get_open_zmq_ipc_path

        address, context = get_open_zmq_ipc_path(), zmq.Context()
        self.writer = SpinCondition(is_reader=False, context=context, notify_address=address)
        self.reader = SpinCondition(is_reader=True, context=context, notify_address=address)
        while not self.reader.local_notify_socket.poll(10):  # until its subscription has arrived
            self.writer.notify()

    def heard(self, calls: int) -> int:
        """How many calls, each right after the one before was heard, end the wait of a reader that is idle for long."""
        self.reader.last_read = -LONG_MS
        began = time.monotonic()
        for call in range(calls):
            self.writer.notify()
            self.reader.wait(LONG_MS)
            if time.monotonic() - began > LONG_MS / 1000:
                return call
        return calls

    def sleep_ms(self, idle_s: float, timeout_ms: int | None) -> int:
        """For how long a reader goes to sleep."""
        slept: list[int] = []
        poller, self.reader.poller = (
            self.reader.poller,
            SimpleNamespace(poll=lambda timeout: slept.append(timeout) or []),
        )
        self.reader.last_read = time.monotonic() - idle_s
        self.reader.wait(timeout_ms)
        self.reader.poller = poller
        return slept[0]

    def placed(self) -> tuple[int, list[set[int]], list[set[int]]]:
        """How many threads work together, and their cores while they are apart and after it."""
        cores = sorted(os.sched_getaffinity(0))[:2]
        torch.set_num_threads(len(cores))
        threads = working_threads(len(cores))
        place(threads, cores, apart=True)
        apart = [os.sched_getaffinity(thread) for thread in threads]
        place(threads, cores, apart=False)
        return len(set(threads)), apart, [os.sched_getaffinity(thread) for thread in threads]

    def threads_of_steps(self, threads: int) -> list[int]:
        """How many threads a runner that has so many computes steps with: a probe, a completion's prompt, its next
        token, both at once, and a probe again."""
        from vllm import SamplingParams
        from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

        torch.set_num_threads(threads)
        runner = SimpleNamespace(execute_model=lambda scheduled: torch.get_num_threads())
        probe_on_one_thread(runner)

        def step(*asked: Any, going_on: tuple[str, ...] = ()) -> int:
            scheduled = SchedulerOutput.make_empty()
            scheduled.scheduled_new_reqs = [NewRequestData("0", [1], [], one, None, (), 0, None) for one in asked]
            scheduled.scheduled_cached_reqs.req_ids = list(going_on)
            return runner.execute_model(scheduled)

        probe, completion = vllm_probe_parameters(), SamplingParams()
        return [
            step(probe, probe),
            step(completion),
            step(going_on=("1",)),
            step(probe, completion),
            step(probe, going_on=("1",)),
            step(probe),
            step(),
        ]

    def shutdown(self) -> None:
        """The process ends, and all with it."""


def begin(connection: socket.socket) -> None:
    host(connection, lambda tell: Conditions())


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def conditions() -> AsyncIterator[ForkedProcess]:
    process = ForkedProcess(start_fork_server(), lambda news: None)
    await process.start(f"{__name__}:begin")
    yield process
    await process.close()


async def test_a_call_right_after_another_is_heard(conditions: Any) -> None:
    assert await conditions.call("heard", 100) == 100


async def test_nobody_sleeps_longer_than_it_has_been_idle(conditions: Any) -> None:
    """A call before the reader has subscribed is lost: it must not be waited for long."""
    assert await conditions.call("sleep_ms", 0.002, 5000) == 5
    assert 50 <= await conditions.call("sleep_ms", 0.05, 5000) < 5000
    assert await conditions.call("sleep_ms", 3600.0, 5000) == 5000
    assert await conditions.call("sleep_ms", 3600.0, None) >= 3_600_000


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is shared by all threads")
async def test_threads_that_work_together_are_put_on_a_core_each_and_let_go(conditions: Any) -> None:
    number, apart, together = await conditions.call("placed")
    assert number == 2
    assert apart == [{core} for core in sorted(together[0])]
    assert together[0] == together[1]


async def test_probes_alone_are_computed_on_one_thread_of_two(conditions: Any) -> None:
    assert await conditions.call("threads_of_steps", 2) == [1, 2, 2, 2, 2, 1, 2]
    assert await conditions.call("threads_of_steps", 4) == [4] * 7
