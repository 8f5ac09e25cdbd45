"""A request's items on their way through the pool, as plain bookkeeping."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from reward_service.pool.messages import EncodedItem, Job, ScoredItem, encode_specs
from reward_service.schemas import ScoreItem
from reward_service.scoring import unscored
from reward_service.types import Reason, RewardScore, RewardSpec


class Verdict(NamedTuple):
    """What is to be said of an item that a worker did not survive."""

    item: int
    """The item's, in the chunk as it was given to the worker."""
    reward: int | None
    """The reward's, in the request; None: it is not known which."""
    reason: str
    message: str


class PoolRequest:
    """Tasks that are answered together."""

    def __init__(
        self,
        specs: tuple[RewardSpec, ...],
        deadlines_s: Sequence[float],
        items: Sequence[ScoreItem],
        future: asyncio.Future[Sequence[ScoredItem]],
        began: float = 0.0,
        starved_before_s: float = 0.0,
    ) -> None:
        self.specs, self.deadlines_s, self.items, self.future = specs, deadlines_s, items, future
        self.encoded_specs = encode_specs(specs)
        self.abandoned = False
        self.began, self.starved_before_s = began, starved_before_s
        """On the monotonic clock, and for how long workers had got no processor then."""
        self.is_over = False
        """Its time was over when it was looked at last."""
        self.num_kills = 0
        """Workers that ended with items of this request."""
        self._results: list[ScoredItem | None] = [None] * len(items)
        self._missing = len(items)

    def put(self, positions: Sequence[int], items: Sequence[ScoredItem]) -> None:
        """Results of the items at these positions; the first that is put there stays."""
        for position, item in zip(positions, items, strict=True):
            if self._results[position] is None:
                self._results[position] = item
                self._missing -= 1
        if self._missing == 0 and not self.future.done():
            self.future.set_result([result for result in self._results if result is not None])

    def expire(self, timeout_s: float) -> None:
        """Answers with what there is; the rest has no score."""
        message = f"not reached within request_timeout_s = {timeout_s:g} s" if timeout_s else "the service shut down"
        reason = Reason.TIMEOUT if timeout_s else Reason.UNAVAILABLE
        scores = {spec.name: unscored(reason, message) for spec in self.specs}
        missing = [position for position, result in enumerate(self._results) if result is None]
        self.put(missing, [unscored_item(self.items[position].id, scores) for position in missing])
        self.abandoned = True


def unscored_item(item_id: str, scores: dict[str, RewardScore]) -> ScoredItem:
    """An item of which nothing is known, as a worker would have sent it."""
    return ScoredItem(None, [None] * len(scores), msgspec.json.encode(EncodedItem(item_id, None, scores)))


@dataclass(eq=False, slots=True)
class Chunk:
    """Items of a request that one worker scores, one after the other."""

    request: PoolRequest
    positions: list[int]
    """Positions in the request that are not scored yet, in the order in which they will be."""
    verdicts: dict[int, dict[str, tuple[str, str]]] = field(default_factory=dict)
    """Position in the request → reward → why it is not to be run."""
    num_taken: int = 0
    on_trial: bool = False
    """Its only item was there when a worker died, which may have had other reasons."""

    def job(self) -> Job:
        """What a worker is given."""
        items = self.request.items
        if len(self.positions) < len(items):
            items = [items[position] for position in self.positions]
        verdicts = {index: self.verdicts[p] for index, p in enumerate(self.positions) if p in self.verdicts}
        return Job(self.request.encoded_specs, items, verdicts)

    def take(self, items: Sequence[ScoredItem]) -> None:
        """Results of the first items that are left."""
        done, self.positions = self.positions[: len(items)], self.positions[len(items) :]
        self.num_taken += len(items)
        self.request.put(done, items)

    def describe(self, verdict: Verdict) -> str:
        """What a worker was at, for the log: no text of the item."""
        position = self._position(verdict.item)
        name = "?" if verdict.reward is None else self.request.specs[verdict.reward].name
        return f"reward {name!r}, item {'?' if position is None else position} of a request"

    def split(self, verdict: Verdict | None) -> list[Chunk]:
        """What is left, as chunks for other workers: the item that `verdict` is about alone, the others in halves."""
        rest, parts = list(self.positions), []
        bad = None if verdict is None else self._position(verdict.item)
        if verdict is not None and bad is not None:
            rest.remove(bad)
            verdicts = dict(self.verdicts.get(bad, {}))
            on_trial = verdict.reason != Reason.TIMEOUT and not self.on_trial
            if not on_trial:
                guilty = self.request.specs if verdict.reward is None else [self.request.specs[verdict.reward]]
                verdicts |= {spec.name: (verdict.reason, verdict.message) for spec in guilty}
            if len(verdicts) < len(self.request.specs):
                parts.append(Chunk(self.request, [bad], {bad: verdicts}, on_trial=on_trial))
            else:  # nothing is left to be run
                scores = {spec.name: unscored(*verdicts[spec.name]) for spec in self.request.specs}
                self.request.put([bad], [unscored_item(self.request.items[bad].id, scores)])
        half = (len(rest) + 1) // 2
        for positions in (rest[:half], rest[half:]):
            if positions:
                kept = {p: self.verdicts[p] for p in positions if p in self.verdicts}
                parts.append(Chunk(self.request, positions, kept))
        return parts

    def apart(self) -> list[Chunk]:
        """What is left, each item alone: one of them ends workers, and nobody knows which."""
        return [Chunk(self.request, [p], {p: self.verdicts[p]} if p in self.verdicts else {}) for p in self.positions]

    def _position(self, index: int) -> int | None:
        left = index - self.num_taken
        return self.positions[left] if 0 <= left < len(self.positions) else None


def verdict_on_death(chunk: Chunk, at: tuple[int, int, float] | None, code: int | None) -> Verdict | None:
    """Whom to blame for a worker that died by itself; None if that could be any item of the chunk."""
    message = f"the verifier ended its process ({_ending(code)})"
    if at is not None:
        return Verdict(at[0], at[1], Reason.VERIFIER_ERROR, message)
    if len(chunk.positions) == 1:
        return Verdict(chunk.num_taken, None, Reason.VERIFIER_ERROR, message)
    return None


def _ending(code: int | None) -> str:
    if code is None:
        return "its exit code is not known"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
