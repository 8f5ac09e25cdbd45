"""The judge against vLLM's own server. A random model grades nothing sensibly; what it writes must be a grade."""

from __future__ import annotations

import asyncio
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

START_S = 240.0
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def save_byte_model(folder: Path) -> None:
    """A random model whose tokens are the bytes, so that it can write JSON."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = ["<eos>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        eos_token_id=0,
        pad_token_id=1,
        tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(config).float().save_pretrained(folder)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    save_byte_model(tmp_path / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(tmp_path / "model"), "--served-model-name", "m", "--max-model-len", "8192"]
    command += ["--dtype", "float32", "--enforce-eager"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
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


async def ready(url: str) -> None:
    async with asyncio.timeout(START_S), httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                if (await client.get(f"{url}/models")).is_success:
                    return
            except httpx.TransportError:
                pass  # asked again until the time is over
            await asyncio.sleep(0.5)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
async def test_vllm_holds_the_model_to_the_schema(url: str) -> None:
    await ready(url)
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
