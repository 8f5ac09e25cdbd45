"""What a model answered, and how it was judged: one row an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Ended = Literal["end", "stop", "length", "turns", "time", "failed"]
"""end: by the model's end token, or by an episode's environment; stop: cut at a stop string, beyond which it went on;
length: cut off by the limit. Of episodes alone: turns, time: it had as many, or as long, as one may; failed: its
environment failed."""

BASE, ADAPTER = "base", "adapter"
HELD_OUT, TRAIN = "held_out", "train"
GREEDY, SAMPLED = "greedy", "sampled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One completion of one problem."""

    side: str
    """`base` or `adapter`."""
    part: str
    """`held_out` or `train`: whose problem it is."""
    draw: str
    """`greedy` or `sampled`."""
    problem_id: str
    category: str
    sample: int
    """Which of the problem's completions, from 0."""
    text: str
    """What is judged: up to the first stop."""
    num_tokens: int
    """Up to the end, a stop token or the limit; a stop string may stand before."""
    ended: Ended
    scores: Mapping[str, float | None]
    """By judge; None: it could not be scored."""
    run_on: str = ""
    """The whole completion, where it was drawn without stops."""

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Answer:
        """From what `row` gave."""
        return cls(**row)
