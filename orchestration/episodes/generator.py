"""The `Generator` port for tasks with an environment: what it gives are episodes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count

from orchestration.concurrency import gather_or_cancel
from orchestration.data.problems import Problems
from orchestration.data.prompts import PromptBuilder
from orchestration.data.task import Task
from orchestration.environments.environment import Environment
from orchestration.episodes.episode import Episode
from orchestration.episodes.rendering import TurnRenderer
from orchestration.run.ports import AdapterHandle, Generator
from orchestration.settings.config import RunConfig
from orchestration.settings.episodes import EpisodeConfig
from orchestration.types import Problem
from rollout_server.arrays import TokenIds
from rollout_server.types import Completion, Prompt, PublishReport, SamplingParams

_NUMBERS = count()


def acting(generator: Generator, config: RunConfig, problems: Problems, builder: PromptBuilder) -> Generator:
    """What a run draws from: episodes, where its task has an environment, else the generator itself."""
    if config.data.environment() is None:
        return generator
    return EpisodeGenerator(
        generator,
        problems={problem.problem_id: problem for problem in (*problems.train, *problems.eval)},
        open_environment=lambda: _opened(config.data),
        builder=builder,
        settings=config.episodes,
    )


def _opened(task: Task) -> Environment:
    environment = task.environment()
    assert environment is not None, "a task has one for all its problems or for none"
    return environment


class EpisodeGenerator:
    """Plays a group of episodes of one problem, each in an environment of its own.

    The first turn of all is one call, as a group of answers is; later turns are one each, on the worker that has the
    keys and values of the turns before.

    Args:
        inner: Draws the turns.
        problems: By the ids of their prompts.
        open_environment: Makes the world of one episode.
        builder: Of the run's prompts.
        settings: Bounds of an episode.
    """

    def __init__(
        self,
        inner: Generator,
        *,
        problems: Mapping[str, Problem],
        open_environment: Callable[[], Environment],
        builder: PromptBuilder,
        settings: EpisodeConfig,
    ) -> None:
        self._inner, self._problems, self._open, self._settings = inner, problems, open_environment, settings
        self._builder, self._renderer = builder, TurnRenderer(builder)

    @property
    def max_sequences(self) -> int | None:
        return self._inner.max_sequences

    async def publish(self, adapter: AdapterHandle) -> Sequence[PublishReport]:
        return await self._inner.publish(adapter)

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        """A group of episodes. One that fails is told by its `failure`; raises what the engines raise."""
        prompt = replace(prompt, affinity=f"{prompt.prompt_id}/{next(_NUMBERS)}")
        episodes = [self._new_episode(prompt, sampling) for _ in range(sampling.num_generations)]
        try:
            await gather_or_cancel(episode.begin() for episode in episodes)
            firsts = await self._first_turns(prompt, sampling, episodes)
            await gather_or_cancel(
                self._play(index, episode, first, prompt, sampling)
                for index, (episode, first) in enumerate(zip(episodes, firsts, strict=True))
            )
        finally:
            await gather_or_cancel(episode.close() for episode in episodes)
        return [episode.completion() for episode in episodes]

    def _new_episode(self, prompt: Prompt, sampling: SamplingParams) -> Episode:
        problem = self._problems[prompt.prompt_id]
        return Episode(
            problem=problem,
            environment=self._open(),
            renderer=self._renderer,
            settings=self._settings,
            history=self._builder.messages(problem),
            prompt_token_ids=prompt.token_ids,
            max_length=sampling.max_completion_length,
        )

    async def _first_turns(
        self, prompt: Prompt, sampling: SamplingParams, episodes: Sequence[Episode]
    ) -> Sequence[Completion | None]:
        """In one call where all begin alike. Of an episode that has failed already, nothing is made."""
        if all(episode.over for episode in episodes):
            return [None] * len(episodes)
        if any(episode.own_prompt for episode in episodes):
            return [None] * len(episodes)
        return await self._inner.generate(prompt, replace(sampling, max_completion_length=episodes[0].room))

    async def _play(
        self, index: int, episode: Episode, first: Completion | None, prompt: Prompt, sampling: SamplingParams
    ) -> None:
        while not episode.over:
            if first is None:
                first = await self._turn(index, episode, prompt, sampling)
            await episode.hear(first)
            first = None

    async def _turn(self, index: int, episode: Episode, prompt: Prompt, sampling: SamplingParams) -> Completion:
        asked = replace(
            prompt,
            token_ids=episode.prompt_token_ids + TokenIds(episode.token_ids),
            seed=turn_seed(prompt.seed, index, len(episode.turns)),
            turn=None,
        )
        one = replace(sampling, num_generations=1, max_completion_length=episode.room)
        (completion,) = await self._inner.generate(asked, one)
        return completion


def turn_seed(seed: int | None, episode: int, turn: int) -> int | None:
    """Of one turn of one of a group's episodes, by the group's own: 62 bits."""
    if seed is None:
        return None
    return int.from_bytes(hashlib.sha256(f"turn/{seed}/{episode}/{turn}".encode()).digest()[:8], "big") >> 2
