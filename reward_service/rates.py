"""How much a key's holder may have scored: token buckets, which several processes can share."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from reward_service.errors import RateLimitedError

_BUCKET_LOCK_S: Final = 0.1


class Lock(Protocol):
    """What is needed of a lock; those of processes have it."""

    def acquire(self, block: bool = ..., timeout: float | None = ...) -> bool: ...

    def release(self) -> None: ...


class SharedRates(NamedTuple):
    """The state of buckets that processes share: two numbers a key."""

    cells: memoryview[float]
    lock: Lock

    def of(self, index: int) -> memoryview[float]:
        """Those of the key at this place in the file."""
        at = 2 * index % len(self.cells)
        return self.cells[at : at + 2]


@dataclass
class TokenBucket:
    """`rate` tokens flow in a second until there are `burst`; `take` takes them out.

    A request for more than `burst` passes when the bucket is full and leaves it in debt: so that the rate holds in the
    long run, and no size of request is refused forever.
    """

    rate: float
    burst: float
    clock: Callable[[], float] = time.monotonic
    state: MutableSequence[float] = field(default_factory=lambda: [0.0, 0.0])
    """Tokens, and when there were so many; in shared memory where processes share a bucket. Zeros: it is full."""
    lock: Lock | None = None

    def take(self, count: int) -> float:
        """Takes `count` tokens and gives 0, or takes none and gives the seconds until they can be had."""
        # Whoever is killed with the lock must not stop the others for ever.
        locked = self.lock is not None and self.lock.acquire(timeout=_BUCKET_LOCK_S)
        try:
            return self._take(count)
        finally:
            if locked and self.lock is not None:
                self.lock.release()

    def _take(self, count: int) -> float:
        now = self.clock()
        before, at = self.state
        tokens = self.burst if at == 0.0 else min(self.burst, before + (now - at) * self.rate)
        needed = min(count, self.burst)
        wait_s = (needed - tokens) / self.rate if tokens < needed else 0.0
        self.state[0], self.state[1] = tokens - (0 if wait_s else count), now
        return wait_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks."""

    name: str
    bucket: TokenBucket | None = None

    def spend(self, num_items: int) -> None:
        """Counts items against the key's rate limit; RateLimitedError if it has run out."""
        if self.bucket is None:
            return
        retry_after_s = self.bucket.take(num_items)
        if retry_after_s > 0:
            raise RateLimitedError(
                f"key {self.name!r} may have {self.bucket.rate:g} items scored per second; "
                f"try again in {retry_after_s:.1f} s",
                retry_after_s,
            )
