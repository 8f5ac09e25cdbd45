"""The tool `search`: the passages of a local file that fit a query best, by BM25.

The score of a passage d for a query q, with N passages, n_t of them with the term t, and lengths in terms:

    Σ_t∈q  ln(1 + (N − n_t + ½) / (n_t + ½)) · f_td (k + 1) / (f_td + k (1 − b + b·|d| / mean |d|)),   k = 1.2, b = 0.75

(Robertson and Zaragoza, 2009, with the logarithm that is never negative.)
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestration.errors import ConfigError

_K, _B = 1.2, 0.75
_WORD = re.compile(r"\w+")


class Search:
    """An index over passages; made once a process for each state of the file."""

    def __init__(self, passages: list[str]) -> None:
        self._passages = passages
        counts = [Counter(_terms(passage)) for passage in passages]
        mean = sum(count.total() for count in counts) / len(counts)
        places: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, count in enumerate(counts):
            damping = _K * (1 - _B + _B * count.total() / (mean or 1))
            for term, number in count.items():
                places[term].append((place, number * (_K + 1) / (number + damping)))
        self._places = dict(places)

    def search(self, query: str) -> str:
        """Search the passages that are at hand.

        Args:
            query: A few words.

        Returns:
            The passages that fit best.
        """
        found = self.best(query, 3)
        return "\n".join(f"[{rank}] {passage}" for rank, passage in enumerate(found, 1)) or "nothing was found"

    def best(self, query: str, number: int) -> list[str]:
        """At most so many passages, the best first; only such as have a word of the query."""
        scores: dict[int, float] = defaultdict(float)
        for term in dict.fromkeys(_terms(query)):
            found = self._places.get(term, [])
            rarity = math.log(1 + (len(self._passages) - len(found) + 0.5) / (len(found) + 0.5))
            for place, weight in found:
                scores[place] += rarity * weight
        ranked = sorted(scores, key=lambda place: (-scores[place], place))
        return [self._passages[place] for place in ranked[:number]]


def open_search(corpus: str | None) -> Search:
    """The index of a file: a text with a passage a line, or JSON lines with `text` and perhaps `title`.

    Raises ConfigError where it is missing or empty.
    """
    if corpus is None:
        raise ConfigError("the tool 'search' looks in a file: set data.corpus=FILE, a passage a line")
    path = Path(corpus)
    try:
        return _made(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"data.corpus={corpus!r} cannot be read: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=4)
def _made(path: Path, mtime_ns: int) -> Search:
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not lines:
        raise ValueError("it has no passage")
    return Search([_passage(json.loads(line)) for line in lines] if path.suffix == ".jsonl" else lines)


def _passage(row: dict[str, Any]) -> str:
    return f"{row['title']}: {row['text']}" if row.get("title") else str(row["text"])


def _terms(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
