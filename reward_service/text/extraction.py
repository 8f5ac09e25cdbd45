"""Which text of a completion is its answer, for the rewards that compare more than numbers.

A completion *commits* itself in places that `answer_in` names:

- `line`: what follows the prefix on an answer line (see `reward_service.text.answers`);
- `boxed`: what stands in `\\boxed{...}` or `\\fbox{...}`, braces balanced; of boxes in boxes the outermost; without
  braces (`\\boxed 5`) what stands up to the next blank;
- `auto`: both of these, so a line and a box that disagree are two answers;
- `tags`: what stands between `<tag>` and `</tag>`;
- `whole`: the text from its beginning to its end.

All of these count, wherever they stand: a reward pays only if every one of them is right, so that guessing twice is
worth nothing. A box or a tag that is never closed is an answer too (an unreadable one), as it may be a cut-off second
guess. With `after` (`</think>`, say) only what follows its last occurrence is looked at; without it there, nothing is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from reward_service.text.answers import AnswerPlace, answer_texts

MAX_DISTINCT_ANSWERS: Final = 8
MAX_SHOWN_CHARS: Final = 100

_MAX_KEPT_CHARS: Final = 100_000  # of one answer; longer than anything a reward compares
_MAX_DECORATIONS: Final = 8
_BRACES: Final = re.compile(
    r"\\(?:boxed|fbox|framebox)(?:[ \t\r\n]*(?P<box>\{)|[ \t]*"
    r"(?P<bare>(?=\\[A-Za-z({]|\([-+0-9]|[-+.$]*[0-9]|[A-Zb-hj-z](?![A-Za-z]))))"
    r"|\\.|[{}]",
    re.DOTALL,
)
_FIRST_BOX: Final = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])|\\boxed(?=[A-Z](?![A-Za-z]))")
_BOXED: Final = re.compile(
    r"\\(?:boxed|fbox|framebox)[ \t\r\n]*"
    r"(?:\{(?P<inner>.*)\}|(?![A-Za-z{ ])(?P<bare>\S+)|(?<![a-z])(?P<letter>[A-Za-z]))",
    re.DOTALL,
)
_MAX_BARE_CHARS: Final = 500
_BLANKS: Final = " \t\r\n"
_DECORATIONS: Final = (
    ("**", "**"),
    ("$$", "$$"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("`", "`"),
    ("*", "*"),
    ("\\text{", "}"),
    ("\\mathrm{", "}"),
    ("\\textbf{", "}"),
    ("\\mathbf{", "}"),
    ("\\textit{", "}"),
    ("\\boldsymbol{", "}"),
    ("__", "__"),
)


class AnswerMarks(Protocol):
    """How answers are marked in a completion."""

    @property
    def prefix(self) -> str: ...

    @property
    def tag(self) -> str: ...

    @property
    def after(self) -> str | None: ...


class Answers(NamedTuple):
    """The different answers of a completion; `why` says why there is nothing to compare, and then `texts` is empty."""

    texts: tuple[str, ...]
    why: str | None = None


def read_answers(completion: str, marks: AnswerMarks, place: AnswerPlace, *, bare: bool = True) -> Answers:
    """The different answers of a completion, in their order. Time is linear in the text.

    Args:
        completion: what the model wrote.
        marks: how answers are marked in it.
        place: which of the marks count.
        bare: take decoration off the answers (see `undecorated`).

    Returns:
        The answers; none, with the reason, if there is none or more than MAX_DISTINCT_ANSWERS, which is guessing.
    """
    text = completion
    if marks.after is not None:
        _, marker, text = completion.rpartition(marks.after)
        if not marker:
            return Answers((), f"nothing follows {marks.after!r:.50}")
    texts: dict[str, None] = {}
    for answer in _answers_in(text, marks, place):
        texts[undecorated(answer) if bare else answer] = None
        if len(texts) > MAX_DISTINCT_ANSWERS:
            return Answers((), f"more than {MAX_DISTINCT_ANSWERS} different answers")
    return Answers(tuple(texts)) if texts else Answers((), "no answer")


def _answers_in(text: str, marks: AnswerMarks, place: AnswerPlace) -> Iterator[str]:
    if place == "whole":
        yield text
    if place == "tags":
        yield from _between(text, f"<{marks.tag}>", f"</{marks.tag}>")
    if place in ("line", "auto"):
        for rest in answer_texts(text, marks.prefix):
            yield rest[:_MAX_KEPT_CHARS].strip(_BLANKS)
    if place in ("boxed", "auto"):
        yield from boxed(text)


def boxed(text: str) -> Iterator[str]:
    """What the outermost boxes hold; a box that is never closed comes last, with its opening."""
    if (first := _FIRST_BOX.search(text)) is None:
        return
    openings: list[bool] = []  # one entry for each open brace: whether it opens an outermost box
    box_start: int | None = None
    bare_end = 0
    for brace in _BRACES.finditer(text, first.start()):
        kind = brace.group()
        if brace.start() < bare_end:
            continue
        if brace["box"] is not None and box_start is None:
            openings.append(True)
            box_start = brace.end()
        elif brace["bare"] is not None:
            if box_start is None:
                bare_end = _bare_end(text, brace.end())
                yield text[brace.end() : bare_end].rstrip(".,;:")
        elif brace["box"] is not None or kind == "{":
            openings.append(False)
        elif kind == "}" and openings and openings.pop():
            yield text[box_start : brace.start()][:_MAX_KEPT_CHARS]
            box_start = None
    if box_start is not None:
        yield f"\\boxed{{{text[box_start : box_start + MAX_SHOWN_CHARS]}"


def _bare_end(text: str, start: int) -> int:
    """Where a box without braces ends: at the next blank or dollar outside of braces, or before a brace too many."""
    depth = 0
    for position in range(start, min(len(text), start + _MAX_BARE_CHARS)):
        char = text[position]
        depth += (char == "{") - (char == "}")
        if depth < 0 or (depth == 0 and char in " \t\r\n$" and position > start) or text.startswith("\\)", position):
            return position
    return min(len(text), start + _MAX_BARE_CHARS)


def _between(text: str, opening: str, closing: str) -> Iterator[str]:
    start = text.find(opening)
    while start >= 0:
        end = text.find(closing, start)
        if end < 0:
            yield text[start : start + len(opening) + MAX_SHOWN_CHARS]
            return
        yield text[start + len(opening) : end][:_MAX_KEPT_CHARS]
        start = text.find(opening, end)


def undecorated(text: str) -> str:
    """`text` without blanks, one full stop and markup around it: `**$\\boxed{72}$**.` is 72; `$5$ or $6$` stays."""
    text = text.strip(_BLANKS)
    if len(text) > 1 and text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip(_BLANKS)
    for _ in range(_MAX_DECORATIONS):
        if (box := _BOXED.fullmatch(text)) is not None and _is_one_piece(box["inner"] or "", "", "}"):
            text = (box["inner"] or box["bare"] or box["letter"] or "").strip(_BLANKS)
            continue
        for opening, closing in _DECORATIONS:
            inner = text[len(opening) : len(text) - len(closing)]
            if (
                text.startswith(opening)
                and text.endswith(closing)
                and len(text) > len(opening) + len(closing)
                and _is_one_piece(inner, opening, closing)
            ):
                text = inner.strip(_BLANKS)
                break
        else:
            break
    return text


def _is_one_piece(inner: str, opening: str, closing: str) -> bool:
    """Whether the opening and the closing that stood around `inner` belong together."""
    if closing == "}":
        return has_balanced_braces(inner)
    return opening not in inner and closing not in inner and not inner.endswith("\\")


def has_balanced_braces(text: str) -> bool:
    """Whether every `{` in `text` has its `}` behind it, escaped ones aside."""
    depth = 0
    for brace in _BRACES.finditer(text):
        if brace.group() == "}":
            depth -= 1
        elif brace.group() == "{" or brace["box"] is not None:
            depth += 1
        if depth < 0:
            return False
    return depth == 0


def shown(text: str) -> str:
    """`text` cut to a displayable length, for details."""
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"
