"""What the server and a worker say to each other, as msgpack: a tenth of pickle's time, and safe to read from a worker
that has run other people's verifiers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, Self

import msgspec

from reward_service.schemas import ScoreItem
from reward_service.types import RewardScore, RewardSpec

BUCKETS_S: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)
"""Upper bounds of the histogram of seconds that a reward took for an item; beyond the last there is one more."""


class RewardStats(msgspec.Struct, array_like=True):
    """What one reward did: in a batch, or since the start."""

    name: str
    buckets: list[int]
    total_s: float = 0.0
    reasons: dict[str, int] = {}
    """How many items had no score, by reason."""

    @classmethod
    def none(cls, name: str) -> Self:
        """Of a reward that did nothing yet."""
        return cls(name, [0] * (len(BUCKETS_S) + 1))

    def count(self, seconds: float, reason: str | None) -> None:
        """Takes in one item, and why it has no score."""
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds
        if reason is not None:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1


class ScoredItem(msgspec.Struct, array_like=True, frozen=True):
    """What all rewards say of one item."""

    total: float | None
    scores: list[float | None]
    """In the plan's order."""
    result: bytes
    """`{"id", "total", "rewards": {name: {"score", "reason", "details"}}}` as JSON, as it is answered."""


class EncodedItem(msgspec.Struct):
    """What `ScoredItem.result` is the JSON of."""

    id: str
    total: float | None
    rewards: dict[str, RewardScore]


class Batch(msgspec.Struct, array_like=True):
    """Scored items of a job, in its order, after those that were sent before."""

    items: list[ScoredItem]
    stats: list[RewardStats]
    leaving: str = ""
    """Not empty: the worker ends after this, and why."""


class Job(msgspec.Struct, array_like=True, frozen=True):
    """Items for one worker. `verdicts` says of an item's position which rewards are not to be run, and why."""

    specs: bytes
    """The rewards, as `encode_specs` has them: the same bytes for the same rewards, so that plans can be kept."""
    items: Sequence[ScoreItem]
    verdicts: dict[int, dict[str, tuple[str, str]]]
    """Position → reward → (reason, message)."""


class ReceivedJob(msgspec.Struct, array_like=True, frozen=True):
    """A `Job` at the worker's end."""

    specs: bytes
    items: list[ScoreItem]
    verdicts: dict[int, dict[str, tuple[str, str]]]


def encode_job(job: Job) -> bytes:
    """As msgpack, or as JSON where a reference holds an integer of more than 64 bits."""
    try:
        return msgspec.msgpack.encode(job)
    except OverflowError:
        return msgspec.json.encode(job)


def decode_job(data: bytes) -> ReceivedJob:
    """The inverse of `encode_job`; the first byte tells which it is."""
    return _job_of_json(data) if data[:1] == b"[" else _job_of_msgpack(data)


_job_of_msgpack = msgspec.msgpack.Decoder(ReceivedJob).decode
_job_of_json = msgspec.json.Decoder(ReceivedJob).decode

encode_specs = msgspec.json.Encoder().encode
decode_specs = msgspec.json.Decoder(tuple[RewardSpec, ...]).decode
encode_batch = msgspec.msgpack.Encoder().encode
decode_batch = msgspec.msgpack.Decoder(Batch).decode
