"""How far generation runs ahead of learning. Pure."""

from __future__ import annotations

from dataclasses import dataclass

TOLERATED_WAIT = 0.02
"""Share of a step that the learner may wait for groups before more are begun ahead of it."""


@dataclass(slots=True)
class Lookahead:
    """How many groups are in hand, begun or ready but not taken: no more than it takes for the learner not to wait.

    Staleness is the price of overlap, and is paid only where it buys time. One batch in hand is generated while the
    learner works on the one before: where it is ready by then, all is one version old, however much staleness is
    allowed. Where it is not, the learner waits, and more are begun ahead, so that engines stay full while the last of a
    batch end; where groups are left over when a batch leaves, fewer.

    >>> ahead = Lookahead(batch=8, most=24)
    >>> ahead.observe(step_s=10.0, waited_s=2.5, left_over=0), ahead.limit
    (None, 10)
    >>> ahead.observe(step_s=10.0, waited_s=0.0, left_over=3), ahead.limit
    (None, 9)
    """

    batch: int
    """Groups of a step."""
    most: int
    """What the staleness bound allows."""
    limit: int = 0
    """Groups to have in hand now, from `batch` to `most`."""

    def __post_init__(self) -> None:
        self.limit = min(max(self.limit, self.batch), self.most)

    def observe(self, *, step_s: float, waited_s: float, left_over: int) -> None:
        """A batch has left.

        Args:
            step_s: Since the one before, seconds.
            waited_s: How much of it the learner had nothing to do, seconds.
            left_over: Groups that were ready and not needed.
        """
        waited = waited_s / step_s if step_s > 0 else 0.0
        if waited > TOLERATED_WAIT:
            self.limit += max(1, round(waited * self.batch))
        elif left_over:
            self.limit -= max(1, left_over // 2)
        self.limit = min(max(self.limit, self.batch), self.most)
