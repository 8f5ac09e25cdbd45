"""Turns of several groups of episodes that begin together: which share an engine's batches, and so the last bits of
their log-probabilities, does not depend on how long environments take."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from rollout_server.types import Turn


@dataclass(slots=True)
class _Round:
    """What is known of the next turns of a key's groups."""

    going_on: dict[int, int] = field(default_factory=dict)
    """By the group's index, how many of its episodes have a turn more."""
    whole: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Groups:
    present: set[int]
    """Indices of those that play, and of those that are awaited."""
    rounds: dict[int, _Round] = field(default_factory=dict)


class Lockstep:
    """Groups that began with a `Turn` of one key, turn by turn. Everything runs on one event loop.

    A group says for each turn how many of its episodes go on, 0 included, and hears their places when all have said it.
    One that leaves is waited for no longer.
    """

    def __init__(self) -> None:
        self._keys: dict[str, _Groups] = {}

    async def places(self, first: Turn, number: int, num_going_on: int) -> list[Turn]:
        """Of each of a group's episodes that go on, in order.

        Args:
            first: The turn that the group began with.
            number: Of the turn that comes, from 1.
            num_going_on: Episodes of this group.
        """
        groups = self._keys.setdefault(first.key, _Groups(present=set(range(first.size))))
        this = groups.rounds.setdefault(number, _Round())
        this.going_on[first.index] = num_going_on
        self._look(groups)
        if not num_going_on:
            return []
        await this.whole.wait()
        homes = tuple(index for index in sorted(this.going_on) for _ in range(this.going_on[index]))
        begin = homes.index(first.index)
        return [
            Turn(key=f"{first.key}-turn-{number}", index=begin + place, size=len(homes), homes=homes, goes_on=True)
            for place in range(num_going_on)
        ]

    def leave(self, first: Turn) -> None:
        """The group plays no more, or failed."""
        groups = self._keys.setdefault(first.key, _Groups(present=set(range(first.size))))
        groups.present.discard(first.index)
        self._look(groups)
        if not groups.present:
            del self._keys[first.key]

    @staticmethod
    def _look(groups: _Groups) -> None:
        for this in groups.rounds.values():
            if groups.present <= this.going_on.keys():
                this.whole.set()
