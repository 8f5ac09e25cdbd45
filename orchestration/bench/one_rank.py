"""A learner of one rank, in this process and alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from learner.config import LearnerConfig

if TYPE_CHECKING:
    from learner.worker import LearnerRank


@contextmanager
def one_rank(model_path: str, config: LearnerConfig, device: str, *, seed: int = 0) -> Iterator[LearnerRank]:
    """A started rank; it ends with the block."""
    from learner.worker import LearnerRank

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    rank = LearnerRank(
        rank=0,
        world_size=1,
        master_addr="127.0.0.1",
        master_port=port,
        model_path=model_path,
        config=config,
        temperature=1.0,
        seed=seed,
        device=device,
    )
    try:
        rank.start()
        yield rank
    finally:
        rank.shutdown()
