"""Hand-made groups, and learner ranks as processes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from learner.config import LearnerConfig
from learner.types import ScoredCompletion, ScoredGroup
from learner.worker import LearnerRank
from rollout_server.arrays import TokenIds
from rollout_server.types import Completion, EpisodeTurn, FinishReason, Fork
from tests.models import VOCABULARY


def make_group(
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    rewards: Sequence[float | None],
    *,
    prompt_id: str = "p",
    adapter_version: int = 0,
    sampling_logprob: float = -4.0,
    finish_reason: FinishReason = FinishReason.STOP,
) -> ScoredGroup:
    """A group whose sampler reported the same log-prob for every token."""
    members = tuple(
        ScoredCompletion(
            completion=Completion(
                prompt_id=prompt_id,
                token_ids=tuple(tokens),
                sampling_logprobs=(sampling_logprob,) * len(tokens),
                text="",
                finish_reason=finish_reason,
                adapter_version=adapter_version,
            ),
            rewards=(reward,),
            total=reward,
        )
        for tokens, reward in zip(completions, rewards, strict=True)
    )
    return ScoredGroup(prompt_id=prompt_id, prompt_token_ids=tuple(prompt), members=members)


def random_groups(seed: int, *, num_groups: int = 3, num_generations: int = 4) -> tuple[ScoredGroup, ...]:
    """Groups behind one header, questions and completions of uneven lengths."""
    random = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [int(token) for token in random.integers(1, VOCABULARY, random.integers(low, high))]

    header = tokens(20, 21)
    return tuple(
        make_group(
            header + tokens(3, 9),
            [tokens(1, 15) for _ in range(num_generations)],
            [float(reward) for reward in random.integers(0, 4, num_generations)],
            prompt_id=f"p{index}",
        )
        for index in range(num_groups)
    )


def random_episodes(seed: int, *, num_groups: int = 3, num_generations: int = 4) -> tuple[ScoredGroup, ...]:
    """The same groups, with holes: of each completion random runs of tokens are turns, and the rest was given. Some go
    on behind a history that was rewritten, and those of the last group have turns that are judged each."""
    random, further = np.random.default_rng(seed), np.random.default_rng(1000 + seed)

    def with_holes(group: ScoredGroup, member: ScoredCompletion, by_turns: bool) -> ScoredCompletion:
        completion = member.completion
        edges = sorted({int(edge) for edge in random.integers(0, len(completion.token_ids) + 1, 4)})
        spans = list(zip(edges[::2], edges[1::2], strict=False)) or [(0, len(completion.token_ids))]
        turns = tuple(
            EpisodeTurn(start=start, stop=stop, text="", finish_reason=FinishReason.STOP, adapter_version=0)
            for start, stop in spans
        )
        forks = ()
        if len(turns) > 1 and further.random() < 0.5:
            rewritten = [*group.prompt_token_ids[:22], *further.integers(1, VOCABULARY, 3).tolist()]
            forks = (Fork(start=turns[1].start, prompt_token_ids=TokenIds(rewritten)),)
        totals = tuple(further.integers(0, 4, len(turns)).astype(float).tolist()) if by_turns else ()
        return replace(member, completion=replace(completion, turns=turns, forks=forks), turn_totals=totals)

    groups = random_groups(seed, num_groups=num_groups, num_generations=num_generations)
    return tuple(
        replace(group, members=tuple(with_holes(group, member, group is groups[-1]) for member in group.members))
        for group in groups
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_rank(
    model_path: str,
    config: LearnerConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    port: int = 0,
    temperature: float = 1.0,
    reward_weights: Sequence[float] | None = None,
) -> LearnerRank:
    """A rank of a run of ten batches and completions of up to 16 tokens; not yet started."""
    return LearnerRank(
        rank=rank,
        world_size=world_size,
        master_addr="127.0.0.1",
        master_port=port,
        model_path=model_path,
        config=config,
        temperature=temperature,
        seed=3,
        device="cpu",
        max_completion_length=16,
        max_steps=10,
        reward_weights=reward_weights,
    )


Job = Callable[..., Any]
"""job(rank: LearnerRank, *arguments) → something that pickles, no tensors; a function of a module."""


def run_ranks(world_size: int, model_path: str, config: LearnerConfig, job: Job, *arguments: Any) -> list[Any]:
    """Runs `job` on `world_size` started ranks, each a process; answers in order. Fails with a rank's traceback.

    They are forked from one that has imported what they need, which takes longer than most of what they do.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # of the server, which has imported DeepSpeed when a rank is begun
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["learner.worker", "deepspeed", "peft"])
    queue = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_run_rank, args=(queue, rank, world_size, port, model_path, config, job, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    answers: dict[int, Any] = {}
    try:
        for _ in processes:
            rank, answer, failure = queue.get(timeout=240)
            assert failure is None, f"rank {rank}: {failure}"
            answers[rank] = answer
    finally:
        for process in processes:
            process.join(timeout=30)
            if process.is_alive():
                process.kill()
    return [answers[rank] for rank in range(world_size)]


def _run_rank(
    queue: Any,
    rank: int,
    world_size: int,
    port: int,
    model_path: str,
    config: LearnerConfig,
    job: Job,
    arguments: tuple[Any, ...],
) -> None:
    learner = make_rank(model_path, config, rank=rank, world_size=world_size, port=port)
    try:
        learner.start()
        queue.put((rank, job(learner, *arguments), None))
    except BaseException:  # pytest's failures too
        queue.put((rank, None, traceback.format_exc()))
    finally:
        learner.shutdown()
