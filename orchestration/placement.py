"""Which accelerator does what: a pure function of the configuration and the number of GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from orchestration.config import RunConfig
from orchestration.errors import MachineError
from rollout_server.config import RolloutConfig

COLOCATED_MEMORY_SHARE = 0.45
"""vLLM's share of a GPU that a learner rank uses too; the rank needs its activations beside the base's weights."""


class PlacementMode(StrEnum):
    """How the rooms divide the machine."""

    CPU = "cpu"
    """No GPU: everything on the processor's cores, taking turns."""
    SPLIT = "split"
    """Rollout workers and learner ranks have GPUs of their own and work at the same time."""
    COLOCATED = "colocated"
    """A rollout worker and a learner rank share each GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """What one actor is given."""

    name: str
    """The actor's readable name, `rollout-0` or `learner-0`."""
    bundle: int
    """Index of the resource bundle it lives in; actors of one bundle share its GPUs."""
    num_gpus: float
    """GPUs it reserves; a fraction when it shares one."""
    num_cpus: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The whole division. `bundle_gpus[i]` and `bundle_cpus[i]` are what bundle i reserves."""

    mode: PlacementMode
    rollout: tuple[Slot, ...]
    learner: tuple[Slot, ...]
    bundle_gpus: tuple[float, ...]
    bundle_cpus: tuple[float, ...]

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """`cpu` or `cuda`: where models run."""
        return "cpu" if self.mode is PlacementMode.CPU else "cuda"

    @property
    def num_gpus(self) -> float:
        return sum(self.bundle_gpus)


def place(config: RunConfig, *, num_gpus: int) -> Placement:
    """Divide `num_gpus` GPUs between rollout workers and learner ranks.

    Four rollout workers and a four-rank learner on eight GPUs are split, one GPU each. One worker and one rank on a
    single GPU share it. With no GPU, or `device=cpu`, all actors share the processor.

    Raises:
        MachineError: there are fewer GPUs than the configuration needs; the message says how many.
    """
    workers, ranks, width = config.rollout.num_workers, config.learner.num_ranks, config.rollout.tensor_parallel_size
    if config.device == "cuda" and num_gpus == 0:
        raise MachineError("device=cuda, but this machine has no GPU that Ray can see; use device=cpu or device=auto")
    if config.device == "cpu" or num_gpus == 0:
        return _on_cpu(workers, ranks, width)
    needs_split = workers * width + ranks
    if config.placement == "split" or (config.placement == "auto" and num_gpus >= needs_split):
        if num_gpus < needs_split:
            raise MachineError(
                f"placement=split needs {needs_split} GPUs ({workers} rollout workers of {width}, {ranks} learner "
                f"ranks) but there are {num_gpus}; use placement=colocated or fewer rollout.num_workers / "
                f"learner.num_ranks"
            )
        return _split(workers, ranks, width)
    if width > 1:
        raise MachineError(
            f"rollout.tensor_parallel_size={width} needs GPUs of its own ({needs_split} in all), but there are "
            f"{num_gpus}; a GPU can be shared with the learner only when tensor_parallel_size is 1"
        )
    if num_gpus < max(workers, ranks):
        raise MachineError(
            f"{workers} rollout workers and {ranks} learner ranks need at least {max(workers, ranks)} GPUs but there "
            f"are {num_gpus}; lower rollout.num_workers or learner.num_ranks"
        )
    return _colocated(workers, ranks)


def effective_rollout(config: RolloutConfig, placement: Placement) -> RolloutConfig:
    """The rollout settings with vLLM's share of memory lowered where a learner rank lives on the same GPU."""
    if placement.mode is not PlacementMode.COLOCATED:
        return config
    share = min(config.gpu_memory_utilization, COLOCATED_MEMORY_SHARE)
    return config.model_copy(update={"gpu_memory_utilization": share})


def _on_cpu(workers: int, ranks: int, width: int) -> Placement:
    if width > 1:
        raise MachineError(f"rollout.tensor_parallel_size={width} needs GPUs; on CPUs it must be 1")
    # Actors take turns on the cores, so they reserve none: a two-core laptop must be able to hold them all.
    names = [f"rollout-{i}" for i in range(workers)], [f"learner-{i}" for i in range(ranks)]
    rollout, learner = (tuple(Slot(name=n, bundle=0, num_gpus=0.0, num_cpus=0.0) for n in group) for group in names)
    return Placement(mode=PlacementMode.CPU, rollout=rollout, learner=learner, bundle_gpus=(0.0,), bundle_cpus=(1.0,))


def _split(workers: int, ranks: int, width: int) -> Placement:
    rollout = tuple(Slot(name=f"rollout-{i}", bundle=i, num_gpus=float(width), num_cpus=1.0) for i in range(workers))
    learner = tuple(Slot(name=f"learner-{i}", bundle=workers + i, num_gpus=1.0, num_cpus=1.0) for i in range(ranks))
    return Placement(
        mode=PlacementMode.SPLIT,
        rollout=rollout,
        learner=learner,
        bundle_gpus=(float(width),) * workers + (1.0,) * ranks,
        bundle_cpus=(1.0,) * (workers + ranks),
    )


def _colocated(workers: int, ranks: int) -> Placement:
    """Worker i and rank i share GPU i."""
    num_bundles = max(workers, ranks)
    names = [f"rollout-{i}" for i in range(workers)], [f"learner-{i}" for i in range(ranks)]
    rollout, learner = (
        tuple(Slot(name=name, bundle=i, num_gpus=0.5, num_cpus=1.0) for i, name in enumerate(group)) for group in names
    )
    return Placement(
        mode=PlacementMode.COLOCATED,
        rollout=rollout,
        learner=learner,
        bundle_gpus=(1.0,) * num_bundles,
        bundle_cpus=(2.0,) * num_bundles,
    )
