"""What orchestration's folders hand to each other."""

from __future__ import annotations

from dataclasses import dataclass

from rollout_server.types import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One task item: what is asked, and what a verifier needs to check an answer."""

    problem_id: str
    question: str
    final_answer: str
    """The reference, as a number in text form."""
    solution: str = ""
    """A worked solution ending in the answer line; used as few-shot example and for supervised warm starts."""
    category: str = ""
    """Difficulty or kind, for reports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltPrompt:
    """A problem with its prompt, ready to be sampled from."""

    problem: Problem
    prompt: Prompt
    text: str
    """The prompt as text, few-shot examples and chat template included; the reward service is shown it."""
