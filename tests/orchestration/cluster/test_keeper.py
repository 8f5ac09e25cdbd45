"""A reward service that dies, hangs, or is gone for a while: every group gets its scores, and none is made up."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from orchestration.cluster.reward.deployment import reward_client
from orchestration.cluster.reward.keeper import RewardKeeper
from orchestration.errors import WorkerDiedError
from orchestration.settings.config import RunConfig
from orchestration.settings.rewards import RewardConfig
from reward_service.child import start_in_subprocess
from reward_service.clients.errors import RewardServiceUnavailable
from reward_service.settings import ServiceSettings
from reward_service.types import RewardItem, RewardSpec
from tests.waiting import until_async

ITEM = RewardItem(id="0", completion="#### The final answer is 7", reference={"final_answer": "7"})
SPECS = (RewardSpec(name="gsm8k_correctness"),)
STARTED = re.compile(r"Started server process \[(\d+)\]")


@asynccontextmanager
async def own_service(folder: Path, *, stall_s: float = 60.0) -> AsyncIterator[tuple[RewardKeeper, list[str]]]:
    config = RunConfig(reward=RewardConfig(stall_timeout_s=stall_s), max_restarts=1)
    notes: list[str] = []
    async with reward_client(config, folder, note=lambda level, message: notes.append(message)) as keeper:
        yield keeper, notes


def newest_service(folder: Path) -> int:
    return int(STARTED.findall((folder / "reward_service.log").read_text())[-1])


async def score(keeper: RewardKeeper) -> float | None:
    (result,) = await keeper.score([ITEM], SPECS)
    return result.total


def services() -> list[psutil.Process]:
    """Children of this process."""
    return [child for child in psutil.Process().children() if "reward_service" in child.cmdline()]


async def test_a_start_that_is_broken_off_leaves_no_service(tmp_path: Path) -> None:
    starting = asyncio.create_task(own_service(tmp_path).__aenter__())
    await until_async(services)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert services() == []


async def score_until_it_fails(keeper: RewardKeeper) -> None:
    while True:
        await score(keeper)


async def test_another_takes_over_when_it_is_killed_and_past_the_budget_the_story_is_told(tmp_path: Path) -> None:
    async with own_service(tmp_path) as (keeper, notes):
        assert await score(keeper) == 1.0
        os.kill(newest_service(tmp_path), signal.SIGKILL)
        assert await asyncio.gather(*(score(keeper) for _ in range(4))) == [1.0] * 4
        assert re.match(r"the reward service \(pid \d+\) was killed by SIGKILL; its log is .*; another is", notes[0])
        await until_async(lambda: notes[-1] == "the reward service is back")
        os.kill(newest_service(tmp_path), signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match=r"2 failures .* max_restarts=1.* was killed by SIGKILL"):
            await score_until_it_fails(keeper)


async def test_one_that_cannot_be_started_again_ends_the_wait_for_it(tmp_path: Path) -> None:
    """Such as in a folder that was removed, of which the system says no more than that."""
    logs = tmp_path / "logs"
    async with own_service(logs) as (keeper, _):
        number = newest_service(logs)
        logs.rename(tmp_path / "elsewhere")
        logs.write_text("in the way")
        os.kill(number, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match=r"did not start again: .*File exists"):
            await score_until_it_fails(keeper)


async def test_one_that_is_stopped_is_replaced(tmp_path: Path) -> None:
    async with own_service(tmp_path, stall_s=1.0) as (keeper, notes):
        stopped = newest_service(tmp_path)
        os.kill(stopped, signal.SIGSTOP)
        assert await score(keeper) == 1.0
        assert newest_service(tmp_path) != stopped
        assert "was not ready within 1 s" in notes[0]


async def test_a_foreign_one_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    notes: list[str] = []
    service = start_in_subprocess(log_path=tmp_path / "log")
    url, port = service.url, int(service.url.rpartition(":")[2])
    config = RunConfig(reward=RewardConfig(url=url, deadline_s=0.5, timeout_s=5.0))
    try:
        async with reward_client(config, tmp_path, note=lambda level, message: notes.append(message)) as keeper:
            service.stop()
            waiting = asyncio.create_task(score(keeper))
            await until_async(lambda: notes)
            assert "no usable answer" in notes[0]
            assert "give_up_after_s=1800" in notes[0]
            service = await asyncio.to_thread(
                start_in_subprocess, ServiceSettings(port=port), log_path=tmp_path / "log"
            )
            assert await waiting == 1.0
            assert notes[1:] == ["the reward service answers again"]
    finally:
        service.stop()


async def test_a_foreign_one_that_stays_away_ends_the_wait_in_time(tmp_path: Path) -> None:
    with start_in_subprocess(log_path=tmp_path / "log") as service:
        config = RunConfig(reward=RewardConfig(url=service.url, deadline_s=0.2, timeout_s=5.0, give_up_after_s=0.3))
        async with reward_client(config, tmp_path) as keeper:
            service.stop()
            with pytest.raises(RewardServiceUnavailable, match="no usable answer"):
                await score(keeper)
