"""Problems as token ids: instruction, worked examples and question through the model's chat template.

Everything before the question is one header, tokenised once: all prompts of a run begin with the same token ids, which
the sampler's prefix cache and the learner's prefix tree share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from orchestration.data.problems import ANSWER_PREFIX
from orchestration.errors import DataError
from orchestration.types import BuiltPrompt, Problem
from rollout_server.types import Prompt

PromptStyle = Literal["auto", "chat", "plain"]
"""chat: examples are turns of the conversation (small models follow these far better than examples within one message);
plain: no template; auto: chat if the tokenizer has a template, else plain."""

INSTRUCTION = f"Solve the problem. End with {ANSWER_PREFIX}N."
PLAIN_STOP = "\n\n"
_MARKER = "\u2063QUESTION\u2063"
_ANSWER_MARKER = "\u2063ANSWER\u2063"


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """What became of a set of problems."""

    prompts: tuple[BuiltPrompt, ...]
    skipped: tuple[str, ...]
    """Ids of the problems whose prompts were too long."""


class PromptBuilder:
    """Builds prompts with one shared header."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        shots: Sequence[Problem] = (),
        max_prompt_tokens: int | None = None,
        *,
        style: PromptStyle = "auto",
        instruction: str = INSTRUCTION,
    ) -> None:
        """Render and tokenise the header.

        Args:
            tokenizer: of the model that is prompted.
            shots: worked examples, shown in this order.
            max_prompt_tokens: longest prompt allowed; None allows all.
            style: how examples and question are laid out.
            instruction: the system message, or the first line of a plain prompt; may be empty.

        Raises:
            DataError: the header alone is too long, or the chat template loses the question.
        """
        if style == "auto":
            style = "chat" if tokenizer.chat_template else "plain"
        self._tokenizer = tokenizer
        self._style: PromptStyle = style
        self._max_prompt_tokens = max_prompt_tokens
        # A word and the space before it are one token, so the space belongs to the question's side.
        self._lead = " " if style == "plain" else ""
        self._header, self._trailer = self._render(shots, instruction)
        self._header_ids = tuple(tokenizer.encode(self._header, add_special_tokens=style == "plain"))
        if max_prompt_tokens is not None and len(self._header_ids) >= max_prompt_tokens:
            raise DataError(
                f"instruction and {len(shots)} examples take {len(self._header_ids)} tokens, and a prompt may have "
                f"{max_prompt_tokens}; lower data.num_shots or raise rollout.max_model_len"
            )

    @property
    def header_token_ids(self) -> tuple[int, ...]:
        """The tokens every prompt begins with."""
        return self._header_ids

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a completion: a blank line in a plain prompt, where the next example would begin."""
        return (PLAIN_STOP,) if self._style == "plain" else ()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The token that ends an assistant's turn in the chat template; base models often do not stop at it unasked."""
        if self._style == "plain":
            return ()
        turn = [{"role": "user", "content": _MARKER}, {"role": "assistant", "content": _ANSWER_MARKER}]
        text = self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=False)
        after = self._tokenizer.encode(text.partition(_ANSWER_MARKER)[2].strip(), add_special_tokens=False)
        return tuple(after) if len(after) == 1 else ()

    def build(self, problem: Problem) -> BuiltPrompt | None:
        """The problem's prompt, or None when it is longer than allowed."""
        tail = self._lead + problem.question.strip() + self._trailer
        token_ids = (*self._header_ids, *self._tokenizer.encode(tail, add_special_tokens=False))
        if self._max_prompt_tokens is not None and len(token_ids) > self._max_prompt_tokens:
            return None
        prompt = Prompt(prompt_id=problem.problem_id, token_ids=token_ids)
        return BuiltPrompt(problem=problem, prompt=prompt, text=self._header + tail)

    def build_all(self, problems: Iterable[Problem]) -> PromptSet:
        """The prompts of all problems that fit, and the ids of those that do not.

        Raises:
            DataError: none fits.
        """
        built, skipped = [], []
        for problem in problems:
            prompt = self.build(problem)
            if prompt is None:
                skipped.append(problem.problem_id)
            else:
                built.append(prompt)
        if skipped and not built:
            raise DataError(
                f"all {len(skipped)} prompts are longer than {self._max_prompt_tokens} tokens; lower data.num_shots or "
                f"raise rollout.max_model_len"
            )
        return PromptSet(prompts=tuple(built), skipped=tuple(skipped))

    def _render(self, shots: Sequence[Problem], instruction: str) -> tuple[str, str]:
        """Text before and after the question."""
        if self._style == "plain":
            return _plain_header(shots, instruction), "\nAnswer:\n"
        messages = [{"role": "system", "content": instruction}] if instruction else []
        for shot in shots:
            messages.append({"role": "user", "content": shot.question.strip()})
            messages.append({"role": "assistant", "content": shot.solution})
        messages.append({"role": "user", "content": _MARKER})
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        header, marker, trailer = text.partition(_MARKER)
        if not marker:
            raise DataError(
                "the tokenizer's chat template drops the user's message; use a model with a working template"
            )
        return header, trailer


def _plain_header(shots: Sequence[Problem], instruction: str) -> str:
    parts = [instruction] if instruction else []
    parts += [f"Question: {shot.question.strip()}\nAnswer:\n{shot.solution}" for shot in shots]
    return "\n\n".join((*parts, "Question:"))
