"""Which accelerator does what: a pure function of the configuration and the number of GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from orchestration.errors import MachineError
from orchestration.settings.config import RunConfig
from rollout_server.config import RolloutConfig

COLOCATED_MEMORY_SHARE = 0.45
"""vLLM's share of a GPU that a learner rank uses too; the rank needs its activations beside the base's weights."""


MARK = 0.001
"""What an actor takes of the resource that marks its nodes (Ray counts in steps of 0.0001): a host that carries 1 of it
holds any number of actors."""


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
    """Index of the resource bundle it lives in; actors of one bundle share its GPUs. One that is not reserved: none."""
    num_gpus: float
    """GPUs it reserves; a fraction when it shares one."""
    num_cpus: float
    marks: Mapping[str, float] = field(default_factory=dict)
    """Ray resources that only the nodes meant for it have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The whole division. `bundle_gpus[i]`, `bundle_cpus[i]` and `bundle_marks[i]` are what bundle i reserves."""

    mode: PlacementMode
    rollout: tuple[Slot, ...]
    learner: tuple[Slot, ...]
    bundle_gpus: tuple[float, ...]
    bundle_cpus: tuple[float, ...]
    bundle_marks: tuple[Mapping[str, float], ...]
    least_workers: int | None = None
    """An elastic run begins with so many of its rollout workers, and the bundle of each is reserved by itself. None:
    all are there from the start, and all bundles are reserved together."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """`cpu` or `cuda`: where models run."""
        return "cpu" if self.mode is PlacementMode.CPU else "cuda"

    @property
    def num_gpus(self) -> float:
        return sum(self.bundle_gpus)

    def describe(self, num_gpus: int) -> str:
        """Who has how many of `num_gpus` GPUs, and how many are left over, in a few words."""
        workers, ranks = _counted(len(self.rollout), "rollout worker"), _counted(len(self.learner), "learner rank")
        if self.least_workers is not None:
            workers = f"{self.least_workers} to {workers}"
        if self.mode is PlacementMode.CPU:
            return f"{workers} and {ranks} on the processor"
        if self.mode is PlacementMode.COLOCATED:
            told = f"{workers} and {ranks} share {_counted(int(self.num_gpus), 'GPU')}"
        else:
            sampling = int(sum(slot.num_gpus for slot in self.rollout))
            told = f"{workers} on {_counted(sampling, 'GPU')}, {ranks} on {_counted(len(self.learner), 'GPU')}"
        return f"{told}, {idle} of {num_gpus} idle" if (idle := num_gpus - int(self.num_gpus)) > 0 else told


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def sized(
    config: RunConfig,
    *,
    num_gpus: int,
    on_a_host: int | None = None,
    rollout_gpus: int | None = None,
    learner_gpus: int | None = None,
) -> RunConfig:
    """The run with a number of rollout workers and of learner ranks where its settings leave them open.

    Half of the GPUs learn, rounded down, but no more than one host has (the ranks' checkpoints lie on one disk); the
    others sample, `tensor_parallel_size` of them for a worker, and what is too few for one more worker learns too. On
    one GPU, and with `placement=colocated`, each GPU has a worker and a rank. There are no more ranks than groups in a
    batch, and no more workers than groups under way. Without GPUs there is one of each. An elastic run has as many
    workers as these GPUs let it have, within its bounds.

    Args:
        config: The run.
        num_gpus: In all.
        on_a_host: GPUs of the host that has most; all of them if unset.
        rollout_gpus, learner_gpus: What there is on the nodes that the run keeps for its workers and its ranks; any of
            the GPUs if unset.
    """
    workers, ranks = config.rollout.num_workers, config.learner.num_ranks
    if workers is None or ranks is None:
        workers, ranks = _counts(
            config, num_gpus, num_gpus if on_a_host is None else on_a_host, rollout_gpus, learner_gpus
        )
    return config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update={"num_workers": workers}),
            "learner": config.learner.model_copy(update={"num_ranks": ranks}),
        }
    )


def _counts(
    config: RunConfig, num_gpus: int, on_a_host: int, rollout_gpus: int | None, learner_gpus: int | None
) -> tuple[int, int]:
    """Of workers and ranks, one of which at least is open."""
    workers, ranks, width = config.rollout.num_workers, config.learner.num_ranks, config.rollout.tensor_parallel_size
    most_ranks = min(config.prompts_per_step, on_a_host)
    most_workers = config.prompts_per_step * (config.max_staleness + 1)
    if num_gpus == 0 or config.device == "cpu":
        return workers or config.rollout.workers_within(1), ranks or 1
    if config.placement == "colocated" or num_gpus == 1:
        return workers or min(ranks or num_gpus, most_workers), ranks or min(workers or num_gpus, most_ranks)
    for_learner = num_gpus // 2 if learner_gpus is None else learner_gpus
    if workers is None:
        learning = ranks or max(1, min(for_learner, most_ranks))
        for_rollout = num_gpus - learning if rollout_gpus is None else rollout_gpus
        workers = config.rollout.workers_within(max(1, min(for_rollout // width, most_workers)))
    if ranks is None:
        left = num_gpus - workers * width if learner_gpus is None else learner_gpus
        # Too few for both: they share, where they can.
        ranks = max(1, min(left if left > 0 else workers, most_ranks))
    return workers, ranks


def refuse_unseen_gpus(config: RunConfig, *, num_gpus: int, signs: Sequence[str]) -> None:
    """Refuse to train on the processor of a machine whose GPUs nobody sees: it costs its price and takes for ever.

    Args:
        config: The run; `device=cpu` says that this is meant.
        num_gpus: That are seen.
        signs: What says that there are some (`MachineFacts.gpu_signs`).

    Raises:
        MachineError: it names the signs.
    """
    if config.device == "auto" and num_gpus == 0 and signs:
        raise MachineError(
            f"device=auto finds no GPU, but this machine should have some ({', '.join(signs)}); see what `nvidia-smi` "
            f"says and whether the container was given them (docker run --gpus all), or set device=cpu to do without"
        )


def place(config: RunConfig, *, num_gpus: int) -> Placement:
    """Divide `num_gpus` GPUs between rollout workers and learner ranks.

    Four rollout workers and a four-rank learner on eight GPUs are split, one GPU each. One worker and one rank on a
    single GPU share it. With no GPU, or `device=cpu`, all actors share the processor. Numbers that the settings leave
    open are those of `sized`.

    Raises:
        MachineError: there are fewer GPUs than the configuration needs; the message says how many. Or what it asks of
            them cannot be had.
    """
    config = sized(config, num_gpus=num_gpus)
    (workers, ranks), width = _numbers(config), config.rollout.tensor_parallel_size
    if elastic := config.rollout.elastic:
        workers = config.rollout.min_workers or workers
    if config.device == "cuda" and num_gpus == 0:
        raise MachineError("device=cuda, but this machine has no GPU that Ray can see; use device=cpu or device=auto")
    if config.device == "cpu" or num_gpus == 0:
        return _on_cpu(config)
    if config.rollout.dtype == "float32":  # its kernels assert so, at the first pass
        raise MachineError(
            "rollout.dtype=float32 cannot be served on GPUs, where vLLM multiplies adapters in 16 bits: use auto "
            "(bfloat16) or float16"
        )
    needs_split = workers * width + ranks
    if elastic or config.placement == "split" or (config.placement == "auto" and num_gpus >= needs_split):
        if num_gpus < needs_split:
            raise MachineError(
                f"placement=split needs {needs_split} GPUs ({workers} rollout workers of {width}, {ranks} learner "
                f"ranks) but there are {num_gpus}; use "
                + ("fewer rollout.min_workers" if elastic else "placement=colocated or fewer rollout.num_workers")
                + " / learner.num_ranks"
            )
        return _split(config)
    if config.rollout_nodes != config.learner_nodes:
        raise MachineError(
            f"rollout_nodes={config.rollout_nodes} and learner_nodes={config.learner_nodes} need {needs_split} GPUs, "
            f"none of them shared, but there are {num_gpus}; lower rollout.num_workers or learner.num_ranks"
        )
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
    return _colocated(config)


def with_workers(config: RunConfig, num_workers: int) -> RunConfig:
    """The run with so many rollout workers from start to end."""
    fixed = {"num_workers": num_workers, "min_workers": None, "max_workers": None}
    return config.model_copy(update={"rollout": config.rollout.model_copy(update=fixed)})


def effective_rollout(config: RolloutConfig, placement: Placement) -> RolloutConfig:
    """The rollout settings with vLLM's share of memory lowered where a learner rank lives on the same GPU."""
    if placement.mode is not PlacementMode.COLOCATED:
        return config
    share = min(config.gpu_memory_utilization, COLOCATED_MEMORY_SHARE)
    return config.model_copy(update={"gpu_memory_utilization": share})


def _numbers(config: RunConfig) -> tuple[int, int]:
    """Of workers, the most there may be, and of ranks, in a run that is `sized`."""
    workers, ranks = config.rollout.num_workers, config.learner.num_ranks
    assert workers is not None
    assert ranks is not None
    return config.rollout.max_workers or workers, ranks


def _least_workers(config: RunConfig) -> int | None:
    """As `Placement.least_workers`."""
    return config.rollout.min_workers or config.rollout.num_workers if config.rollout.elastic else None


def _marks(nodes: str | None) -> dict[str, float]:
    return {} if nodes is None else {nodes: MARK}


def _slots(config: RunConfig, *, num_gpus: float, num_cpus: float) -> tuple[tuple[Slot, ...], tuple[Slot, ...]]:
    """Those of the rollout workers and of the learner ranks, each in the bundle of its own number."""
    workers, ranks = _numbers(config)
    rooms = (("rollout", workers, config.rollout_nodes), ("learner", ranks, config.learner_nodes))
    rollout, learner = (
        tuple(
            Slot(name=f"{room}-{i}", bundle=i, num_gpus=num_gpus, num_cpus=num_cpus, marks=_marks(nodes))
            for i in range(count)
        )
        for room, count, nodes in rooms
    )
    return rollout, learner


def _on_cpu(config: RunConfig) -> Placement:
    if config.rollout.tensor_parallel_size > 1:
        width = config.rollout.tensor_parallel_size
        raise MachineError(f"rollout.tensor_parallel_size={width} needs GPUs; on CPUs it must be 1")
    # Actors take turns on the cores, so they reserve none: a two-core laptop must be able to hold them all.
    rollout, learner = _slots(config, num_gpus=0.0, num_cpus=0.0)
    bundled: tuple[Slot, ...] = ()
    if config.rollout.elastic:  # a core each: what else would say how many of them a node has room for?
        bundled = rollout = tuple(replace(slot, num_cpus=1.0) for slot in rollout)
        learner = tuple(replace(slot, bundle=slot.bundle + len(rollout)) for slot in learner)
    return Placement(
        mode=PlacementMode.CPU,
        rollout=rollout,
        learner=learner,
        bundle_gpus=tuple(slot.num_gpus for slot in bundled),
        bundle_cpus=tuple(slot.num_cpus for slot in bundled),
        bundle_marks=tuple(slot.marks for slot in bundled),
        least_workers=_least_workers(config),
    )


def _split(config: RunConfig) -> Placement:
    """Rollout worker i has bundle i, and the learner's ranks have those behind."""
    (workers, _), width = _numbers(config), float(config.rollout.tensor_parallel_size)
    rollout, learner = _slots(config, num_gpus=1.0, num_cpus=1.0)
    rollout = tuple(replace(slot, num_gpus=width) for slot in rollout)
    learner = tuple(replace(slot, bundle=slot.bundle + workers) for slot in learner)
    slots = (*rollout, *learner)
    return Placement(
        mode=PlacementMode.SPLIT,
        rollout=rollout,
        learner=learner,
        bundle_gpus=tuple(slot.num_gpus for slot in slots),
        bundle_cpus=tuple(slot.num_cpus for slot in slots),
        bundle_marks=tuple(slot.marks for slot in slots),
        least_workers=_least_workers(config),
    )


def _colocated(config: RunConfig) -> Placement:
    """Worker i and rank i share GPU i."""
    rollout, learner = _slots(config, num_gpus=0.5, num_cpus=1.0)
    num_bundles = max(len(rollout), len(learner))
    return Placement(
        mode=PlacementMode.COLOCATED,
        rollout=rollout,
        learner=learner,
        bundle_gpus=(1.0,) * num_bundles,
        bundle_cpus=(2.0,) * num_bundles,
        bundle_marks=({name: 2 * mark for name, mark in _marks(config.rollout_nodes).items()},) * num_bundles,
    )
