"""What the server and a worker say to each other.

Jobs are pickled: the server is trusted, and references may hold integers that no compact format takes. What comes back
is msgpack: a worker has run other people's verifiers, and unpickling would run what they put there.
"""

from __future__ import annotations

import pickle
from typing import Any, Final

import msgspec

from reward_service.types import RewardSpec

BUCKETS_S: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)
"""Upper bounds of the histogram of seconds that a reward took for an item; beyond the last there is one more."""


class RewardStats(msgspec.Struct, array_like=True):
    """What one reward did in a batch."""

    name: str
    buckets: list[int]
    total_s: float = 0.0
    reasons: dict[str, int] = {}
    """How many items had no score, by reason."""


class ScoredItem(msgspec.Struct, array_like=True, frozen=True):
    """What all rewards say of one item."""

    total: float | None
    scores: list[float | None]
    """In the plan's order."""
    rewards: bytes
    """`{name: {"score", "reason", "details"}}` as JSON."""


class Batch(msgspec.Struct, array_like=True):
    """Scored items of a job, in its order, after those that were sent before."""

    items: list[ScoredItem]
    stats: list[RewardStats]
    leaving: str = ""
    """Not empty: the worker ends after this, and why."""


class Job(msgspec.Struct, frozen=True):
    """Items for one worker. `verdicts` says of an item's position which rewards are not to be run, and why."""

    specs: tuple[RewardSpec, ...]
    tasks: list[tuple[Any, ...]]
    """Fields of a `Task`, an item each."""
    verdicts: dict[int, dict[str, tuple[str, str]]]
    """Position → reward → (reason, message)."""


def encode_job(job: Job) -> bytes:
    return pickle.dumps((job.specs, job.tasks, job.verdicts), protocol=5)


def decode_job(data: bytes) -> Job:
    return Job(*pickle.loads(data))


encode_batch = msgspec.msgpack.Encoder().encode
decode_batch = msgspec.msgpack.Decoder(Batch).decode
