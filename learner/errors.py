"""Errors of the learner. Message-only constructors, so that they survive pickling between processes."""

from __future__ import annotations


class LearnerError(Exception):
    """Something the learner will not go on from."""


class NonFiniteLossError(LearnerError):
    """The loss or its gradient is not finite; the optimizer was not moved."""


class StaleSampleError(LearnerError):
    """A completion is older than the staleness bound allows."""


class NothingToLearnError(LearnerError):
    """No completion of the batch was scored."""


class RankDiedError(LearnerError):
    """The process of a rank ended while it was asked for something."""


class DiskFullError(LearnerError):
    """A checkpoint found no room; the older ones are untouched."""
