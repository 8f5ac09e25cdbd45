"""Settings as text: recipes in YAML, `dotted.key=value` overrides, and the nearest right key to a wrong one.

Knows nothing of the settings themselves; loads no heavy library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from orchestration.errors import ConfigError
from orchestration.settings.names import nearest
from reward_service.settings import put, read_yaml


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("orchestration") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(recipe: str) -> dict[str, Any]:
    """A shipped recipe, or a YAML file, as a tree of settings with the recipe's name in it.

    Args:
        recipe: A file, where it ends in .yaml or has a slash; else a shipped recipe's name.

    Raises:
        ConfigError: There is none, or it is no YAML mapping; it is named.
    """
    name = recipe
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        path = Path(recipe)
        if not path.exists():
            raise ConfigError(
                f"recipe file {recipe!r} does not exist; shipped recipes are: {', '.join(recipe_names())}"
            )
        text, name = read_settings_file(path), path.stem
    elif recipe in recipe_names():
        text = (resources.files("orchestration") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f"unknown recipe {recipe!r}{nearest(recipe, recipe_names())}; recipes are: {', '.join(recipe_names())}, "
            f"or the path of a YAML file"
        )
    try:
        tree = read_yaml(text)
    except yaml.YAMLError as error:
        words = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ConfigError(f"recipe {recipe!r} is not valid YAML: {words}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"recipe {recipe!r} must be a mapping of settings, got {type(tree).__name__}")
    tree.setdefault("recipe", name)
    return tree


def read_settings_file(path: Path) -> str:
    """The text of a YAML file of somebody's.

    Raises:
        ConfigError: It is a folder, not UTF-8, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{str(path)!r} is not UTF-8 text (line {line}): save it as UTF-8") from error
    except IsADirectoryError:
        raise ConfigError(f"{str(path)!r} is a folder, where a YAML file is wanted") from None
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def parse_override(override: str) -> tuple[str, Any]:
    """`a.b=1e-4` as `("a.b", 0.0001)`; the value is read as YAML.

    Raises:
        ConfigError: It is not of that form.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{override!r} is not an override; write key=value, for example max_steps=20")
    try:
        return key, yaml.safe_load(_scientific(text)) if text else None
    except yaml.YAMLError:
        return key, text


def _scientific(text: str) -> str:
    """YAML reads `1e-4` as text; people mean the number."""
    try:
        number = float(text)
    except ValueError:
        return text
    return repr(number) if "e" in text.lower() else text


def assign(tree: dict[str, Any], dotted: str, value: Any, override: str) -> None:
    """Write a value at its dotted place; sections on the way are made.

    Args:
        tree: Is changed.
        dotted: As `learner.loss.beta`.
        value: Any that YAML has.
        override: What the user wrote, for the message.

    Raises:
        ConfigError: A value is where a section would have to be.
    """
    try:
        put(tree, dotted, value)
    except ValueError as error:
        raise ConfigError(f"{override!r}: {str(error)!r} is a value, not a section") from error


def spell_out_kinds(tree: dict[str, Any], unions: Sequence[str]) -> None:
    """Writes `{kind: actor}` where a union's value is `actor`, so that the rest of its settings can be added.

    Args:
        tree: Changed in place.
        unions: Dotted keys of settings that are one of several kinds.
    """
    for dotted in unions:
        *parents, leaf = dotted.split(".")
        node: Any = tree
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(leaf), str):
            node[leaf] = {"kind": node[leaf]}


def walk_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a group of settings, over all variants of its unions."""
    for name, field in section.model_fields.items():
        dotted = f"{prefix}{name}"
        nested = [
            kind for kind in _variants(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if nested and not str(field.annotation).startswith("tuple"):
            for kind in nested:
                yield from walk_keys(kind, f"{dotted}.")
        else:
            yield dotted


def _variants(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", None) or (annotation,)
