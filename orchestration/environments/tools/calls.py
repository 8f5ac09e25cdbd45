"""How a model writes that it calls a tool, in two forms.

Qwen's and Hermes', which their chat templates ask for where they are given tools:

    <tool_call>
    {"name": "calculator", "arguments": {"expression": "3 * 4"}}
    </tool_call>

and a fenced one for all other models, told of in the instruction: a block with the tool's name as its mark, which holds
the arguments as JSON, or what the only one says as it is:

    ```calculator
    3 * 4
    ```
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from orchestration.environments.tools.tool import Schema

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_TAGGED = re.compile(rf"{OPENING}(.*?)(?:{CLOSING}|\Z)", re.DOTALL)
_FENCED = re.compile(r"^```[ \t]*([A-Za-z_]\w*)[ \t]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)


class Call(NamedTuple):
    """What a model wants to be called; `wrong` says why it cannot be read, and is for the model."""

    name: str = ""
    arguments: Mapping[str, Any] = {}
    wrong: str | None = None


def read_calls(text: str, schemas: Sequence[Schema], *, fenced: bool) -> list[Call]:
    """The calls in a turn, in order; none where it has none. What stands before `</think>` is not looked at.

    Args:
        fenced: the form that is read. A fenced block with another mark than a tool's name is no call.
    """
    text = text.rpartition("</think>")[2]
    if not fenced:
        return [_tagged(body) for body in _TAGGED.findall(text)]
    only = {_name(schema): only_argument(schema) for schema in schemas}
    return [_from_fence(name, body, only[name]) for name, body in _FENCED.findall(text) if name in only]


def write_call(name: str, arguments: Mapping[str, Any], schemas: Sequence[Schema], *, fenced: bool) -> str:
    """A call as a model should write it."""
    if not fenced:
        return f"{OPENING}\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n{CLOSING}"
    only = next((only_argument(schema) for schema in schemas if _name(schema) == name), None)
    raw = only is not None and list(arguments) == [only]
    body = str(arguments[only or ""]) if raw else json.dumps(arguments, ensure_ascii=False)
    return f"```{name}\n{body}\n```"


def only_argument(schema: Schema) -> str | None:
    """The name of a tool's argument, where there is one alone and it is a text."""
    known = schema["function"]["parameters"].get("properties", {})
    names = [name for name, one in known.items() if one.get("type") == "string"]
    return names[0] if len(known) == len(names) == 1 else None


def describe(schemas: Sequence[Schema]) -> str:
    """For the instruction of a model whose template knows no tools."""
    return "\n".join(
        ["You may call a tool. Write a block with its name and its argument, and end your turn:"]
        + [_described(schema) for schema in schemas]
    )


def _described(schema: Schema) -> str:
    only, name = only_argument(schema), _name(schema)
    known: Mapping[str, Any] = schema["function"]["parameters"].get("properties", {})
    body = only if only is not None else json.dumps({key: one.get("description", "") for key, one in known.items()})
    return f"```{name}\n{body}\n```\n{schema['function'].get('description', '')}"


def _tagged(body: str) -> Call:
    try:
        said = _json(body)
    except ValueError as error:
        return Call(wrong=f"the tool call is not JSON: {error}")
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return Call(wrong='a tool call is {"name": NAME, "arguments": {…}}')
    return _with_arguments(said["name"], said.get("arguments", {}))


def _from_fence(name: str, body: str, only: str | None) -> Call:
    body = body.strip("\n")
    try:
        said = _json(body)
    except ValueError as error:
        return Call(name, {only: body}) if only else Call(name, wrong=f"the arguments of {name} are not JSON: {error}")
    if only is not None and not (isinstance(said, dict) and only in said):
        return Call(name, {only: body})
    return _with_arguments(name, said)


def _json(text: str) -> Any:
    """Raises ValueError, also for what is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _with_arguments(name: str, arguments: Any) -> Call:
    if isinstance(arguments, str):  # some write them as a text of JSON
        try:
            arguments = _json(arguments)
        except ValueError:
            arguments = None
    if not isinstance(arguments, dict):
        return Call(name, wrong=f"the arguments of {name} are no JSON object")
    return Call(name, arguments)


def _name(schema: Schema) -> str:
    return str(schema["function"]["name"])
