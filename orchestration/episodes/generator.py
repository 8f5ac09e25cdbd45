"""The `Generator` port for tasks with an environment: what it gives are episodes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Protocol

from orchestration.concurrency import gather_or_cancel
from orchestration.data.problems import Problems
from orchestration.data.prompts import PromptBuilder
from orchestration.data.task import Task
from orchestration.environments.asking import opened
from orchestration.environments.environment import Enters, Environment, Scoring, Surroundings
from orchestration.episodes.episode import Episode
from orchestration.episodes.lockstep import Lockstep
from orchestration.episodes.rendering import TurnRenderer
from orchestration.run.ports import AdapterHandle, Generator
from orchestration.settings.config import RunConfig
from orchestration.settings.episodes import EpisodeConfig
from orchestration.types import Problem
from rollout_server.types import Completion, Prompt, PublishReport, SamplingParams, Turn

MAX_TRIES = 3
"""Of an episode whose environment is lost with what held it."""

_NUMBERS = count()


class Opener(Protocol):
    """Holds environments elsewhere."""

    def open(self) -> Environment: ...


def acting(
    generator: Generator,
    config: RunConfig,
    problems: Problems,
    builder: PromptBuilder,
    scoring: Scoring | None = None,
    *,
    device: str,
    hosts: Opener | None = None,
) -> Generator:
    """What a run draws from: episodes, where its task has an environment, else the generator itself.

    Args:
        scoring: the run's reward service, for environments that ask it as they go.
        device: Of the engines: where turns begin together unasked.
        hosts: Hold environments elsewhere; those that enter their surroundings live here all the same.
    """
    if not config.data.has_turns():
        return generator
    by_id = {problem.problem_id: problem for problem in (*problems.train, *problems.eval)}
    places = Places(config.episodes.max_concurrent)

    def playing(task: Task, builder: PromptBuilder) -> EpisodeGenerator:
        around = Surroundings(
            template_takes_tools=builder.template_takes_tools, scoring=scoring, max_turns=config.episodes.max_turns
        )
        return EpisodeGenerator(
            generator,
            problems=by_id,
            open_environment=lambda: _opened(task, around, hosts),
            builder=builder,
            settings=config.episodes,
            places=places,
            lockstep=Lockstep() if _in_lockstep(config, device) else None,
        )

    parts = config.data.parts()
    if not parts:
        return playing(config.data, builder)
    played = {part: playing(task, builder.of(part)) for part, task in parts.items() if task.has_turns()}
    return ByPart(generator, played, {name: problem.part for name, problem in by_id.items()})


def _in_lockstep(config: RunConfig, device: str) -> bool:
    own_seeds = device == "cpu" if config.rollout.own_seeds is None else config.rollout.own_seeds
    return own_seeds if config.episodes.lockstep is None else config.episodes.lockstep


def _opened(task: Task, around: Surroundings, hosts: Opener | None) -> Environment:
    environment = task.environment()
    assert environment is not None, "a task has one for all its problems or for none"
    if isinstance(environment, Enters):
        environment.enter(around)
    elif hosts is not None:
        return hosts.open()
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
        places: For environments, shared with others; None: its own, as many as the settings say.
        lockstep: Where the later turns of groups meet that began together; None: each begins by itself.
    """

    def __init__(
        self,
        inner: Generator,
        *,
        problems: Mapping[str, Problem],
        open_environment: Callable[[], Environment],
        builder: PromptBuilder,
        settings: EpisodeConfig,
        places: Places | None = None,
        lockstep: Lockstep | None = None,
    ) -> None:
        self._lockstep = lockstep
        self._places = places or Places(settings.max_concurrent)
        self._inner, self._problems, self._settings = inner, problems, settings
        self._open = partial(opened, open_environment)
        self._builder, self._renderer = builder, TurnRenderer(builder)

    @property
    def max_sequences(self) -> int | None:
        bounds = [bound for bound in (self._inner.max_sequences, self._settings.max_concurrent) if bound is not None]
        return min(bounds, default=None)

    async def publish(self, adapter: AdapterHandle) -> Sequence[PublishReport]:
        return await self._inner.publish(adapter)

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        """A group of episodes. One that fails is told by its `failure`; raises what the engines raise."""
        turn = prompt.turn
        if turn is not None and not self._settings.takes(turn.size * sampling.num_generations):
            turn = None  # groups that wait for places would be waited for by those that have them
        prompt = replace(prompt, turn=turn, affinity=f"{prompt.prompt_id}/{next(_NUMBERS)}")
        await self._places.take(sampling.num_generations)
        episodes: list[Episode] = []
        try:
            episodes += [self._new_episode(prompt, sampling) for _ in range(sampling.num_generations)]
            await gather_or_cancel(self._begin(episode) for episode in episodes)
            firsts = await self._first_turns(prompt, sampling, episodes)
            if self._lockstep is not None and prompt.turn is not None:
                await self._play_together(self._lockstep, prompt.turn, episodes, firsts, prompt, sampling)
            else:
                await gather_or_cancel(
                    self._play(index, episode, first, prompt, sampling)
                    for index, (episode, first) in enumerate(zip(episodes, firsts, strict=True))
                )
        finally:
            if self._lockstep is not None and prompt.turn is not None:
                self._lockstep.leave(prompt.turn)
            await gather_or_cancel(self._close(episode) for episode in episodes)
            self._places.give_back(0 if episodes else sampling.num_generations)  # where none could be made
        return [episode.completion() for episode in episodes]

    async def _begin(self, episode: Episode) -> None:
        await episode.begin()
        await self._after(episode)

    async def _hear(self, episode: Episode, said: Completion) -> None:
        await episode.hear(said)
        await self._after(episode)

    async def _after(self, episode: Episode) -> None:
        """One whose environment was lost begins again; one that is over needs its environment no longer."""
        while episode.lost and episode.tries < MAX_TRIES:
            await episode.begin_again(self._open())
        if episode.over:
            await self._close(episode)

    async def _close(self, episode: Episode) -> None:
        """Its environment, once; its place is free then."""
        if not episode.closed:
            try:
                await episode.close()
            finally:
                self._places.give_back()

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
            await self._hear(episode, first)
            first = None

    async def _play_together(
        self,
        lockstep: Lockstep,
        first_turn: Turn,
        episodes: Sequence[Episode],
        firsts: Sequence[Completion | None],
        prompt: Prompt,
        sampling: SamplingParams,
    ) -> None:
        """As `_play`, turn by turn with the groups that began with this one. Where environments show something at first
        there is no common first turn: that is the round of number 0."""
        under_way = [index for index, episode in enumerate(episodes) if not episode.over]
        going_on = [index for index in under_way if firsts[index] is None]
        heard = [(episodes[index], first) for index in under_way if (first := firsts[index]) is not None]
        await gather_or_cancel(self._hear(episode, first) for episode, first in heard)
        for number in count():
            places = await lockstep.places(first_turn, number, len(going_on))
            await gather_or_cancel(
                self._hear_next(index, episodes[index], prompt, sampling, place)
                for index, place in zip(going_on, places, strict=True)
            )
            going_on = [index for index, episode in enumerate(episodes) if not episode.over]
            if not going_on:
                return

    async def _hear_next(
        self, index: int, episode: Episode, prompt: Prompt, sampling: SamplingParams, turn: Turn
    ) -> None:
        await self._hear(episode, await self._turn(index, episode, prompt, sampling, turn=turn))

    async def _turn(
        self,
        index: int,
        episode: Episode,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        turn: Turn | None = None,
    ) -> Completion:
        asked = replace(
            prompt, token_ids=episode.context, seed=turn_seed(prompt.seed, index, len(episode.turns)), turn=turn
        )
        one = replace(sampling, num_generations=1, max_completion_length=episode.room)
        (completion,) = await self._inner.generate(asked, one)
        return completion


class ByPart:
    """Draws for a mixture: episodes for those of its tasks that are played, else single answers.

    Nothing begins together here: first turns are drawn once an environment has shown what it shows, single answers at
    once.
    """

    def __init__(self, inner: Generator, played: Mapping[str, EpisodeGenerator], part_of: Mapping[str, str]) -> None:
        self._inner, self._played, self._part_of = inner, played, part_of

    @property
    def max_sequences(self) -> int | None:
        bounds = (one.max_sequences for one in (self._inner, *self._played.values()))
        return min((bound for bound in bounds if bound is not None), default=None)

    async def publish(self, adapter: AdapterHandle) -> Sequence[PublishReport]:
        return await self._inner.publish(adapter)

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        drawing = self._played.get(self._part_of[prompt.prompt_id], self._inner)
        return await drawing.generate(replace(prompt, turn=None), sampling)


class Places:
    """For so many environments at once. A group takes its own together, since its first turn is one call."""

    def __init__(self, limit: int | None) -> None:
        self._free = None if limit is None else asyncio.Semaphore(limit)
        self._taking = asyncio.Lock()

    async def take(self, number: int) -> None:
        """Wait for so many, first come first served."""
        taken = 0
        if self._free is None:
            return
        try:
            async with self._taking:
                while taken < number:
                    await self._free.acquire()
                    taken += 1
        except BaseException:
            for _ in range(taken):
                self._free.release()
            raise

    def give_back(self, number: int = 1) -> None:
        """So many of them."""
        if self._free is not None:
            for _ in range(number):
                self._free.release()


def turn_seed(seed: int | None, episode: int, turn: int) -> int | None:
    """Of one turn of one of a group's episodes, by the group's own: 62 bits."""
    if seed is None:
        return None
    return int.from_bytes(hashlib.sha256(f"turn/{seed}/{episode}/{turn}".encode()).digest()[:8], "big") >> 2
