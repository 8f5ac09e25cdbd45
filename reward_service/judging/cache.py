"""Grades that were given, in memory, and those that are being worked out.

Not on disk: what was decided is in the audit log, and a grade that outlives the process would outlive a change of what
the endpoint serves under the model's name.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class GradeCache(Generic[T]):
    """The last `max_entries` grades by key. All methods are called on one event loop."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._grades: OrderedDict[str, T] = OrderedDict()
        self._flights: dict[str, asyncio.Future[T]] = {}

    def __len__(self) -> int:
        return len(self._grades)

    async def get(self, key: str, make: Callable[[], Awaitable[T]], *, keep: Callable[[T], bool]) -> tuple[T, bool]:
        """The grade under `key`, and whether it was there.

        Who asks for a key while another is working it out waits and gets the same, kept or not. If that other one is
        cancelled or fails, the next takes over.

        Args:
            key: A hash of all that the grade depends on.
            make: Works it out.
            keep: Whether it is worth keeping.

        Raises:
            Exception: What `make` raises, to who asked first alone.
        """
        if self._max_entries == 0:
            return await make(), False
        while True:
            if key in self._grades:
                self._grades.move_to_end(key)
                return self._grades[key], True
            if key not in self._flights:
                return await self._fly(key, make, keep), False
            flight = self._flights[key]
            await asyncio.wait([flight])
            if not flight.cancelled():
                return flight.result(), True

    async def _fly(self, key: str, make: Callable[[], Awaitable[T]], keep: Callable[[T], bool]) -> T:
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        try:
            grade = await make()
            flight.set_result(grade)
        finally:
            flight.cancel()  # does nothing to one that has its result
            del self._flights[key]
        if keep(grade):
            self._grades[key] = grade
            if len(self._grades) > self._max_entries:
                self._grades.popitem(last=False)
        return grade
