"""What a service model says of a request's values, and botocore leaves to the service: lengths, patterns, choices.

botocore itself checks names, types and what is required.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_JAVA_CLASSES = {r"\p{Alnum}": "a-zA-Z0-9", r"\p{L}": r"\w", r"\p{N}": r"\d", r"\p{Z}": " "}
_LONGEST_LIST_SHOWN = 8


def breaches(value: Any, shape: Any, path: str = "") -> Iterator[str]:
    """What is wrong with a value, one clause each, such as `Environment.A has 513 characters, at most 512 are taken`.

    Args:
        value: a request, or a part of it.
        shape: botocore's shape of it, as `service_model.operation_model(NAME).input_shape`.
        path: where the part lies in the request.
    """
    kind, limits = shape.type_name, shape.metadata
    if kind == "structure":
        for name, member in value.items():
            yield from breaches(member, shape.members[name], _join(path, name))
        return
    if kind in ("integer", "long", "float", "double"):
        yield from _out_of_range(value, limits, f"{path}={value}", "")
        return
    if kind == "string":
        yield from _wrong_text(value, limits, path)
    elif kind == "list":
        yield from _out_of_range(len(value), limits, f"{path} has {len(value)} entries", " are taken")
        for index, member in enumerate(value):
            yield from breaches(member, shape.member, f"{path}[{index}]")
    elif kind == "map":
        yield from _out_of_range(len(value), limits, f"{path} has {len(value)} entries", " are taken")
        for name, member in value.items():
            yield from breaches(name, shape.key, f"{path}: the name {name[:40]!r}")
            yield from breaches(member, shape.value, _join(path, name))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _out_of_range(number: float, limits: Mapping[str, Any], what: str, verb: str) -> Iterator[str]:
    if "min" in limits and number < limits["min"]:
        yield f"{what}, at least {limits['min']}{verb}"
    if "max" in limits and number > limits["max"]:
        yield f"{what}, at most {limits['max']}{verb}"


def _wrong_text(text: str, limits: Mapping[str, Any], path: str) -> Iterator[str]:
    yield from _out_of_range(len(text), limits, f"{path} has {len(text)} characters", " are taken")
    if (choices := limits.get("enum")) and text not in choices:
        shown = f", which is none of {', '.join(choices)}" if len(choices) <= _LONGEST_LIST_SHOWN else ""
        yield f"{path}={text!r} is not known to this version of botocore{shown}"
    if (pattern := limits.get("pattern")) and not re.fullmatch(_python_pattern(pattern), text):
        yield f"{path}={text[:80]!r} does not match {pattern}"


def _python_pattern(pattern: str) -> str:
    for java, python in _JAVA_CLASSES.items():
        pattern = pattern.replace(java, python)
    return pattern
