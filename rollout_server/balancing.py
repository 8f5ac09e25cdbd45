"""Which worker gets the next prompt. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

_REMEMBERED_PREFIXES = 4096


@dataclass(slots=True)
class Balancer:
    """Fewest outstanding sequences first; among equals the worker that had this prompt's prefix last, then in turn.

    Requests that share a prefix (few-shot examples, a system message) find it in that worker's cache. Affinity only
    breaks ties: a worker with less to do is always the better choice, since a prefix is cheap beside a completion.

    >>> balancer = Balancer(2)
    >>> balancer.begin(prefix=7, num_sequences=8), balancer.begin(prefix=7, num_sequences=8)
    (0, 1)
    """

    num_workers: int
    _outstanding: list[int] = field(init=False)
    _last_turn: list[int] = field(init=False)
    _turn: int = 0
    _worker_of_prefix: dict[int | str, int] = field(default_factory=dict)
    _heap: list[tuple[int, int, int]] = field(init=False)
    """(outstanding, last turn, worker) of every worker, and of some as they once were: the least is the next, whatever
    the number of workers."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {self.num_workers}")
        self._outstanding = [0] * self.num_workers
        self._last_turn = [0] * self.num_workers
        self._renew_heap()

    @property
    def outstanding(self) -> tuple[int, ...]:
        """Sequences begun and not ended, for each worker."""
        return tuple(self._outstanding)

    def begin(
        self, *, prefix: int | str, num_sequences: int, among: Collection[int] | None = None, stay: bool = False
    ) -> int:
        """Choose a worker for a group and count its sequences as outstanding; returns the worker's index.

        Args:
            prefix: What identifies the prompt's shared beginning (see `prefix_key`).
            num_sequences: Completions asked for.
            among: The workers that can take it, at least one; None: all.
            stay: The one that had the prefix last takes it, whatever it has to do: the prefix is most of what is asked.
        """
        favourite = self._worker_of_prefix.get(prefix)
        if among is None or len(among) == self.num_workers:
            chosen = self._least()
        else:
            chosen = min(among, key=lambda w: (self._outstanding[w], self._last_turn[w], w))
        if favourite is not None and (among is None or favourite in among):
            chosen = favourite if stay or self._outstanding[favourite] == self._outstanding[chosen] else chosen
        self._turn += 1
        self._last_turn[chosen] = self._turn
        self._outstanding[chosen] += num_sequences
        self._remember(chosen)
        self._worker_of_prefix.pop(prefix, None)
        self._worker_of_prefix[prefix] = chosen
        if len(self._worker_of_prefix) > _REMEMBERED_PREFIXES:
            del self._worker_of_prefix[next(iter(self._worker_of_prefix))]  # the one not seen for longest
        return chosen

    def end(self, worker: int, *, num_sequences: int) -> None:
        """Count a group as ended, however it ended.

        Args:
            worker: Its index.
            num_sequences: As many as were begun together.
        """
        assert self._outstanding[worker] >= num_sequences
        self._outstanding[worker] -= num_sequences
        self._remember(worker)

    def _least(self) -> int:
        """The worker with the fewest outstanding sequences, of these the one whose turn is longest ago."""
        while True:
            outstanding, turn, worker = self._heap[0]
            if (outstanding, turn) == (self._outstanding[worker], self._last_turn[worker]):
                return worker
            heappop(self._heap)

    def _remember(self, worker: int) -> None:
        heappush(self._heap, (self._outstanding[worker], self._last_turn[worker], worker))
        if len(self._heap) > 8 * self.num_workers:
            self._renew_heap()

    def _renew_heap(self) -> None:
        self._heap = sorted(zip(self._outstanding, self._last_turn, range(self.num_workers), strict=True))


def prefix_key(token_ids: Sequence[int], *, num_tokens: int = 128) -> int:
    """A number for the beginning of a prompt: groups of the same one go where it is cached, if that costs no wait.

    Args:
        token_ids: The prompt's.
        num_tokens: How many of them count; vLLM's cache block on CPUs, the largest there is.

    Returns:
        Equal for equal beginnings, within one process.
    """
    return hash(tuple(token_ids[:num_tokens]))
