"""The reference of all settings, read from their fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestration.data.task import Task, registered_tasks
from orchestration.settings.config import RunConfig
from orchestration.settings.submit import SubmitConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting."""

    name: str
    """Dotted."""
    kind: str
    """Its type, as a person writes it: `int`, `number or null`, `auto | cpu | cuda`."""
    default: Any
    description: str
    variant: str = ""
    """Of which kind of its section it is a setting: a task's name, or a deployment's."""


def all_settings() -> list[Setting]:
    """Every setting of a run and of its submission, in the order of the sections."""
    found = [*_walk(RunConfig, ""), *_walk(SubmitConfig, "")]
    for name, task in registered_tasks().items():
        found += _walk(task, "data.", variant=name)
    return found


def _walk(section: type[BaseModel], prefix: str, *, variant: str = "") -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        dotted = f"{prefix}{name}"
        nested = [kind for kind in _leaves(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if nested and get_origin(field.annotation) is not tuple:
            for kind in nested:
                if kind is not Task:  # the tasks are listed one by one
                    named = kind.__name__ if len(nested) > 1 else variant
                    yield from _walk(kind, f"{dotted}.", variant=named)
            continue
        yield Setting(
            name=dotted,
            kind=_written(field.annotation),
            default=_default(field),
            description=field.description or "",
            variant=variant,
        )


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types of a union, or the one type."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from _leaves(part)
    else:
        yield annotation


def _default(field: FieldInfo) -> Any:
    return "(required)" if field.is_required() else field.get_default(call_default_factory=True)


def _written(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(_written, arguments))
    if origin is Annotated:
        return _written(arguments[0])
    if origin is tuple:
        return f"list of {_written(arguments[0])}"
    if origin is dict:
        return f"map of {_written(arguments[1])}"
    return {"str": "text", "Path": "path", "bool": "true | false", "RewardSpec": "reward", "Any": "value"}.get(
        getattr(annotation, "__name__", ""), getattr(annotation, "__name__", str(annotation))
    )
