"""`rlvr bench episodes`: what turns cost, beside the same tokens in one turn.

One pool of workers gives both, in turns of their own: episodes whose environment answers after a random while, and
completions of one turn that are as long as all turns of an episode together. End tokens are ignored, so that lengths
are equal. Then learners take turns on episodes of the last round, and on the same tokens as if all had been sampled.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from learner.config import CPU_ENVIRONMENT
from learner.types import ScoredCompletion, ScoredGroup
from orchestration.bench.machine import machine_line, num_gpus
from orchestration.bench.rollout import random_adapter
from orchestration.cluster.actors import RolloutActor
from orchestration.cluster.cluster import Cluster
from orchestration.concurrency import gather_or_cancel
from orchestration.data.source import PromptSource
from orchestration.environments.environment import Step
from orchestration.episodes.generator import EpisodeGenerator
from orchestration.machine import doctor
from orchestration.models.prompting import make_prompt_builder, training_sampling
from orchestration.models.resolve import resolve_model
from orchestration.report.progress import counted
from orchestration.run.metrics import hit_share
from orchestration.run.ports import Generator
from orchestration.settings.config import RunConfig, load_config
from orchestration.settings.episodes import EpisodeConfig
from orchestration.storage.cache import Progress
from orchestration.types import Problem
from rollout_server.types import Completion, Prompt, SamplingParams

_ROOM = 24
"""Tokens that an answer of the environment may have, with what the template puts around it."""
_LEARNERS = ("episodes", "flat")
_LEARNED = 2
"""Groups that the learners take: what is compared does not depend on how many there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodesBench:
    """What `rlvr bench episodes` measures."""

    episodes: int = 64
    """At once."""
    turns: int = 4
    turn_length: int = 32
    """Sampled tokens of each turn."""
    latency_ms: int = 500
    """What an environment takes for an answer at most; at least 0, all alike likely."""
    rounds: int = 3


@dataclass(slots=True)
class _Slow:
    """Answers after a while, until an episode has its turns."""

    num_turns: int
    latency_s: float
    waits: random.Random
    told: list[float]
    """Gets what each episode waited for it in all, seconds."""
    _heard: int = 0
    _waited_s: float = 0.0

    async def reset(self, problem: Problem) -> None:
        """There is nothing to show."""

    async def step(self, action: str) -> Step:
        self._heard += 1
        wait_s = self.waits.uniform(0, self.latency_s)
        self._waited_s += wait_s
        await asyncio.sleep(wait_s)
        return Step("Go on.", reward=0.0, done=self._heard == self.num_turns)

    async def close(self) -> None:
        """Holds nothing."""
        self.told.append(self._waited_s)


def run(options: EpisodesBench, overrides: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Measure episodes beside completions of one turn.

    Args:
        options: How many, and how long.
        overrides: A recipe (`arithmetic`), if one is named first, and settings, as for `rlvr train`.
        progress: Told what is being done.

    Returns:
        `machine`, `settings` and `figures`.

    Raises:
        RlvrError: The machine or a setting does not allow it.
        RolloutError: An engine failed.
    """
    words = list(overrides)
    recipe = words.pop(0) if words and "=" not in words[0] else "arithmetic"
    config = load_config(recipe, [*_fixed(options), *words])
    doctor.require_machine(config)
    begin = counted(progress, 4 + 2 * (options.rounds + 1) + 2 * options.rounds)
    begin(f"preparing the model {config.model.name} and its prompts")
    model_path = resolve_model(config.model.name, config.model.revision, progress=progress)
    rounds = asyncio.run(_sampled(options, config, model_path, begin))
    learned = _learned(options, config, model_path, _scored(rounds[-1].episodes[:_LEARNED]), begin)
    return {
        "machine": machine_line(),
        "settings": asdict(options) | {"model": config.model.name, "block_size": config.rollout.block_size},
        "figures": _figures(rounds, learned),
    }


def _fixed(options: EpisodesBench) -> list[str]:
    length = options.turns * (options.turn_length + _ROOM)
    fixed = {
        "dashboard": "false",
        "learner.num_ranks": "1",
        "rollout.max_num_seqs": str(options.episodes),
        "rollout.max_completion_length": str(length),
        "rollout.max_model_len": str(length + 512),
    }
    if not num_gpus():
        fixed |= {"rollout.num_workers": "1", "rollout.block_size": "32"}
    return [f"{name}={value}" for name, value in fixed.items()]


_Groups = Sequence[tuple[Prompt, Sequence[Completion]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    """Sampled tokens a second of both, within one round, and what the episodes were."""

    of_episodes: float
    of_single_turns: float
    longest_wait_s: float
    """For its environment, of an episode."""
    episodes: _Groups


async def _sampled(
    options: EpisodesBench, config: RunConfig, model_path: Path, begin: Callable[[str], None]
) -> list[_Round]:
    problems = config.data.load()
    builder = make_prompt_builder(config, problems, model_path)
    sampling = replace(training_sampling(config, builder), stop=(), stop_token_ids=(), ignore_end_token=True)
    async with AsyncExitStack() as stack:
        begin("starting Ray and rollout workers")
        cluster = Cluster(config, run_id=f"bench-episodes-{os.getpid()}")
        stack.push_async_callback(cluster.shutdown)
        cluster.connect()
        workers = await cluster.start_rollout()
        payload = random_adapter(model_path, rank=config.learner.lora.r)
        for member in workers.members:
            await member.actor.call(RolloutActor.publish, timeout_s=config.rollout.publish_timeout_s)(payload)
        waits, waited = random.Random(config.seed), list[float]()
        playing = EpisodeGenerator(
            workers,
            problems={problem.problem_id: problem for problem in problems.train},
            open_environment=lambda: _Slow(options.turns, options.latency_ms / 1e3, waits, waited),
            builder=builder,
            settings=EpisodeConfig(max_turns=options.turns, max_turn_length=options.turn_length),
        )
        source = PromptSource(problems.train, builder.build, config.seed)
        rounds = [
            await _round(
                number, options, _prompts(source, options, sampling), sampling, playing, workers, waited, begin
            )
            for number in range(options.rounds + 1)
        ]
    return rounds[1:]  # the first one warmed up


def _prompts(source: PromptSource, options: EpisodesBench, sampling: SamplingParams) -> list[Prompt]:
    """Of one round; a benchmark's own, so that neither finds the other's tokens in a cache."""
    return [source.next().prompt for _ in range(max(1, options.episodes // sampling.num_generations))]


async def _round(
    number: int,
    options: EpisodesBench,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    playing: Generator,
    workers: Generator,
    waited: list[float],
    begin: Callable[[str], None],
) -> _Round:
    single = replace(sampling, max_completion_length=options.turns * options.turn_length)

    async def asked(generator: Generator, how: SamplingParams) -> tuple[float, _Groups]:
        return await _timed(gather_or_cancel(generator.generate(prompt, how) for prompt in prompts), prompts)

    both = [("episodes", playing, sampling), ("completions of one turn", workers, single)]
    found = {}
    for name, generator, how in both if number % 2 == 0 else both[::-1]:  # nobody is always the one that goes first
        begin(f"measuring {name}, round {number} of {options.rounds}" if number else f"warming up {name}")
        found[name] = await asked(generator, how)
    (of_episodes, episodes), (of_single, _) = found["episodes"], found["completions of one turn"]
    longest = max(waited)
    waited.clear()
    return _Round(of_episodes=of_episodes, of_single_turns=of_single, longest_wait_s=longest, episodes=episodes)


async def _timed(work: Awaitable[Sequence[Sequence[Completion]]], prompts: Sequence[Prompt]) -> tuple[float, _Groups]:
    began = time.perf_counter()
    groups = await work
    seconds = time.perf_counter() - began
    sampled = sum(completion.num_sampled for group in groups for completion in group)
    return sampled / seconds, list(zip(prompts, groups, strict=True))


def _scored(groups: _Groups) -> tuple[ScoredGroup, ...]:
    return tuple(
        ScoredGroup(
            prompt_id=prompt.prompt_id,
            prompt_token_ids=prompt.token_ids,
            members=tuple(
                ScoredCompletion(completion=completion, rewards=(float(index % 2),), total=float(index % 2))
                for index, completion in enumerate(completions)
            ),
        )
        for prompt, completions in groups
    )


def _flat(groups: Sequence[ScoredGroup]) -> tuple[ScoredGroup, ...]:
    """The same tokens, as if one turn had sampled them all."""
    return tuple(
        replace(
            group,
            members=tuple(
                replace(member, completion=replace(member.completion, turns=(), forks=())) for member in group.members
            ),
        )
        for group in groups
    )


def _learned(
    options: EpisodesBench,
    config: RunConfig,
    model_path: Path,
    groups: tuple[ScoredGroup, ...],
    begin: Callable[[str], None],
) -> list[dict[str, float]]:
    """Seconds of an update on each, of every round."""
    from orchestration.bench.contenders.common import Setting
    from orchestration.bench.learner import contender

    device = "cuda" if num_gpus() else "cpu"
    setting = Setting(
        model_path=str(model_path),
        device=device,
        dtype="float32" if device == "cpu" else "bfloat16",
        threads=len(os.sched_getaffinity(0)),
        gradient_checkpointing=config.learner.gradient_checkpointing,
        max_tokens_per_microbatch=4096 if device == "cpu" else None,
        num_rounds=options.rounds,
    )
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with ExitStack() as stack:
        begin("loading two learners")
        turns = {
            name: stack.enter_context(contender("tree_on", setting, batch))
            for name, batch in zip(_LEARNERS, (groups, _flat(groups)), strict=True)
        }
        found = []
        for number in range(options.rounds):
            order = _LEARNERS if number % 2 == 0 else _LEARNERS[::-1]
            seconds = {}
            for name in order:
                begin(f"learning from {name}, round {number + 1}")
                seconds[name] = turns[name].take()["seconds"]
            found.append(seconds)
    return found


def _seconds(one: _Round) -> float:
    """Of the completions of one turn."""
    return sum(episode.num_sampled for _, group in one.episodes for episode in group) / one.of_single_turns


def recomputed(prompt: Prompt, episode: Completion) -> int:
    """Tokens of which an engine had keys and values, and computed them again for a later turn; without forks. The last
    token that a turn samples is not put in: it is the next turn's to compute."""
    pairs = zip(episode.turns, episode.turns[1:], strict=False)
    return sum(len(prompt.token_ids) + before.stop - 1 - after.num_cached for before, after in pairs)


def _figures(rounds: Sequence[_Round], learned: Sequence[dict[str, float]]) -> dict[str, float]:
    ratios = [one.of_episodes / one.of_single_turns for one in rounds]
    episodes = [completion for one in rounds for _, group in one.episodes for completion in group]
    share = hit_share(episodes)
    alone = [1 / (1 + one.longest_wait_s / _seconds(one)) for one in rounds]
    return {
        "ratio_to_single_turn": statistics.median(ratios),
        "ratio_to_single_turn_min": min(ratios),
        "ratio_to_single_turn_max": max(ratios),
        "ratio_of_waiting_alone": statistics.median(alone),
        "episodes_tokens_per_s": statistics.median(one.of_episodes for one in rounds),
        "single_turn_tokens_per_s": statistics.median(one.of_single_turns for one in rounds),
        "prefix_cache_hit_share": 0.0 if share is None else share,
        "cacheable_tokens_per_episode": statistics.fmean(
            sum(turn.num_cacheable for turn in episode.turns) for episode in episodes
        ),
        "recomputed_tokens_per_episode": statistics.fmean(
            recomputed(prompt, one) for each in rounds for prompt, group in each.episodes for one in group
        ),
        "retokenised_tokens": float(sum(episode.num_retokenised for episode in episodes)),
        "turns_mean": statistics.fmean(len(episode.turns) for episode in episodes),
        "sampled_tokens_mean": statistics.fmean(episode.num_sampled for episode in episodes),
        "given_tokens_mean": statistics.fmean(len(episode.token_ids) - episode.num_sampled for episode in episodes),
        "learner_ratio_to_flat": statistics.median(one["episodes"] / one["flat"] for one in learned),
        "learner_seconds": statistics.median(one["episodes"] for one in learned),
        "learner_flat_seconds": statistics.median(one["flat"] for one in learned),
    }
