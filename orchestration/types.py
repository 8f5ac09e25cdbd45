"""What orchestration's folders hand to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollout_server.types import Prompt

Message = Mapping[str, str]
"""A turn of a conversation: `role` and `content`. Beside system, user and assistant there are two roles that
`PromptBuilder` writes in the model's own way: `tool`, what one said, and `call`, the assistant's call of a tool, whose
content is `{"name": …, "arguments": {…}}`."""


ROLES = ("system", "developer", "user", "assistant", "tool", "call")


def is_message(value: Any) -> bool:
    """Whether it has one of `ROLES` and a text as its content."""
    return isinstance(value, Mapping) and value.get("role") in ROLES and isinstance(value.get("content"), str)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One task item: what is asked, and what a verifier needs to check an answer.

    Raises:
        TypeError: A field is of another kind than it says here.
    """

    problem_id: str
    question: str | Sequence[Message]
    """A text, or the turns of a conversation that the model continues."""
    reference: Mapping[str, Any]
    """What the rewards read, by key: `final_answer`, `tests`, `schema`, `choices` … It goes to the service as it is."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Anything else a reward of one's own may look at; goes to the service too. Reports know `difficulty`."""
    solution: str = ""
    """A worked solution as the model should write it; used as few-shot example and for supervised warm starts."""
    category: str = ""
    """Difficulty or kind, for reports and for advantages scaled by category."""
    part: str = ""
    """Of a mixture: which of its tasks it comes from."""

    def __post_init__(self) -> None:
        if not isinstance(self.problem_id, str):
            raise TypeError(f"the problem_id {self.problem_id!r:.100} is not a text: write str(…)")
        if not isinstance(self.reference, Mapping) or not isinstance(self.metadata, Mapping):
            raise TypeError(f"the problem {self.problem_id!r:.100}: reference and metadata are to be dictionaries")
        if isinstance(self.question, str):
            return
        if not isinstance(self.question, Sequence) or not self.question:
            raise TypeError(
                f"the problem {self.problem_id!r:.100}: the question {self.question!r:.100} is neither a text nor a "
                f"list of messages"
            )
        if wrong := [message for message in self.question if not is_message(message)]:
            raise TypeError(
                f"the problem {self.problem_id!r:.100} has a message without role ({', '.join(ROLES)}) and content: "
                f"{wrong[0]!r:.100}"
            )

    @property
    def text(self) -> str:
        """The question as one text; of a conversation the contents of its turns."""
        if isinstance(self.question, str):
            return self.question
        return "\n".join(message["content"] for message in self.question)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltPrompt:
    """A problem with its prompt, ready to be sampled from."""

    problem: Problem
    prompt: Prompt
    text: str
    """The prompt as text, few-shot examples and chat template included; the reward service is shown it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumState:
    """Where an order of problems stands."""

    drawn: dict[str, int] = field(default_factory=dict)
    """Problems given out, by lane."""
    positions: dict[str, int] = field(default_factory=dict)
    """Problems drawn, those passed over included, by lane."""
    rates: dict[str, tuple[float, int]] = field(default_factory=dict)
    """By problem: its pass rate, and how often in a row all (above 0) or none (below 0) of its answers were right."""
