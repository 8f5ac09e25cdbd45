"""Errors a person reads. Message-only constructors, so that they survive pickling between processes."""

from __future__ import annotations


class RlvrError(Exception):
    """A run cannot go on, or cannot start; the message is one sentence with the remedy."""


class ConfigError(RlvrError):
    """A recipe, an override or a combination of settings is wrong."""


class MachineError(RlvrError):
    """The machine lacks something the run needs."""


class DataError(RlvrError):
    """A data file or a model folder is missing or broken."""


class WorkerDiedError(RlvrError):
    """An actor died: which, where, why."""


class RemoteTimeoutError(RlvrError):
    """A remote call was not answered in time: who did not answer."""


class RewardsUnavailableError(RlvrError):
    """The reward service did not answer, or answered nonsense, until the deadline."""


class SubmitError(RlvrError):
    """A place that takes jobs refused, or did not answer."""


def one_line(text: object, max_chars: int = 300) -> str:
    """A text, or an error's, without line breaks; what is longer is cut, and ends in `…`."""
    line = " ".join(str(text).split())
    return line if len(line) <= max_chars else f"{line[: max_chars - 1]}…"
