"""What is wrong with settings, in words."""

from __future__ import annotations

import re
from collections.abc import Callable

from pydantic import ValidationError

from orchestration.settings.names import here_it_is, nearest, with_sections

_MAY_BE_SECRET = re.compile(r"(secrets|environment)(\.|$)|(api_key|token|password)$")
"""What was given there is not for a log."""
_EXAMPLES = {"tuple_type": "input should be a list, [a, b]", "dict_type": "input should be a mapping, {a: b}"}


def first_problem(error: ValidationError, known: Callable[[], list[str]], *, prefix: str = "") -> str:
    """The first problem as one sentence.

    Args:
        error: of a section.
        known: all dotted names there are.
        prefix: the section's own.
    """
    problem = error.errors()[0]
    kinds = {"local", "actor"}  # pydantic puts the union's tag into the path
    path = [part for part in (prefix, *problem["loc"]) if part not in ("", "[key]")]
    dotted = ".".join(str(part) for i, part in enumerate(path) if i == 0 or part not in kinds)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        names = known()
        if dotted not in names and (here := here_it_is(dotted, names)) is not None:
            return f"unknown setting {dotted!r}; here it is {here!r}"
        if dotted in names:
            return f"{dotted!r} is a setting of another kind of {dotted.rpartition('.')[0]!r}"
        hint = "" if any(isinstance(part, int) for part in path) else nearest(dotted, with_sections(names))
        return f"unknown setting {dotted!r}{hint or '; `rlvr settings` lists all'}"
    message = problem["msg"].removeprefix("Value error, ")
    if dotted in ("", "data"):
        return message
    # "Input should be …" goes on in small letters, a name in capitals stays as it is.
    message = message if message[1:2].isupper() else f"{message[0].lower()}{message[1:]}"
    if problem["type"] == "string_type" and isinstance(problem["input"], bool | int | float):
        message += ", which a number, true or false is in quotes of its own: '\"1\"'"
    message = _EXAMPLES.get(problem["type"], message)
    is_key = "[key]" in problem["loc"]
    if (_MAY_BE_SECRET.search(dotted) and not is_key) or (problem["type"] == "value_error" and len(path) < 2):
        return f"{dotted}: {message}"
    return f"{dotted}={problem['input']!r:.200}: {message}"
