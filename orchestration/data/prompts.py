"""Problems as token ids: instruction, worked examples and question through the model's chat template.

Everything before the question is one header, tokenised once: all prompts of a run begin with the same token ids, which
the sampler's prefix cache and the learner's prefix tree share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from orchestration.control_tokens import as_letters, not_the_models
from orchestration.data.task import PromptLayout, PromptStyle
from orchestration.environments.tools.calls import OPENING, describe, write_call
from orchestration.environments.tools.tool import Schema
from orchestration.errors import DataError, one_line
from orchestration.types import BuiltPrompt, Message, Problem
from rollout_server.arrays import TokenIds
from rollout_server.types import Prompt

PLAIN_STOP = "\n\n"
_MARKER = "\u2063QUESTION\u2063"
_ANSWER_MARKER = "\u2063ANSWER\u2063"
_ANCHORS = ("a", "1", ".")
"""Texts behind which another is encoded; one of them makes no token together with its beginning."""


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def get_vocab(self) -> dict[str, int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool, **options: Any
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
        layout: PromptLayout,
        tools: Sequence[Schema] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Render and tokenise the header.

        Args:
            tokenizer: of the model that is prompted.
            shots: worked examples, shown in this order.
            max_prompt_tokens: longest prompt allowed; None allows all.
            layout: how instruction, examples and question are put.
            tools: what the model may call: shown by its template where that can, else told of in the instruction.
            template_kwargs: what the chat template is given besides.

        Raises:
            DataError: the header alone is too long, or the chat template loses the question, or is not there.
        """
        style = layout.style
        if style == "auto":
            style = "chat" if tokenizer.chat_template else "plain"
        if style == "chat" and not tokenizer.chat_template:
            raise DataError("the model's tokenizer has no chat template: data.style=plain or auto goes without")
        self._tokenizer, self._layout = tokenizer, layout
        self.as_letters = as_letters(tokenizer)
        """Writes what is no control token, whatever it spells."""
        self._style: PromptStyle = style
        self.max_prompt_tokens = max_prompt_tokens
        self._tools, self._template_kwargs = list(tools), dict(template_kwargs or {})
        self._folds_system = style == "chat" and self._loses_system()
        self.template_takes_tools = self._takes_tools()
        # A word and the space before it are one token, so the space belongs to the question's side.
        self._lead = " " if style == "plain" else ""
        instruction = layout.instruction
        if tools and not self.template_takes_tools:
            instruction = "\n".join(filter(None, (instruction, describe(tools))))
        self._instruction = instruction
        self._messages = self.as_turns(turns(shots, instruction))
        self._header, self._trailer = self._render(shots)
        self._header_ids = self._encoded(self._header)
        self._pieces_join = self._is_split_cleanly()
        if max_prompt_tokens is not None and len(self._header_ids) >= max_prompt_tokens:
            raise DataError(
                f"instruction and {len(shots)} examples take {len(self._header_ids)} tokens, and a prompt may have "
                f"{max_prompt_tokens}; lower data.num_shots or raise rollout.max_model_len"
            )

    def of(self, part: str) -> PromptBuilder:
        """What builds the prompts of problems with that `part`."""
        return self

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._tokenizer

    @property
    def layout(self) -> PromptLayout:
        """How instruction, examples and question are put."""
        return self._layout

    @property
    def style(self) -> PromptStyle:
        """chat or plain."""
        return self._style

    @property
    def header_token_ids(self) -> tuple[int, ...]:
        """The tokens every prompt begins with."""
        return self._header_ids

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a completion: a blank line in a plain prompt, where the next example would begin, unless the
        task's layout names others."""
        if self._layout.stop is not None:
            return self._layout.stop
        return (PLAIN_STOP,) if self._style == "plain" else ()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The token that ends an assistant's turn in the chat template; base models often do not stop at it unasked."""
        if self._style == "plain":
            return ()
        turn = [{"role": "user", "content": _MARKER}, {"role": "assistant", "content": _ANSWER_MARKER}]
        text = self._templated(turn, add_generation_prompt=False)
        after = self._tokenizer.encode(text.partition(_ANSWER_MARKER)[2].strip(), add_special_tokens=False)
        return tuple(after) if len(after) == 1 else ()

    def build(self, problem: Problem) -> BuiltPrompt | None:
        """A problem's prompt, header and examples included.

        Returns:
            None when it is longer than allowed.

        Raises:
            DataError: The model's chat template refuses the conversation.
        """
        plain = self._style == "plain"
        if isinstance(problem.question, str) or plain:
            asked = problem.text.strip()
            text = self._header + self._lead + (asked if plain else self.as_letters(asked)) + self._trailer
        else:
            text = self.rendered(self.messages(problem))
        token_ids = self._whole(text)
        if not self.fits(token_ids):
            return None
        prompt = Prompt(prompt_id=problem.problem_id, token_ids=token_ids)
        return BuiltPrompt(problem=problem, prompt=prompt, text=text)

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """The conversation that a problem's prompt is, instruction and examples included. A question that begins with a
        system message has that in place of the instruction.
        """
        if isinstance(problem.question, str):
            return [*self._messages, {"role": "user", "content": problem.text.strip()}]
        turns = self.as_turns(problem.question)
        if turns[0]["role"] != "system":
            return [*self._messages, *turns]
        shots = (turn for turn in self._messages if turn["role"] != "system")
        return [self.as_conversation(turns[:1])[0], *shots, *turns[1:]]

    def as_conversation(self, messages: Iterable[Message]) -> list[dict[str, str]]:
        """Messages that stand for themselves, without this task's instruction and examples; of tools it is told in the
        first of them where the template shows none."""
        told = self.as_turns(messages)
        if not self._tools or self.template_takes_tools:
            return told
        has_system = bool(told) and told[0]["role"] == "system"
        first = told.pop(0)["content"] if has_system else ""
        return [{"role": "system", "content": "\n".join(filter(None, (first, describe(self._tools))))}, *told]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> TokenIds:
        """A conversation that the model goes on with, in tokens; it begins with the header's where it has that."""
        return self._whole(self.rendered(messages))

    def encode_behind(self, text: str) -> tuple[int, ...]:
        """The tokens of a text that stands behind others, as `_is_split_cleanly` says."""
        for anchor in () if self._pieces_join else _ANCHORS:
            before, both = (self._tokenizer.encode(part, add_special_tokens=False) for part in (anchor, anchor + text))
            if both[: len(before)] == before:
                return tuple(both[len(before) :])
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _whole(self, text: str) -> TokenIds:
        """A prompt's tokens. They begin with the header's where the text does, which then is not encoded again."""
        if not (self._pieces_join and text.startswith(self._header)):
            return TokenIds(self._encoded(text))
        tail = self._tokenizer.encode(text[len(self._header) :], add_special_tokens=False)
        return TokenIds((*self._header_ids, *tail))

    def _encoded(self, text: str) -> tuple[int, ...]:
        bare = tuple(self._tokenizer.encode(text, add_special_tokens=False))
        if self._style == "chat":
            return bare
        # Without what a tokenizer puts behind a text: behind its end no model goes on.
        whole = tuple(self._tokenizer.encode(text))
        starts = range(len(whole) - len(bare) + 1)
        return next((whole[: at + len(bare)] for at in starts if whole[at : at + len(bare)] == bare), whole)

    def _is_split_cleanly(self) -> bool:
        """Whether header and question give the tokens that both together give. They do not with tokenizers that put a
        blank in front of any text, as those made with SentencePiece (Llama 2, Mistral, Phi-3) do: there a prompt is
        encoded whole, and its header is what two of them begin with."""
        tails = [f"{self._lead}{word}{self._trailer}" for word in ("1", "A")]
        whole = [self._encoded(self._header + tail) for tail in tails]
        pieces = [(*self._header_ids, *self._tokenizer.encode(tail, add_special_tokens=False)) for tail in tails]
        if whole == pieces:
            return True
        alike = [one == other for one, other in zip(*whole, strict=False)]
        self._header_ids = whole[0][: [*alike, False].index(False)]
        return False

    def rendered(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation that the model goes on with, as its chat template has it."""
        tools: dict[str, Any] = {"tools": self._tools} if self._tools and self.template_takes_tools else {}
        return self._templated(_folded(messages) if self._folds_system else list(messages), **tools)

    def _templated(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = True, **options: Any) -> str:
        from jinja2.exceptions import TemplateError  # comes with transformers

        ours = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
        try:
            told = not_the_models(messages, self.as_letters)
            return self._tokenizer.apply_chat_template(told, **{**self._template_kwargs, **options, **ours})
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"the model's chat template refuses a conversation of {roles}: {one_line(error)}; use a model with a "
                f"template that takes it, or data.style=plain where the task has it"
            ) from error

    def as_turns(self, messages: Iterable[Message]) -> list[dict[str, str]]:
        """Messages in the roles that the template knows: what a tool said is a user's turn where it knows no tools."""
        return [self._as_turn(message) for message in messages]

    def _as_turn(self, message: Message) -> dict[str, str]:
        if message["role"] == "call":
            call = json.loads(message["content"])
            fenced = not self.template_takes_tools
            written = write_call(call["name"], call["arguments"], self._tools, fenced=fenced)
            return {"role": "assistant", "content": written}
        if message["role"] == "tool" and not self.template_takes_tools:
            return {"role": "user", "content": message["content"]}
        return dict(message)

    def _loses_system(self) -> bool:
        """Whether an instruction has to stand in the user's turn: the template refuses a system message, as Gemma's
        does, or drops it while it has to tell of tools."""
        asked = [{"role": "system", "content": _ANSWER_MARKER}, {"role": "user", "content": _MARKER}]
        try:
            text = self._templated(asked)
        except DataError:
            return True
        return bool(self._tools) and _ANSWER_MARKER not in text

    def _takes_tools(self) -> bool:
        """Whether the template shows tools and asks for calls in the form that is read."""
        if not self._tools or self._style == "plain":
            return False
        asked: list[dict[str, str]] = [{"role": "user", "content": _MARKER}]
        return OPENING in self._templated(asked, tools=list(self._tools))

    def fits(self, token_ids: Sequence[int]) -> bool:
        """Whether a prompt is as short as it has to be."""
        return self.max_prompt_tokens is None or len(token_ids) <= self.max_prompt_tokens

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
                f"all {len(skipped)} prompts are longer than {self.max_prompt_tokens} tokens; lower data.num_shots or "
                f"raise rollout.max_model_len"
            )
        return PromptSet(prompts=tuple(built), skipped=tuple(skipped))

    def _render(self, shots: Sequence[Problem]) -> tuple[str, str]:
        """Text before and after the question."""
        if self._style == "plain":
            joint = self._layout.answer_joint.rstrip(" ")  # a space is part of the answer's first token
            said = [replace(shot, question=_question(shot, self.as_turns)) for shot in shots]
            return plain_header(said, self._layout, self._instruction), f"\n{self._layout.answer_label}{joint}"
        messages = [*self._messages, {"role": "user", "content": _MARKER}]
        text = self.rendered(messages)
        header, marker, trailer = text.partition(_MARKER)
        if not marker:
            raise DataError(
                "the tokenizer's chat template drops the user's message; use a model with a working template"
            )
        return header, trailer


class MixedPromptBuilder(PromptBuilder):
    """Builds the prompts of a mixture, each as its own task's builder does; the stops of all hold for each."""

    def __init__(self, builders: Mapping[str, PromptBuilder]) -> None:
        """By the name that stands in `Problem.part`; at least one."""
        self._builders = dict(builders)
        self.max_prompt_tokens = min(
            (builder.max_prompt_tokens for builder in builders.values() if builder.max_prompt_tokens is not None),
            default=None,
        )

    @property
    def header_token_ids(self) -> tuple[int, ...]:
        first, *others = (builder.header_token_ids for builder in self._builders.values())
        same = [len(set(tokens)) == 1 for tokens in zip(first, *others, strict=False)]
        return first[: [*same, False].index(False)]

    @property
    def stop(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stop for builder in self._builders.values() for stop in builder.stop))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(token for one in self._builders.values() for token in one.stop_token_ids))

    def of(self, part: str) -> PromptBuilder:
        return self._builders[part]

    def build(self, problem: Problem) -> BuiltPrompt | None:
        return self._builders[problem.part].build(problem)


def turns(shots: Sequence[Problem], instruction: str) -> list[dict[str, str]]:
    """The conversation before the question."""
    messages = [{"role": "system", "content": instruction}] if instruction else []
    for shot in shots:
        asked = [{"role": "user", "content": shot.question}] if isinstance(shot.question, str) else shot.question
        messages += [{**turn, "content": turn["content"].strip()} for turn in asked]
        messages.append({"role": "assistant", "content": shot.solution})
    return messages


def _folded(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """A leading system message in front of what the user says first."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    system, first, *others = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]


def _question(problem: Problem, as_turns: Callable[[Iterable[Message]], list[dict[str, str]]]) -> str | list[Message]:
    return problem.question if isinstance(problem.question, str) else list(as_turns(problem.question))


def _exchanges(shot: Problem) -> list[tuple[str, str]]:
    """What is asked and said in an example, once for each turn of the assistant's; the last says the solution."""
    found, asked = list[tuple[str, str]](), list[str]()
    for turn in [] if isinstance(shot.question, str) else shot.question:
        if turn["role"] == "assistant":
            found.append(("\n".join(asked), turn["content"]))
            asked = []
        else:
            asked.append(turn["content"].strip())
    return [*found, ("\n".join(asked) or shot.text.strip(), shot.solution)]


def plain_header(shots: Sequence[Problem], layout: PromptLayout, instruction: str) -> str:
    """What a plain prompt has in front of its question."""
    parts = [instruction] if instruction else []
    question, answer = layout.question_label, f"{layout.answer_label}{layout.answer_joint}"
    for shot in shots:
        parts += [f"{question} {asked}\n{answer}{said}" for asked, said in _exchanges(shot)]
    return "\n\n".join((*parts, question))
