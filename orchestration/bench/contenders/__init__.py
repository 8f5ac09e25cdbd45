"""The contenders of `rlvr bench learner`, each in a process of its own: ours, TRL's trainers, and the bare product."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from learner.types import ScoredGroup
from orchestration.bench.contenders.common import SEED, Memory, learner_config, warm_up_batch
from orchestration.bench.contenders.common import Setting as Setting
from orchestration.bench.contenders.trl_async import trl_async
from orchestration.bench.contenders.trl_trainer import trl
from orchestration.bench.one_rank import one_rank

_ANY_AGE = 2**31
"""The same groups are learned from again and again: how old they are by then is no concern of a measurement."""


def serve(name: str, setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any) -> None:
    """Process entry: load, warm up, say so, then one step for every message, until the other side closes.

    Args:
        name: One of `CONTENDERS`.
        setting: The same for all of them.
        groups: The batch of every measured step.
        connection: Takes ("ready", what to say of it), then ("done", figures) for every message, or ("failed", why).
    """
    import torch

    torch.set_num_threads(setting.threads)
    for name_of_a_launcher in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name_of_a_launcher, None)  # a contender is alone, whatever the bench itself was started by
    try:
        CONTENDERS[name](setting, groups, connection)
    except (EOFError, BrokenPipeError):
        return  # the parent has seen enough
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))


def _ours(setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any, *, share_prefixes: bool) -> None:
    import torch

    from learner.tree.attention import kind_on

    config = learner_config(setting, share_prefixes=share_prefixes)
    with one_rank(setting.model_path, config, setting.device, seed=SEED) as rank:
        memory = Memory(setting.device)

        def update(batch: Sequence[ScoredGroup]) -> float:
            return rank.update(batch, max_staleness=_ANY_AGE).values["grad_norm"]

        update(warm_up_batch(groups, setting.device))
        connection.send(("ready", {"attention": kind_on(torch.device(setting.device))}))
        while True:
            connection.recv()
            with memory.measured() as measured:
                grad_norm = update(groups)
            connection.send(("done", {**measured, "grad_norm": grad_norm}))


def _tree_on(setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any) -> None:
    _ours(setting, groups, connection, share_prefixes=True)


def _tree_off(setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any) -> None:
    _ours(setting, groups, connection, share_prefixes=False)


def _matmul(setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any) -> None:
    """The speed of a large product in the model's precision: the best of several, multiply and add counted as two."""
    import torch

    size = 2048 if setting.device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=setting.device, dtype=getattr(torch, setting.dtype)) for _ in range(2))
    out = torch.empty_like(a)
    memory = Memory(setting.device)

    def best() -> float:
        found = []
        for _ in range(8):
            with memory.measured() as measured:
                torch.mm(a, b, out=out)
            found.append(measured["seconds"])
        return min(found)

    best()
    connection.send(("ready", {}))
    while True:
        connection.recv()
        connection.send(("done", {"flops": 2 * size**3 / best()}))


CONTENDERS: dict[str, Callable[[Setting, tuple[ScoredGroup, ...], Any], None]] = {
    "matmul": _matmul,
    "tree_on": _tree_on,
    "tree_off": _tree_off,
    "trl_async": trl_async,
    "trl": trl,
}
