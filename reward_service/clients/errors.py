"""What can go wrong between a trainer and the service. Constructors take one message, so that pickling works."""

from __future__ import annotations


class RewardServiceError(Exception):
    """The reward service refused a request, or scoring failed for another reason that trying again will not mend."""


class RewardServiceUnavailable(RewardServiceError):  # noqa: N818  # what it says is a state, and callers know it by this name
    """The service did not answer, or answered that it cannot, until the deadline was over."""


class BadAnswerError(RewardServiceError):
    """The service answered, but nonsense, until the deadline was over."""
