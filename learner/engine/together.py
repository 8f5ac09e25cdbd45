"""Ranks that fail together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from learner.errors import DiskFullError, LearnerError


@contextmanager
def all_or_none(gather: Callable[[Any], list[Any]]) -> Iterator[None]:
    """What fails on one rank fails on all: a rank that left alone would leave the others in their next collective.
    Entered by every rank; raises the rank's own error, or a LearnerError with the first of the others'.

    Args:
        gather: Gives every rank's value to every rank.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    said = [said for said in gather(_in_words(failure)) if said is not None]
    if failure is not None:
        raise failure
    if said:
        kind, words = said[0]
        raise kind(words)


def _in_words(failure: Exception | None) -> tuple[type[LearnerError], str] | None:
    """What the other ranks raise."""
    if isinstance(failure, LearnerError):
        return DiskFullError if isinstance(failure, DiskFullError) else LearnerError, str(failure)
    return None if failure is None else (LearnerError, f"{type(failure).__name__}: {failure}")
