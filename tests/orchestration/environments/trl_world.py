"""An environment as TRL's documentation writes them for `environment_factory`."""

from __future__ import annotations

from typing import Any


class Counter:
    """A counter to bring to a number."""

    def reset(self, **kwargs: Any) -> str | None:
        self.wanted, self.count = int(kwargs.get("wanted", 3)), 0
        return f"Bring it to {self.wanted}."

    def add(self, by: int) -> str:
        """
        Add to the counter.

        Args:
            by: How much.

        Returns:
            The counter.
        """
        self.count += by
        return f"It is {self.count}."

    def get_reward(self) -> float:
        return 1.0 if self.count == self.wanted else 0.0

    @property
    def never(self) -> None:
        raise AssertionError("no property is looked at")
