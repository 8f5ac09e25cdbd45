"""The judge against vLLM's own server. A random model grades nothing sensibly; what it writes must be a grade."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from reward_service.judging.grade import Judge
from reward_service.judging.judge import Params, make_judge_reward
from reward_service.judging.settings import JudgeSettings
from reward_service.rewards.base import Task
from tests.models import byte_model
from tests.waiting import until_async

START_S = 240.0


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(byte_model()), "--served-model-name", "m", "--max-model-len", "8192"]
    command += ["--dtype", "float32", "--enforce-eager"]
    # Forked, its processes need not import vLLM each.
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(30)


async def is_ready(url: str) -> bool:
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            return (await client.get(f"{url}/models")).is_success
        except httpx.TransportError:
            return False  # asked again until the time is over


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
async def test_vllm_holds_the_model_to_the_schema(url: str) -> None:
    await until_async(lambda: is_ready(url), START_S, poll_s=0.5)
    settings = JudgeSettings(base_url=url, model="m", max_tokens=3000, timeout_s=120)
    judge = Judge(make_judge_reward(settings), deadline_s=240)
    # A string ends by chance, one byte in some 250: with 3000 tokens a sample is cut off once in 100,000.
    params = Params(rubric="10 for a proof, 0 for none", scale=(2, 8), num_samples=4, temperature=1.0, seed=1)
    try:
        score = await judge.grade(Task("It is 72. <|im_end|>", None, "What is 70 + 2?"), params)
    finally:
        await judge.close()
    assert score.reason is None, score.details
    assert score.score is not None
    assert 0 <= score.score <= 1
    assert len(set(score.details["votes"])) > 1
    assert score.details["std"] > 0
