"""Whether a run fits on the hosts that a place gives it. Pure, and loads no heavy library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from orchestration.errors import ConfigError, MachineError
from orchestration.machine.placement import PlacementMode, place, sized
from orchestration.settings.config import RunConfig
from orchestration.submit.common.instances import LEAST_CAPABILITY, gpu_kind

LEARNER, ROLLOUT, REWARD = "learner", "rollout", "reward"
"""Roles of hosts that are kept for one room, and the Ray resources that mark them."""
ALL_ROLES = ""
"""Of hosts that do everything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hosts:
    """Hosts of one kind."""

    name: str
    """For messages."""
    gpus: int
    """Of each."""
    count: int

    @property
    def total(self) -> int:
        return self.gpus * self.count


def sized_on(run: RunConfig, hosts: Mapping[str, Hosts]) -> RunConfig:
    """The run with as many workers and ranks as it will have on hosts, by their roles."""
    return sized(
        run,
        num_gpus=sum(group.total for group in hosts.values()),
        on_a_host=max(group.gpus for group in hosts.values()),
        **{f"{role}_gpus": group.total for role, group in hosts.items() if role != ALL_ROLES},
    )


def check_kind(kind: str, run: RunConfig) -> None:
    """Refuse a run that cannot compute on hosts of a type.

    Args:
        kind: ml.FAMILY.SIZE.
        run: As it was submitted.

    Raises:
        ConfigError: Naming the type, what it lacks, and what to take.
    """
    if run.device == "cpu":
        return
    if re.match(r"ml\.(trn|inf)", kind):
        raise ConfigError(f"{kind} has no GPU but AWS's own chips, which nothing here runs on; take ml.g5.xlarge or so")
    gpu = gpu_kind(kind)
    if gpu is None:
        return
    has = f"{kind} has the GPU {gpu.name} with compute capability {_dotted(gpu.capability)}"
    if gpu.capability < LEAST_CAPABILITY:
        raise ConfigError(f"{has}, and the image's CUDA 13 needs {_dotted(LEAST_CAPABILITY)}; take ml.g5.xlarge or so")
    if gpu.capability < (8, 0) and {run.rollout.dtype, run.learner.dtype} & {"auto", "bfloat16"}:
        raise ConfigError(
            f"{has}, and bfloat16 needs 8.0; set rollout.dtype=float16 and learner.dtype=float32, or take another type"
        )


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def division_of_gpus(run: RunConfig, hosts: Mapping[str, Hosts]) -> str:
    """Who gets which GPUs, in words.

    Args:
        run: As it was submitted.
        hosts: All that it may use: those of `ALL_ROLES`, or of `LEARNER` and `ROLLOUT`.

    Raises:
        ConfigError: The hosts have too few GPUs, or have them in the wrong places.
    """
    run, total = sized_on(run, hosts), sum(group.total for group in hosts.values())
    where = ", ".join(group.name for group in hosts.values())
    if ROLLOUT in hosts:
        _check_groups(run, hosts)
        run = run.model_copy(update={"rollout_nodes": ROLLOUT, "learner_nodes": LEARNER})
    try:
        placement = place(run, num_gpus=total)
    except MachineError as error:
        raise ConfigError(f"the recipe does not fit on {where} ({total} GPUs): {error}") from error
    if placement.mode is PlacementMode.SPLIT:
        _refuse_workers_on_two_hosts(run, hosts.get(ROLLOUT) or hosts[ALL_ROLES])
    return f"{total} GPUs: {placement.describe(total)}"


def _check_groups(run: RunConfig, hosts: Mapping[str, Hosts]) -> None:
    if run.placement == "colocated":
        raise ConfigError(
            "placement=colocated shares GPUs between rooms that have hosts of their own; use placement=split, or hosts "
            "that do everything"
        )
    without = [group.name for group in hosts.values() if not group.gpus]
    if run.device != "cpu" and len(without) == 1:
        raise ConfigError(f"{without[0]} has no GPU, and the other hosts have; take a type with GPUs, or device=cpu")
    if run.device != "cpu" and not without and (run.learner.num_ranks or 1) > hosts[LEARNER].total:
        raise ConfigError(
            f"learner.num_ranks={run.learner.num_ranks} needs as many GPUs, and {hosts[LEARNER].name} has "
            f"{hosts[LEARNER].total}; lower it, or take more hosts"
        )


def _refuse_workers_on_two_hosts(run: RunConfig, hosts: Hosts) -> None:
    width, workers = run.rollout.tensor_parallel_size, run.rollout.min_workers or run.rollout.num_workers or 1
    if workers > (fitting := hosts.gpus // width * hosts.count):
        raise ConfigError(
            f"rollout.num_workers={workers} with tensor_parallel_size={width} needs {workers * width} GPUs, {width} of "
            f"a worker on one host, and {hosts.name} takes {fitting} such workers; lower either, or take more hosts"
        )
