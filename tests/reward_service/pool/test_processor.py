"""What processes got of the processors, and that an item is not blamed for what others took."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from reward_service.pool.process import WorkerProcess
from reward_service.pool.processor import (
    ProcessorClock,
    Usage,
    kept_busy_by_others,
    read_schedstat,
    waited_by_descendants,
)
from tests.reward_service.pool.busy_machine import busy, score_all
from tests.reward_service.pool.test_pool import running, score
from tests.waiting import until


def folder(tmp_path: Path, *, state: str = "R", ticks: int = 0, schedstat: str | None = None) -> str:
    """A `/proc` with one process, number 7, child of 3."""
    (tmp_path / "7").mkdir(exist_ok=True)
    (tmp_path / "7" / "stat").write_text(f"7 (odd) name) {state} 3 0 0 0 0 0 0 0 0 0 {ticks} 0 0 0")
    if schedstat is not None:
        (tmp_path / "7" / "schedstat").write_text(schedstat)
    return str(tmp_path)


def test_what_the_kernel_counts_is_read(tmp_path: Path) -> None:
    proc = folder(tmp_path, schedstat="1500000000 250000000 12\n")
    assert ProcessorClock(7, proc=proc).read(0.0) == (1.5, 0.25)
    assert waited_by_descendants([3, 7, 8], proc=proc) == {3: 0.25, 7: 0.0, 8: 0.0}
    assert read_schedstat(8, proc=proc) is None


def test_where_it_counts_less_waiting_is_worked_out(tmp_path: Path) -> None:
    clock = ProcessorClock(7, proc=folder(tmp_path))
    ticks = os.sysconf("SC_CLK_TCK")
    assert clock.read(10.0) == (0.0, 0.0)
    folder(tmp_path, ticks=ticks)
    assert clock.read(13.0) == (1.0, 2.0)  # it could run for 3 s and ran for 1
    folder(tmp_path, ticks=ticks, state="S")
    assert clock.read(20.0) == (1.0, 2.0)  # asleep it waits for no processor


def test_others_are_told_from_us(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    (tmp_path / "loadavg").write_text(f"0.1 0.2 0.3 {cores + 4}/300 1234\n")
    assert kept_busy_by_others(3, proc=str(tmp_path))
    assert not kept_busy_by_others(4, proc=str(tmp_path))
    assert not kept_busy_by_others(0, proc=str(tmp_path / "none"))


async def test_waiting_for_a_processor_does_not_count_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that sleeps, while the clock says that it waited all the time."""
    began = time.monotonic()
    monkeypatch.setattr(ProcessorClock, "_estimate", lambda self, now: self._before)
    monkeypatch.setattr(
        "reward_service.pool.processor.read_schedstat",
        lambda pid, *, proc: ProcessorClock(pid)._before._replace(waited_s=time.monotonic() - began),
    )
    async with running(num_workers=1) as pool:
        (item,) = await score(pool, ["slow"], "hangs", deadline_s=0.1)  # it sleeps for 0.3 s
        assert item.scores == [1.0]
    async with running(num_workers=1, max_deadline_factor=2.0) as pool:
        (item,) = await score(pool, ["sleeps"], "hangs", deadline_s=0.2)
        assert item.scores == [None]
        assert b"others had the processors" in item.result


@pytest.mark.parametrize(("share", "demoted"), [(1.0, True), (0.2, False)])
async def test_who_is_kept_waiting_by_others_is_not_demoted(
    share: float, demoted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At nice 19 it would get nothing there, and its item would be lost. The clock says which share it got."""
    began, found = time.monotonic(), []
    demote = WorkerProcess.demote
    monkeypatch.setattr(WorkerProcess, "demote", lambda worker: (found.append(worker), demote(worker)))
    monkeypatch.setattr("reward_service.pool.pool.kept_busy_by_others", lambda num_ours: False)  # not noticed yet

    def usage(pid: int, *, proc: str) -> Usage:
        elapsed_s = time.monotonic() - began
        return Usage(ran_s=share * elapsed_s, waited_s=(1 - share) * elapsed_s)

    monkeypatch.setattr("reward_service.pool.processor.read_schedstat", usage)
    async with running(num_workers=1, max_workers=1) as pool:
        await score(pool, ["sleeps"], "hangs", deadline_s=0.4)
    assert bool(found) is demoted


async def test_a_request_is_given_the_time_that_its_workers_did_not_get(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    monkeypatch.setattr(
        "reward_service.pool.processor.read_schedstat",
        lambda pid, *, proc: ProcessorClock(pid)._before._replace(waited_s=time.monotonic() - began),
    )
    async with running(num_workers=1, max_workers=1, request_timeout_s=1.0) as pool:
        assert [item.scores for item in await score(pool, ["slow"] * 6, "hangs")] == [[1.0]] * 6


def test_a_child_waits_where_others_have_the_processors() -> None:
    with busy(2 * len(os.sched_getaffinity(0)) + 2):
        until(lambda: waited_by_descendants([os.getpid()])[os.getpid()] > 0.05)


@pytest.mark.skipif("RLVR_SOAK" not in os.environ, reason="by `make soak`: it loads the machine, and asks for it alone")
@pytest.mark.parametrize("name", ["gsm8k_correctness", "math", "symbolic", "json_schema", "code"])
def test_no_item_is_lost_on_a_busy_machine(name: str, busy_service: str) -> None:
    number = 60
    assert score_all(busy_service, name, number) == {"right": number}
