"""Arguments that several commands take, and values of options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_words(command: argparse.ArgumentParser) -> None:
    """A recipe and settings, for `recipe_and_overrides`."""
    command.add_argument(
        "words", nargs="*", metavar="RECIPE | key=value", help="a recipe's name or YAML file, then settings to change"
    )


def recipe_and_overrides(words: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe that the words begin with, or the usual one, and the settings behind it."""
    if words and "=" not in words[0]:
        return words[0], list(words[1:])
    return "arithmetic", list(words)


def add_overrides(command: argparse.ArgumentParser) -> None:
    """Settings alone."""
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as for `rlvr train`")


def add_run_dir(command: argparse.ArgumentParser) -> None:
    """The run that it is about."""
    command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="the run's folder")


def add_json(command: argparse.ArgumentParser) -> None:
    """JSON in place of words."""
    command.add_argument("--json", action="store_true", help="print one JSON object")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
