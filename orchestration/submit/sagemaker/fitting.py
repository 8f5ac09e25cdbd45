"""Whether a run fits on the hosts of a training job. Pure, and loads no heavy library."""

from __future__ import annotations

import re
from collections.abc import Mapping

from orchestration.errors import ConfigError, MachineError
from orchestration.machine.placement import place, sized
from orchestration.settings.config import RunConfig
from orchestration.settings.sagemaker import InstanceGroup, SageMakerConfig
from orchestration.submit.common.instances import (
    EFA_ENVIRONMENT,
    INSTANCES,
    LEAST_CAPABILITY,
    gpu_kind,
    refuse_workers_on_two_hosts,
)


def num_gpus(instance_type: str) -> int | None:
    """GPUs of one host; None for a GPU type whose figures are not known here.

    Trainium and Inferentia count as none: nothing here runs on them.
    """
    if instance_type in INSTANCES:
        return INSTANCES[instance_type].gpus
    return None if re.match(r"ml\.[pg]\d", instance_type) else 0


def groups_by_role(settings: SageMakerConfig) -> dict[str, InstanceGroup]:
    """The groups of a heterogeneous cluster, the learner's first: the head is on its first host."""
    order = ("learner", "rollout", "reward")
    return {group.role: group for group in sorted(settings.instance_groups, key=lambda group: order.index(group.role))}


def instance_kinds(settings: SageMakerConfig) -> dict[str, tuple[str, int]]:
    """Type and number of the hosts, by role; of hosts that do everything, under no name."""
    if settings.instance_type is not None:
        return {"": (settings.instance_type, settings.instance_count)}
    return {role: (group.instance_type, group.instance_count) for role, group in groups_by_role(settings).items()}


def expected_gpus(settings: SageMakerConfig, run: RunConfig) -> dict[str, int]:
    """GPUs that each host must be seen to have, by role as `instance_kinds`; of a type that is not known, one."""
    if run.device == "cpu":
        return {}
    found = {role: num_gpus(kind) for role, (kind, _) in instance_kinds(settings).items() if role != "reward"}
    return {role: 1 if gpus is None else gpus for role, gpus in found.items() if gpus != 0}


def learner_on_head(settings: SageMakerConfig, run: RunConfig) -> bool:
    """Whether a learner that might come to several hosts can be held on the head, where the run folder is.

    Elsewhere its checkpoints lie on the disk of another host. Not held are ranks that need more than one host, or that
    share GPUs with rollout workers.
    """
    groups, run = groups_by_role(settings), sized_there(settings, run)
    kind, hosts = instance_kinds(settings)["learner" if groups else ""]
    on_a_host = num_gpus(kind)
    if hosts < 2 or on_a_host is None:
        return False
    if on_a_host == 0 or run.device == "cpu":
        return True
    shared = not groups and place(run, num_gpus=on_a_host * hosts).mode != "split"
    return not shared and (run.learner.num_ranks or 1) <= on_a_host


def efa_environment(settings: SageMakerConfig) -> dict[str, str]:
    """What NCCL needs where GPU hosts with EFA speak to each other; nothing within one host, which has NVSwitch."""
    kinds = instance_kinds(settings).values()
    num_hosts = sum(count for kind, count in kinds if kind in INSTANCES and INSTANCES[kind].efa)
    return dict(EFA_ENVIRONMENT) if num_hosts > 1 else {}


def check_gpu_kinds(settings: SageMakerConfig, run: RunConfig) -> None:
    """Raises ConfigError for GPUs that what the image holds cannot compute on."""
    for role in expected_gpus(settings, run):
        kind, _ = instance_kinds(settings)[role]
        gpu = gpu_kind(kind)
        if gpu is None:
            continue
        capability = ".".join(map(str, gpu.capability))
        if gpu.capability < LEAST_CAPABILITY:
            raise ConfigError(
                f"{kind} has the GPU {gpu.name} with compute capability {capability}, and the image's CUDA 13 needs "
                f"{'.'.join(map(str, LEAST_CAPABILITY))}; take ml.g5.xlarge, ml.p4d.24xlarge or the like"
            )
        dtypes = {run.rollout.dtype, run.learner.dtype}
        if gpu.capability < (8, 0) and dtypes & {"auto", "bfloat16"}:
            raise ConfigError(
                f"{kind} has the GPU {gpu.name} with compute capability {capability}, and bfloat16 needs 8.0; set "
                f"rollout.dtype=float16 and learner.dtype=float32, or take another type"
            )


def notes(settings: SageMakerConfig, run: RunConfig) -> tuple[str, ...]:
    """Who gets which GPUs, so that idle ones are seen before they are paid for, and what is not known of the hosts."""
    kinds, gpus = instance_kinds(settings), expected_gpus(settings, run)
    said = []
    if settings.spot and not (run.save_every or run.save_minutes):
        said.append("spot hosts vanish at two minutes' notice, and save_minutes=0 keeps nothing for that")
    if total := known_gpus(settings, run):
        said.append(f"{total} GPUs: {place(sized_there(settings, run), num_gpus=total).describe(total)}")
    said += [
        f"{kind} has the GPU {gpu.name}: the image's CUDA 13 needs its hosts to have NVIDIA's driver R580 or later, or "
        f"R535 or later by the compatibility libraries, which the image has and the hosts turn on"
        for kind in sorted({kinds[role][0] for role in gpus})
        if (gpu := gpu_kind(kind)) is not None
    ]
    return tuple(said)


def known_gpus(settings: SageMakerConfig, run: RunConfig) -> int:
    """Of all hosts that the run may use; 0 without any, or where a type's figures are not known here."""
    kinds, gpus = instance_kinds(settings), expected_gpus(settings, run)
    if any(num_gpus(kinds[role][0]) is None for role in gpus):
        return 0
    return sum(each * kinds[role][1] for role, each in gpus.items())


def sized_there(settings: SageMakerConfig, run: RunConfig) -> RunConfig:
    """The run with as many workers and ranks as it will have on those hosts."""
    if not (total := known_gpus(settings, run)):
        return run
    gpus = expected_gpus(settings, run)
    of_role = {f"{role}_gpus": each * instance_kinds(settings)[role][1] for role, each in gpus.items() if role}
    return sized(run, num_gpus=total, on_a_host=max(gpus.values()), **of_role)


def check_capacity(settings: SageMakerConfig, run: RunConfig) -> None:
    """Raises ConfigError when the run needs more GPUs than its hosts have, or has them on the wrong hosts."""
    groups, run = groups_by_role(settings), sized_there(settings, run)
    if groups:
        _check_groups(groups, run)
        _check_learner(settings, run)
        return
    assert settings.instance_type is not None, "checked before"
    on_a_host = num_gpus(settings.instance_type)
    if on_a_host is None:
        return
    where = f"{settings.instance_count} × {settings.instance_type}"
    total = on_a_host * settings.instance_count
    try:
        mode = place(run, num_gpus=total).mode
    except MachineError as error:
        raise ConfigError(f"the recipe does not fit on {where} ({total} GPUs): {error}") from error
    if mode == "split":
        refuse_workers_on_two_hosts(run, gpus=on_a_host, hosts=settings.instance_count, where=where)
    _check_learner(settings, run)


def _check_learner(settings: SageMakerConfig, run: RunConfig) -> None:
    """Hosts of a training job share no disk, so what the ranks save of a state has to be saved on one."""
    kind, num_hosts = instance_kinds(settings)["learner" if settings.instance_groups else ""]
    if num_gpus(kind) is None:
        return
    if num_hosts > 1 and run.learner_nodes is None and not learner_on_head(settings, run):
        raise ConfigError(
            f"the learner's {run.learner.num_ranks} ranks (placement={run.placement}) would be on several hosts, which "
            f"share no disk for its checkpoints; use placement=split and as many learner.num_ranks as one host has GPUs"
        )


def _check_groups(groups: Mapping[str, InstanceGroup], run: RunConfig) -> None:
    gpus = {role: num_gpus(group.instance_type) for role, group in groups.items()}
    learner, rollout = groups["learner"], groups["rollout"]
    without = [group for group in (learner, rollout) if gpus[group.role] == 0]
    if run.device == "cpu" or (len(without) == 2 and run.device == "auto"):
        return
    if without:
        raise ConfigError(
            f"the {without[0].role} group's {without[0].instance_type} has no GPU, which device={run.device} needs "
            f"there; choose a type with GPUs, or device=cpu for the whole run"
        )
    on_learner = gpus["learner"]
    if on_learner is not None and (run.learner.num_ranks or 1) > on_learner * learner.instance_count:
        raise ConfigError(
            f"learner.num_ranks={run.learner.num_ranks} needs as many GPUs, and the learner group's "
            f"{learner.instance_count} × {learner.instance_type} has {on_learner * learner.instance_count}; lower it, "
            f"or enlarge the group"
        )
    on_rollout = gpus["rollout"]
    if on_rollout is not None:
        where = f"the rollout group's {rollout.instance_type} × {rollout.instance_count}"
        refuse_workers_on_two_hosts(run, gpus=on_rollout, hosts=rollout.instance_count, where=where)
