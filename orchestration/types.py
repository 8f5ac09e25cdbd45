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


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One task item: what is asked, and what a verifier needs to check an answer."""

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
