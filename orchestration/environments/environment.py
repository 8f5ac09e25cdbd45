"""What an environment is: something that answers what a model says, until it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from orchestration.types import Message, Problem
from reward_service.types import ItemResult, RewardItem, RewardSpec


@dataclass(frozen=True, slots=True)
class Conversation:
    """All of a conversation as it stands, in place of what came before: of an environment that keeps it by itself."""

    messages: tuple[Message, ...]


Observation = str | Sequence[Message] | Conversation
"""What the model is shown: the text of a user's turn, turns with their roles (`user`, `tool`), or all turns anew."""


class Step(NamedTuple):
    """What came of one action."""

    observation: Observation = ""
    """Not shown to anybody where `done`."""
    reward: float | None = None
    """Paid for this action; None: nothing was."""
    done: bool = False


@runtime_checkable
class Environment(Protocol):
    """One episode's world; a new one is made for each episode.

    Each call ends within `episodes.step_timeout_s`, or the episode fails. Whatever `reset` or `step` raises is that
    episode's failure alone: it has no reward, and the reason is said.
    """

    async def reset(self, problem: Problem) -> Observation | None:
        """Begin. What is shown beside the problem's question, which is the prompt already; None: nothing."""
        ...

    async def step(self, action: str) -> Step:
        """The answer to what the model said: its turn's text, without the token that ended it."""
        ...

    async def close(self) -> None:
        """Give back what it holds; called once, however the episode ended."""
        ...


class Scoring(Protocol):
    """The run's reward service, as `RewardClient` or what keeps it alive."""

    async def score(self, items: Sequence[RewardItem], rewards: Sequence[RewardSpec]) -> list[ItemResult]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a run has for the environments that ask for it."""

    template_takes_tools: bool = False
    """Whether the chat template shows tools to the model, and asks for calls in Hermes' form."""
    scoring: Scoring | None = None
    max_turns: int | None = None
    """After which an episode ends, whatever its environment says."""


@runtime_checkable
class Enters(Protocol):
    """An environment, or a tool's object, that wants to know where it is. It waits for others and does no work of its
    own, so that it may live beside the loop."""

    def enter(self, surroundings: Surroundings) -> None:
        """Called once, before `reset`."""
        ...


def as_messages(observation: Observation) -> list[dict[str, str]]:
    """An observation as turns of a conversation."""
    if isinstance(observation, str):
        return [{"role": "user", "content": observation}]
    turns = observation.messages if isinstance(observation, Conversation) else observation
    return [dict(message) for message in turns]


def shown_after(history: Sequence[Message], observation: Observation) -> list[dict[str, str]]:
    """A conversation with what an environment showed at its beginning: a text is part of the question's turn, as many
    templates want turns that alternate."""
    turns = [dict(message) for message in history]
    if isinstance(observation, str) and turns and turns[-1]["role"] == "user":
        turns[-1]["content"] = "\n".join(filter(None, (turns[-1]["content"], observation)))
        return turns
    return [*turns, *as_messages(observation)]


def as_text(observation: Observation) -> str:
    """An observation for people: the contents of its turns."""
    if isinstance(observation, str):
        return observation
    return "\n".join(message["content"] for message in as_messages(observation))
