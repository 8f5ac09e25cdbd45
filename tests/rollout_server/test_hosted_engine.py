"""Engines forked on CPUs: they start without importing anything again, fail in words, and leave no process behind.

Slow, as they start engines; they share the fork server of the other tests, and its import of vLLM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rollout_server import hosted_engine
from rollout_server.errors import EngineDeadError, EngineStartError
from rollout_server.hosted_engine import HostedEngine, start_fork_server
from rollout_server.types import Prompt, SamplingParams
from tests.waiting import until_async

from .conftest import make_config

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

PROMPT = Prompt(prompt_id="p", token_ids=tuple(range(10, 50)))
SHORT = SamplingParams(num_generations=1, max_completion_length=8)


def forked() -> set[psutil.Process]:
    """All processes under the fork server: engines, cores and workers."""
    start_fork_server()
    assert hosted_engine._own_server is not None
    return set(psutil.Process(hosted_engine._own_server._process.pid).children(recursive=True))


async def until_only(processes: set[psutil.Process]) -> None:
    await until_async(lambda: not forked() - processes, poll_s=0.05)


def engine_of(model_path: Path, folder: Path) -> HostedEngine:
    return HostedEngine(model_path=str(model_path), config=make_config(folder), device="cpu", seed=0)


async def generate_until_it_fails(engine: HostedEngine) -> None:
    while True:  # what was sent before the death may still be answered
        await engine.generate(PROMPT, SHORT, None)


async def test_a_core_that_is_killed_is_named_and_leaves_nothing(reference, tmp_path):
    before = forked()
    engine = engine_of(reference.model_path, tmp_path)
    await engine.start()
    assert len(await engine.generate(PROMPT, SHORT, None)) == 1
    assert engine.load().generated_tokens > 0
    assert engine.recent_steps()
    ours = forked() - before
    (host,) = [process for process in ours if process.parent() not in ours]
    core = next(child for child in host.children() if "resource_tracker" not in " ".join(child.cmdline()))
    core.kill()
    with pytest.raises(EngineDeadError, match=r"EngineCore \(pid \d+\) was killed by SIGKILL"):
        await generate_until_it_fails(engine)
    await engine.shutdown()
    await until_only(before)


async def test_an_engine_whose_process_is_killed_says_so(reference, tmp_path):
    before = forked()
    engine = engine_of(reference.model_path, tmp_path)
    await engine.start()
    ours = forked() - before
    (host,) = [process for process in ours if process.parent() not in ours]
    host.kill()
    with pytest.raises(EngineDeadError, match=r"died: its process: it was killed by SIGKILL"):
        await generate_until_it_fails(engine)
    await until_only(before)
    await engine.shutdown()


async def test_a_model_that_cannot_be_served_is_refused_in_words(tmp_path):
    before = forked()
    with pytest.raises(EngineStartError, match=r"vLLM did not start on '.*' \(cpu\): ValidationError: .*"):
        await engine_of(tmp_path, tmp_path).start()
    await until_only(before)


CLIENT = """
import asyncio, sys
from pathlib import Path
from tests.rollout_server.test_hosted_engine import engine_of

async def main():
    await engine_of(Path(sys.argv[1]), Path(sys.argv[2])).start()
    print("up", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_killed_actor_takes_core_and_worker_along(reference, tmp_path):
    before = forked()
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, str(reference.model_path), str(tmp_path),
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert client.stdout is not None
    assert (await client.stdout.readline()).strip() == b"up"
    assert len(forked() - before) >= 3
    client.send_signal(signal.SIGKILL)
    await client.wait()
    await until_only(before)
