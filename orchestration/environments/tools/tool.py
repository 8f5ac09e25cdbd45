"""A function as a tool: its schema from type hints and docstring, and a call of it with what a model wrote."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from orchestration.errors import ConfigError, one_line

MAX_OUTPUT_CHARS = 2000
"""Of what a tool says; the rest would only fill the context."""

Schema = Mapping[str, Any]


class WrongCallError(Exception):
    """The call does not fit the tool: the message is shown to the model."""


class ToolOutOfOrderError(Exception):
    """The tool cannot do its work, whoever calls it: the episode has failed."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function or bound method, async or not, with hints for its arguments and a Google-style docstring."""

    function: Callable[..., Any]

    @property
    def name(self) -> str:
        return str(self.function.__name__)

    @property
    def schema(self) -> Schema:
        """As chat templates take it.

        Raises:
            ConfigError: Hints or docstring are missing.
        """
        return schema_of(getattr(self.function, "__func__", self.function))

    @property
    def parameters(self) -> Schema:
        """JSON Schema of the arguments."""
        found: Schema = self.schema["function"]["parameters"]
        return found

    async def call(self, arguments: Mapping[str, Any]) -> str:
        """What it says, shortened; what it raises is said, too, since a model may do better the next time.

        Raises:
            WrongCallError: the arguments do not fit.
            ToolOutOfOrderError: it cannot work at all.
        """
        self._check(arguments)
        members = enums_of(self.function)
        given = {name: _member(members.get(name), value) for name, value in arguments.items()}
        try:
            if inspect.iscoroutinefunction(self.function):
                said = await self.function(**given)
            else:  # in a thread, so that one that waits holds up nobody else
                said = await asyncio.to_thread(self.function, **given)
            return shortened(said if isinstance(said, str) else json.dumps(said, ensure_ascii=False, default=str))
        except ToolOutOfOrderError:
            raise
        except (Exception, SystemExit) as error:
            return shortened(f"{self.name} failed: {type(error).__name__}: {one_line(error)}")

    def _check(self, arguments: Mapping[str, Any]) -> None:
        import jsonschema

        known = self.parameters.get("properties", {})
        if unknown := next((name for name in arguments if name not in known), None):
            raise WrongCallError(f"{self.name} has no argument {unknown!r}; it has {', '.join(known) or 'none'}")
        given = {
            name: value for name, value in arguments.items() if not (value is None and known[name].get("nullable"))
        }
        for wrong in jsonschema.Draft202012Validator(self.parameters).iter_errors(given):
            where = f"argument {wrong.path[0]!r}: " if wrong.path else ""
            raise WrongCallError(f"{self.name}: {where}{one_line(wrong.message)}")


@lru_cache(maxsize=256)
def schema_of(function: Callable[..., Any]) -> Schema:
    """A function's schema, as `tools=[function]` of TRL and of chat templates has it; an argument that is one of an
    Enum is one of its values. Raises ConfigError."""
    from transformers.utils import get_json_schema

    try:
        found: dict[str, Any] = get_json_schema(function)
        _check_kinds(function)
        members = enums_of(function)
    except Exception as error:
        raise ConfigError(
            f"{function.__qualname__} is no tool: {one_line(error)}; it needs type hints, and a docstring with a line "
            f"`name: what it is` for each argument under `Args:`"
        ) from error
    for name, argument in found["function"]["parameters"].get("properties", {}).items():
        if name in members:
            del argument["type"]
            argument["enum"] = [member.value for member in members[name]]
    return found


def _check_kinds(function: Callable[..., Any]) -> None:
    """Raises TypeError where an argument has no name to be called by."""
    for argument in inspect.signature(function).parameters.values():
        if argument.kind in (argument.VAR_POSITIONAL, argument.POSITIONAL_ONLY):
            raise TypeError(f"its argument {argument} cannot be given by name")


def enums_of(function: Callable[..., Any]) -> dict[str, type[Enum]]:
    """The arguments that are one of an Enum, or that or None."""
    found = {}
    for name, hint in get_type_hints(function).items():
        for one in (hint, *get_args(hint)):
            if isinstance(one, type) and issubclass(one, Enum) and name != "return":
                found[name] = one
    return found


def _member(members: type[Enum] | None, value: Any) -> Any:
    return value if members is None or value is None else members(value)


def shortened(text: str) -> str:
    """The first characters of a long text, and how many more there were."""
    left = len(text) - MAX_OUTPUT_CHARS
    return text if left <= 0 else f"{text[:MAX_OUTPUT_CHARS]}… ({left} characters more)"
