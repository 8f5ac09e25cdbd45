"""Errors a person reads. Message-only constructors, so that they survive pickling between processes."""

from __future__ import annotations

import errno


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


class ValueLostError(WorkerDiedError):
    """What lay in Ray's object store is gone, with the node that held it."""


class EnvironmentLostError(RlvrError):
    """What held an episode's environment is gone, and its state with it: the episode has to begin again."""


class NoRoomError(MachineError):
    """A disk or a node's shared memory is full: which."""


class RewardsUnavailableError(RlvrError):
    """The reward service did not answer, or answered nonsense, until the deadline."""


class SubmitError(RlvrError):
    """A place that takes jobs refused, or did not answer."""


class UnreachableError(SubmitError):
    """A place did not answer, or broke off: the next try may do better."""


def one_line(text: object, max_chars: int = 300) -> str:
    """A text, or an error's, without line breaks; what is longer is cut, and ends in `…`."""
    line = " ".join(str(text).split())
    return line if len(line) <= max_chars else f"{line[: max_chars - 1]}…"


def in_a_sentence(what: str, error: OSError) -> RlvrError:
    """What could not be done, for a user: the file and the reason, without the traceback."""
    file = "" if error.filename is None else f" {error.filename}:"
    kind = NoRoomError if error.errno in (errno.ENOSPC, errno.EDQUOT) else RlvrError
    return kind(f"{what}:{file} {error.strerror or error}")


class AlarmError(RlvrError):
    """An alarm holds with which the run was to end."""
