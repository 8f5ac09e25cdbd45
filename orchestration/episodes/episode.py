"""One episode: its environment, its tokens so far, and how it ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field, fields, replace
from typing import Protocol, TypeVar, runtime_checkable

from orchestration.concurrency import within
from orchestration.environments.asking import begun, stepped, whole
from orchestration.environments.environment import (
    Conversation,
    Environment,
    Observation,
    as_messages,
    as_text,
    shown_after,
)
from orchestration.episodes.rendering import TurnRenderer
from orchestration.errors import DataError, EnvironmentLostError, WorkerDiedError, one_line
from orchestration.settings.episodes import EpisodeConfig
from orchestration.types import Problem
from rollout_server.arrays import Logprobs, TokenIds
from rollout_server.types import Completion, EpisodeTurn, FinishReason, Fork, checksum_of

Result = TypeVar("Result")

_CLOSE_S = 10.0


class EpisodeFailedError(Exception):
    """The environment failed, and with it the episode: nobody else's trouble."""


@runtime_checkable
class Prepared(Protocol):
    """An environment that lives elsewhere."""

    async def ready(self) -> None:
        """Returns when what holds it is there: no part of the time that it may take for an answer."""
        ...


@dataclass(slots=True)
class Episode:
    """One under way. `begin`, then `hear` what the engine gave for each turn until it says that the episode is over,
    then `close`; whatever happened, `completion` is what it came to."""

    problem: Problem
    environment: Environment
    renderer: TurnRenderer
    settings: EpisodeConfig
    history: list[dict[str, str]]
    prompt_token_ids: TokenIds
    max_length: int
    """Of its tokens behind the prompt."""
    own_prompt: bool = False
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[EpisodeTurn] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    failure: str | None = None
    lost: bool = False
    """Its environment's state is gone, and nothing else is wrong: it can begin again."""
    tries: int = 1
    closed: bool = False
    began: float = field(default_factory=time.monotonic)
    _computed: TokenIds = field(default_factory=TokenIds)
    """Tokens whose keys and values the last turn's engine has computed."""
    _at_first: tuple[list[dict[str, str]], TokenIds] = field(init=False)

    def __post_init__(self) -> None:
        self._at_first = list(self.history), self.prompt_token_ids

    async def begin(self) -> None:
        """Reset the environment; what it shows becomes part of this episode's prompt."""
        try:
            if isinstance(self.environment, Prepared):
                await self._told("begin", self.environment.ready())
            shown = await self._asked("reset", begun(self.environment, self.problem))
            if shown is not None:
                self._show(shown)
        except (EpisodeFailedError, DataError) as error:  # the latter: its messages are none that the template takes
            self._fail(error)

    async def begin_again(self, environment: Environment) -> None:
        """From its start, in another environment; what was said so far is forgotten."""
        await self.close()
        told, prompt_token_ids = self._at_first
        fresh = Episode(
            problem=self.problem,
            environment=environment,
            renderer=self.renderer,
            settings=self.settings,
            history=told,
            prompt_token_ids=prompt_token_ids,
            max_length=self.max_length,
            tries=self.tries + 1,
        )
        for one in fields(self):
            setattr(self, one.name, getattr(fresh, one.name))
        await self.begin()

    def _show(self, observation: Observation) -> None:
        if self.renderer.is_endless(observation):
            raise EpisodeFailedError(
                f"its environment began with {len(as_text(observation))} characters, too many to read"
            )
        if isinstance(observation, Conversation):
            self.history = self.renderer.conversation(observation.messages)
        else:
            self.history = shown_after(self.history, observation)
        self.prompt_token_ids, self.own_prompt = self.renderer.prompt(self.history), True
        if not self.renderer.fits(self.prompt_token_ids):
            raise EpisodeFailedError(
                f"its environment began with {len(self.prompt_token_ids)} tokens, which leave no room for an answer in "
                f"rollout.max_model_len"
            )

    @property
    def over(self) -> bool:
        return self.finish_reason is not None

    @property
    def context(self) -> TokenIds:
        """What the next turn goes on from."""
        if self.forks:
            return self.forks[-1].prompt_token_ids + TokenIds(self.token_ids[self.forks[-1].start :])
        return self.prompt_token_ids + TokenIds(self.token_ids)

    @property
    def _longest(self) -> int:
        """Tokens that its context may have. A history that is rewritten shorter leaves more room."""
        return len(self.prompt_token_ids) + self.max_length

    @property
    def room(self) -> int:
        """Tokens that the next turn may have."""
        left = self._longest - len(self.context)
        return left if self.settings.max_turn_length is None else min(left, self.settings.max_turn_length)

    async def hear(self, sampled: Completion) -> None:
        """Take a turn from the engine, and have the environment answer it."""
        start, context = len(self.token_ids), self.context
        self.token_ids += sampled.token_ids
        self.logprobs += sampled.sampling_logprobs
        turn = EpisodeTurn(
            start=start,
            stop=len(self.token_ids),
            text=sampled.text,
            finish_reason=sampled.finish_reason,
            adapter_version=sampled.adapter_version,
            checksum=checksum_of(sampled.token_ids),
            num_cached=sampled.num_cached_tokens,
            num_cacheable=self._cacheable(context, sampled),
        )
        self._computed = (context + sampled.token_ids)[:-1]  # the last token was not put in
        self.turns.append(turn)
        try:
            await self._answer(turn)
        except (EpisodeFailedError, DataError) as error:  # the latter: its messages are none that the template takes
            self._fail(error)

    def _cacheable(self, context: TokenIds, sampled: Completion) -> int:
        """Tokens that an engine which forgets nothing has of a turn's context, from the turn before."""
        if not self.turns or self.turns[-1].adapter_version != sampled.adapter_version:
            return 0
        same = min(_num_alike(self._computed, context), len(context) - 1)  # one has to be computed
        return same // sampled.cache_block * sampled.cache_block

    async def _answer(self, turn: EpisodeTurn) -> None:
        step = await self._asked("step", stepped(self.environment, turn.text))
        self.turns[-1] = turn = replace(turn, reward=step.reward)
        if step.done:
            self.finish_reason = FinishReason.STOP
        elif len(self.turns) >= self.settings.max_turns:
            self.finish_reason = FinishReason.TURNS
        elif time.monotonic() - self.began > self.settings.timeout_s:
            self.finish_reason = FinishReason.TIME
        else:
            self._give(turn, step.observation)

    def _give(self, turn: EpisodeTurn, observation: Observation) -> None:
        """Put what the environment answered behind what was sampled, if there is room for it and another turn."""
        if self.renderer.is_endless(observation, self._longest - len(self.context)):
            self.finish_reason = FinishReason.LENGTH
            return
        if isinstance(observation, Conversation):
            given: tuple[int, ...] = ()
            history, rewrites = self.renderer.conversation(observation.messages), True
        else:
            between = self.renderer.between(self.history, turn.text, self.token_ids[-1], observation)
            given, rewrites = between.token_ids, between.rewrites_history
            history = [*self.history, {"role": "assistant", "content": turn.text}, *as_messages(observation)]
        rewritten = self.renderer.prompt(history) if rewrites else None
        length = len(self.context) + len(given) if rewritten is None else len(rewritten)
        if length >= self._longest:
            self.finish_reason = FinishReason.LENGTH
            return
        if rewritten is None:
            self.token_ids += given
            self.logprobs += [0.0] * len(given)
        else:
            self.forks.append(Fork(start=len(self.token_ids), prompt_token_ids=rewritten))
        self.turns[-1] = replace(turn, observation=as_text(observation))
        self.history = history

    async def _asked(self, what: str, answer: Awaitable[Result]) -> Result:
        """What the environment says; whatever goes wrong there is this episode's failure."""
        limit_s = self.settings.step_timeout_s
        try:
            return await self._told(what, within(limit_s, answer))
        except TimeoutError as error:
            raise EpisodeFailedError(
                f"its environment did not answer {what} within episodes.step_timeout_s={limit_s:g} s"
            ) from error

    async def _told(self, what: str, answer: Awaitable[Result]) -> Result:
        try:
            return await answer
        except EnvironmentLostError as error:
            self.lost = True
            raise EpisodeFailedError(str(error)) from error
        except (TimeoutError, WorkerDiedError):  # who holds environments died too often: that is the run's failure
            raise
        except Exception as error:
            raise EpisodeFailedError(f"{what} of its environment: {type(error).__name__}: {error}") from error

    def _fail(self, error: Exception) -> None:
        self.failure, self.finish_reason = whole(one_line(error)), FinishReason.FAILED

    async def close(self) -> None:
        """Close the environment; never raises."""
        self.closed = True
        with contextlib.suppress(Exception):
            await within(_CLOSE_S, self.environment.close())

    def completion(self) -> Completion:
        """The episode as what the learner takes."""
        assert self.finish_reason is not None, "it is under way"
        return Completion(
            prompt_id=self.problem.problem_id,
            token_ids=TokenIds(self.token_ids),
            sampling_logprobs=Logprobs(self.logprobs),
            text=self.renderer.decode(self.token_ids),
            finish_reason=self.finish_reason,
            adapter_version=min((turn.adapter_version for turn in self.turns), default=0),
            turns=tuple(self.turns),
            own_prompt_token_ids=self.prompt_token_ids if self.own_prompt else None,
            failure=self.failure,
            forks=tuple(self.forks),
        )


def _num_alike(one: TokenIds, other: TokenIds) -> int:
    """How many tokens both begin with."""
    if other[: len(one)] == one:
        return len(one)
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
