"""What can go wrong between a trainer and the service. Constructors take a message, so that pickling works."""

from __future__ import annotations


class RewardServiceError(Exception):
    """The reward service refused a request, or scoring failed for another reason that trying again will not mend."""


class RequestRefusedError(RewardServiceError):
    """The service answered that it will not score this request: bad, too large, or without a valid key."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class RewardServiceUnavailable(RewardServiceError):  # noqa: N818  # what it says is a state, and callers know it by this name
    """The service did not answer, or answered that it cannot, until the deadline was over."""


class BadAnswerError(RewardServiceError):
    """The service answered, but nonsense, until the deadline was over."""


class UnscorableError(RewardServiceError):
    """A completion has no score, and the trainer cannot be told so."""
