"""A learner of one rank, in this process and alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from learner.config import LearnerConfig

if TYPE_CHECKING:
    from learner.worker import LearnerRank


@contextmanager
def one_rank(model_path: str, config: LearnerConfig, device: str, *, seed: int = 0) -> Iterator[LearnerRank]:
    """A started rank; it ends with the block."""
    from orchestration.cluster.local_learner import rank_alone

    rank = rank_alone(model_path, config=config, temperature=1.0, seed=seed, device=device)
    try:
        rank.start()
        yield rank
    finally:
        rank.shutdown()
