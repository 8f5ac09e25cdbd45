"""Asks an environment, and looks at what it answers.

Environments are anybody's. What is of a wrong type, a reward that is no number, `sys.exit` are found here, where it is
known who said it, and not in the loop, the tables or the reward service, which would end for all episodes.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from orchestration.environments.environment import Conversation, Environment, Observation, Step
from orchestration.types import Problem

_SURROGATES = re.compile("[\ud800-\udfff]")


class WrongAnswerError(Exception):
    """The environment does not answer as `environment.py` says."""


def opened(make: Callable[[], Environment]) -> Environment:
    """A new environment; one that cannot be made fails when it is reset, which is its own episode's failure."""
    try:
        with _not_leaving():
            return make()
    except Exception as error:
        return _Unmade(error)


class _Unmade:
    def __init__(self, why: Exception) -> None:
        self._why = why

    async def reset(self, problem: Problem) -> None:
        raise self._why

    async def step(self, action: str) -> Step:
        raise self._why

    async def close(self) -> None:
        """There is nothing."""


async def begun(environment: Environment, problem: Problem) -> Observation | None:
    """What `reset` shows. Raises WrongAnswerError, and what the environment raises."""
    with _not_leaving():
        shown: Any = await environment.reset(problem)
    return None if shown is None else _observation(shown, "reset gives an observation or None")


async def stepped(environment: Environment, action: str) -> Step:
    """What `step` gives, its reward as a float. Raises WrongAnswerError, and what the environment raises."""
    with _not_leaving():
        step: Any = await environment.step(action)
    if not isinstance(step, Step):
        raise WrongAnswerError(f"step gives a Step(observation, reward, done), and {_shown(step)}")
    if not hasattr(step.done, "__bool__"):
        raise WrongAnswerError(f"done is true or false, and {_shown(step.done)}")
    done = bool(step.done)
    observation = "" if done else _observation(step.observation, "an observation is a text, messages or a Conversation")
    return Step(observation, _reward(step.reward), done)


def whole(text: str) -> str:
    """Without halves of characters, as programs' output has that was decoded by `surrogateescape`: neither tokenizers
    nor files take them."""
    return _SURROGATES.sub("\ufffd", text)


@contextlib.contextmanager
def _not_leaving() -> Iterator[None]:
    try:
        yield
    except SystemExit as error:  # it would end the event loop that all episodes are on
        raise RuntimeError(f"it called sys.exit({error.code!r})") from error
    except TimeoutError as error:  # its own; ours come as a cancellation
        raise RuntimeError(f"TimeoutError: {error}") from error


def _reward(reward: Any) -> float | None:
    if reward is None:
        return None
    if not hasattr(reward, "__float__") or not math.isfinite(number := float(reward)):
        raise WrongAnswerError(f"a reward is a finite number or None, and {_shown(reward)}")
    return number


def _observation(shown: Any, rule: str) -> Observation:
    if isinstance(shown, str):
        return whole(shown)
    turns = shown.messages if isinstance(shown, Conversation) else shown
    if not isinstance(turns, Sequence) or not all(map(_is_message, turns)):
        raise WrongAnswerError(f"{rule}, messages have a role and a content that are texts, and {_shown(shown)}")
    told = tuple({name: whole(value) if name == "content" else value for name, value in turn.items()} for turn in turns)
    return Conversation(told) if isinstance(shown, Conversation) else told


def _is_message(turn: Any) -> bool:
    return isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _shown(found: Any) -> str:
    return f"there is {found!r:.100} ({type(found).__name__})"
