"""`rlvr settings`: the reference of all settings, of a section, or of one by the name it has elsewhere."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from orchestration.errors import ConfigError
from orchestration.settings.config import own_sections
from orchestration.settings.from_trl import SIGNS, Placed, is_trl, translate
from orchestration.settings.names import KNOWN_ELSEWHERE, here_it_is, nearest
from orchestration.settings.reference import Setting, all_settings
from orchestration.settings.tree import read_recipe

_WIDTH = 100


def show_settings(section: str | None, *, as_json: bool) -> str:
    """The settings below `section`, or the one that another trainer calls so; all of them without it.

    Raises ConfigError when nothing is called so.
    """
    found, hint = _chosen(section, all_settings())
    if as_json:
        return json.dumps([_as_dict(setting) for setting in found], indent=2)
    return "\n".join([*([hint] if hint else []), *_lines(found)])


def show_translation(path: str, *, as_json: bool) -> str:
    """Where each key of a file for TRL's trainer goes.

    Raises ConfigError when the file is none, or asks for what cannot be had.
    """
    tree = read_recipe(path)
    if not is_trl(tree):
        raise ConfigError(f"{path!r} is no configuration of TRL's trainer: it has none of {', '.join(SIGNS)}")
    tree.pop("recipe")
    placed = translate(tree, own_sections()).placed
    if as_json:
        return json.dumps([asdict(one) for one in placed], indent=2)
    return "\n".join(line for one in placed for line in _placed_lines(one))


def _placed_lines(one: Placed) -> Iterator[str]:
    where = ", ".join(f"{key} = {_shown(value)}" for key, value in one.settings.items()) or "changes nothing here"
    yield f"{one.key}: {_shown(one.value)}  →  {where}"
    if one.why:
        yield textwrap.fill(one.why, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def _chosen(section: str | None, settings: list[Setting]) -> tuple[list[Setting], str]:
    if section is None:
        return settings, ""
    below = [one for one in settings if one.name == section or one.name.startswith(f"{section}.")]
    if not below:
        keys = sorted({one.name for one in settings})
        name = here_it_is(section, keys)
        if name is None:
            sections = {key.rpartition(".")[0] for key in keys} - {""}
            known = [*sorted(sections), *keys, *KNOWN_ELSEWHERE]
            raise ConfigError(f"nothing is called {section!r}{nearest(section, known)}; `rlvr settings` lists all")
        return [one for one in settings if one.name == name], f"here it is {name}"
    return below, ""


def _as_dict(setting: Setting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "type": setting.kind,
        "default": _shown(setting.default),
        "description": setting.description,
        **({"of": setting.variant} if setting.variant else {}),
    }


def _lines(settings: Iterable[Setting]) -> Iterator[str]:
    for setting in settings:
        of = f"   [{setting.variant}]" if setting.variant else ""
        yield f"{setting.name} = {_shown(setting.default)}   ({setting.kind}){of}"
        if setting.description:
            yield textwrap.fill(setting.description, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def _shown(value: Any) -> str:
    """A default as it would be written in a recipe."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_shown(item)}' for key, item in value.items())}}}"
    return str(value)
