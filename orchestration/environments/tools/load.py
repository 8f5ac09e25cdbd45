"""The tools that a task's settings name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from orchestration.errors import ConfigError, one_line

BUILT_IN = ("calculator", "python", "search")


def load_tools(names: Sequence[str], corpus: str | None = None) -> list[Callable[..., Any]]:
    """The functions, by built-in names or `module:function`; new ones for each episode where they hold something.

    Args:
        corpus: the file in which `search` looks.

    Raises:
        ConfigError: there is none of a name.
    """
    from orchestration.environments.tools.calculator import calculator
    from orchestration.environments.tools.python import Python
    from orchestration.environments.tools.search import open_search

    made: dict[str, Callable[[], Callable[..., Any]]] = {
        "calculator": lambda: calculator,
        "python": lambda: Python().python,
        "search": lambda: open_search(corpus).search,
    }
    return [made[name]() if name in made else imported(name, setting="data.tools") for name in names]


def imported(name: str, *, setting: str) -> Callable[..., Any]:
    """What `module:name` calls, a function or a class.

    Args:
        name: `module:name`; the module is installed, or beside the recipe.
        setting: Where the name stands, for messages.

    Raises:
        ConfigError: It is not of that form, cannot be imported, or is not there.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        built_in = f"there are {', '.join(BUILT_IN)}, or" if setting == "data.tools" else "write"
        raise ConfigError(f"{setting}={name!r}: {built_in} module:name for one of your own")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of anybody's
        raise ConfigError(f"{setting}={name!r} does not load: {type(error).__name__}: {one_line(error)}") from error
    if not callable(found):
        raise ConfigError(f"{setting}={name!r} cannot be called")
    return found  # type: ignore[no-any-return]
