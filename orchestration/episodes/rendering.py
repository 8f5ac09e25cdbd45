"""What stands between two turns of the model, in its own tokens, by its own chat template.

What was sampled is never decoded and encoded again: only what follows it is rendered and encoded, and put behind the
tokens as they were sampled.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from orchestration.data.prompts import PromptBuilder
from orchestration.environments.environment import Observation, as_messages, as_text
from orchestration.types import Message
from rollout_server.arrays import TokenIds

_MARKER = f"\u2063{secrets.token_hex(8)}\u2063"
"""Nobody can say it, to be taken for the end of the model's turn."""

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What follows a turn."""

    token_ids: tuple[int, ...]
    rewrites_history: bool
    """The template puts what came before otherwise once more follows, as those do that drop earlier reasoning. The
    tokens are as they were sampled all the same."""


class TurnRenderer:
    """Renders observations for one model.

    Args:
        builder: of the run's prompts.
    """

    def __init__(self, builder: PromptBuilder) -> None:
        self._builder = builder

    def decode(self, token_ids: Sequence[int]) -> str:
        """Tokens as text, special ones included."""
        return self._builder.tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def prompt(self, history: Messages) -> TokenIds:
        """A conversation that the model goes on with."""
        return self._builder.encode_chat(self._builder.as_turns(history))

    def conversation(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """A conversation of somebody else's, as the model is shown it."""
        return self._builder.as_conversation(messages)

    def fits(self, token_ids: Sequence[int]) -> bool:
        """Whether a prompt leaves room for a completion."""
        return self._builder.fits(token_ids)

    def is_endless(self, observation: Observation, num_tokens: int | None = None) -> bool:
        """Whether it has more characters than so many tokens can say (None: than a prompt may have). Encoded, a few
        megabytes of them would hold all other episodes for seconds.
        """
        most = self._builder.max_prompt_tokens if num_tokens is None else num_tokens
        return most is not None and len(as_text(observation)) > most * self._longest_token

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._builder.tokenizer.get_vocab()))

    def between(self, history: Messages, said: str, last_token_id: int, observation: Observation) -> Given:
        """What stands between a turn and the next.

        Args:
            history: The conversation before the turn.
            said: The turn's text.
            last_token_id: Its last sampled token: an end of turn that was sampled is not given again.
            observation: What the environment answers.
        """
        if self._builder.style == "plain":
            return Given(token_ids=self._builder.encode_behind(self._plain(said, observation)), rewrites_history=False)
        token_ids = self._builder.encode_behind(self._after_marker([*history, _assistant(_MARKER)], observation))
        if token_ids[:1] == (last_token_id,):
            token_ids = token_ids[1:]
        before = self._rendered(history)
        after = self._rendered([*history, _assistant(said), *self._messages(observation)])
        kept = _squeezed(after).startswith(_squeezed(before + said))
        return Given(token_ids=token_ids, rewrites_history=not kept)

    def _after_marker(self, marked: Messages, observation: Observation) -> str:
        return self._rendered([*marked, *self._messages(observation)]).partition(_MARKER)[2]

    def _messages(self, observation: Observation) -> list[dict[str, str]]:
        return self._builder.as_turns(as_messages(observation))

    def _rendered(self, messages: Messages) -> str:
        return self._builder.rendered(messages)

    def _plain(self, said: str, observation: Observation) -> str:
        layout = self._builder.layout
        gap = "" if said.endswith("\n\n") else "\n\n"
        answered = self._builder.as_letters(as_text(observation).strip())
        return f"{gap}{layout.question_label} {answered}\n{layout.answer_label}\n"


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _squeezed(text: str) -> str:
    """Templates strip what is said: blanks are no part of the comparison."""
    return "".join(text.split())
