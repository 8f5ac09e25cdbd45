"""The order in which training problems are drawn; its whole state is one integer."""

from __future__ import annotations

import random
from collections.abc import Sequence

from orchestration.types import Problem


class DataCursor:
    """Draws problems epoch by epoch, each epoch shuffled by (seed, epoch); resumes from `position`."""

    def __init__(self, problems: Sequence[Problem], seed: int | str, position: int = 0) -> None:
        """Start after `position` problems have been drawn.

        Raises:
            ValueError: no problems, or a negative position.
        """
        if not problems:
            raise ValueError("a data cursor needs at least one problem")
        if position < 0:
            raise ValueError(f"position must be at least 0, got {position}")
        self._problems = tuple(problems)
        self._seed = seed
        self._position = position
        self._order_epoch = -1
        self._order: list[int] = []

    @property
    def position(self) -> int:
        """Problems drawn so far, over all epochs: save it, and give it back to go on from there."""
        return self._position

    @property
    def epoch(self) -> int:
        """Completed passes over the problems."""
        return self._position // len(self._problems)

    def take(self, count: int) -> list[Problem]:
        """The next `count` problems; where an epoch ends the next begins.

        Args:
            count: May be more than an epoch has.
        """
        taken = []
        for _ in range(count):
            epoch, index = divmod(self._position, len(self._problems))
            taken.append(self._problems[self._epoch_order(epoch)[index]])
            self._position += 1
        return taken

    def _epoch_order(self, epoch: int) -> list[int]:
        if epoch != self._order_epoch:
            order = list(range(len(self._problems)))
            random.Random(f"order/{self._seed}/{epoch}").shuffle(order)
            self._order, self._order_epoch = order, epoch
        return self._order
