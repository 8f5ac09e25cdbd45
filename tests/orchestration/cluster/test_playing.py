"""Environments in actors of a real Ray cluster, which are killed and which block; what the model says is scripted."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestration.cluster.cluster import Cluster
from orchestration.cluster.playing.hosts import EnvironmentHosts
from orchestration.data.prompts import PromptBuilder
from orchestration.episodes.generator import acting
from orchestration.models.resolve import resolve_model
from orchestration.models.tokenizer import load_tokenizer
from orchestration.settings.config import load_config
from rollout_server.types import Completion, FinishReason, Prompt, SamplingParams
from tests.waiting import until_async

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

GROUP = SamplingParams(num_generations=6, max_completion_length=200)


class Says:
    """An engine that says one thing for ever, or one thing first; it counts what it was asked."""

    max_sequences = None

    def __init__(self, tokenizer: Any, *first: str, then: str = "go") -> None:
        self._tokenizer, self._first, self._then, self.asked = tokenizer, list(first), then, 0

    async def publish(self, adapter: Any) -> Sequence[Any]:
        return []

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        self.asked += sampling.num_generations
        said = [self._first.pop(0) if self._first else self._then for _ in range(sampling.num_generations)]
        ids = [self._tokenizer.encode(text, add_special_tokens=False) for text in said]
        return [
            Completion(
                prompt_id=prompt.prompt_id,
                token_ids=tokens,
                sampling_logprobs=[-1.0] * len(tokens),
                text=text,
                finish_reason=FinishReason.STOP,
                adapter_version=1,
            )
            for text, tokens in zip(said, ids, strict=True)
        ]


@contextmanager
def longest_pause() -> Iterator[list[float]]:
    """How long this loop was held at most, in the list's one place."""
    loop, longest = asyncio.get_running_loop(), [0.0]

    async def look() -> None:
        while True:
            before = loop.time()
            await asyncio.sleep(0.02)
            longest[0] = max(longest[0], loop.time() - before)

    looking = asyncio.create_task(look())
    try:
        yield longest
    finally:
        looking.cancel()


def busy(hosts: EnvironmentHosts) -> list[Any]:
    return [
        host for host in hosts._hosts if host.num_open and host.actor is not None and host.actor.process is not None
    ]


async def test_episodes_begin_again_where_their_host_was_killed_and_one_that_blocks_holds_nobody_elsewhere() -> None:
    words = ["data=tests.orchestration.cluster.slow_task:Slow", "episodes.num_hosts=2", "episodes.step_timeout_s=2.5"]
    words += ["dashboard=false", "episodes.host_nodes=node:__internal_head__"]  # which the one node of Ray's has
    config, notes = load_config("guess", words), list[str]()
    cluster = Cluster(config, run_id=f"playing-{os.getpid()}", note=lambda level, message: notes.append(message))
    tokenizer = load_tokenizer(Path(resolve_model("tiny", None)))
    problems = config.data.load()
    builder = PromptBuilder(tokenizer, layout=config.data.layout())
    built = builder.build(problems.train[0])
    assert built is not None
    try:
        cluster.connect()
        hosts = cluster.environment_hosts()
        assert hosts is not None
        assert [host.actor for host in hosts._hosts] == [None, None]  # nobody needs one yet

        def playing(engine: Says) -> Any:
            generator = acting(engine, config, problems, builder, device="cpu", hosts=hosts)
            return generator.generate(built.prompt, GROUP)

        engine = Says(tokenizer, *["wait"] * 6)
        game = asyncio.create_task(playing(engine))
        await until_async(lambda: engine.asked == 6 and len(busy(hosts)) == 2, 120)
        os.kill(hosts._hosts[0].actor.process.pid, signal.SIGKILL)
        episodes = await game
        assert [(one.failure, one.finish_reason) for one in episodes] == [(None, FinishReason.STOP)] * 6
        assert [[turn.reward for turn in one.turns] for one in episodes] == [[1.0, 1.0]] * 6
        assert engine.asked == 12 + 3  # three were in the one that was killed, and said their first turn again
        assert any("environments-0" in note and "begin again" in note for note in notes)
        assert [host.num_open for host in hosts._hosts] == [0, 0]

        with longest_pause() as pause:
            engine = Says(tokenizer, "block", *["go"] * 5)
            episodes = await playing(engine)
        assert pause[0] < 2  # of nine seconds: a busy machine's, not the environment's
        assert "did not answer step within episodes.step_timeout_s=2.5 s" in str(episodes[0].failure)
        assert [one.failure for one in (episodes[1], episodes[3], episodes[5])] == [None] * 3  # the other host's
        assert [host.num_open for host in hosts._hosts] == [0, 0]
    finally:
        await cluster.shutdown()
