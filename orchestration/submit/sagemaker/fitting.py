"""Whether a run fits on the hosts of a training job. Pure, and loads no heavy library."""

from __future__ import annotations

import re

from orchestration.errors import ConfigError
from orchestration.machine.placement import PlacementMode, place
from orchestration.settings.config import RunConfig
from orchestration.settings.sagemaker import SageMakerConfig
from orchestration.submit.common.hosts import (
    ALL_ROLES,
    LEARNER,
    REWARD,
    ROLLOUT,
    Hosts,
    check_kind,
    division_of_gpus,
    sized_on,
)
from orchestration.submit.common.instances import EFA_ENVIRONMENT, INSTANCES, gpu_kind


def num_gpus(instance_type: str) -> int | None:
    """GPUs of one host; None for a GPU type whose figures are not known here."""
    if instance_type in INSTANCES:
        return INSTANCES[instance_type].gpus
    return None if re.match(r"ml\.[pg]\d", instance_type) else 0


def instance_kinds(settings: SageMakerConfig) -> dict[str, tuple[str, int]]:
    """Type and number of the hosts, by role; the learner's first, as the head is on its first host."""
    if settings.instance_type is not None:
        return {ALL_ROLES: (settings.instance_type, settings.instance_count)}
    kinds = {str(group.role): (group.instance_type, group.instance_count) for group in settings.instance_groups}
    return {role: kinds[role] for role in (LEARNER, ROLLOUT, REWARD) if role in kinds}


def expected_gpus(settings: SageMakerConfig, run: RunConfig) -> dict[str, int]:
    """GPUs that each host must be seen to have, by role; of a type that is not known, one."""
    if run.device == "cpu":
        return {}
    found = {role: num_gpus(kind) for role, (kind, _) in instance_kinds(settings).items() if role != REWARD}
    return {role: 1 if gpus is None else gpus for role, gpus in found.items() if gpus != 0}


def learner_on_head(settings: SageMakerConfig, run: RunConfig) -> bool:
    """Whether a learner that might come to several hosts can be held on the head, where the run folder is.

    Elsewhere its checkpoints lie on the disk of another host. Not held are ranks that need more than one host, or that
    share GPUs with rollout workers.
    """
    hosts = _known_hosts(settings)
    learners = hosts.get(ALL_ROLES) or hosts.get(LEARNER)
    if learners is None or learners.count < 2:
        return False
    if learners.gpus == 0 or run.device == "cpu":
        return True
    run = _sized_there(settings, run)
    shared = ALL_ROLES in hosts and place(run, num_gpus=learners.total).mode is not PlacementMode.SPLIT
    return not shared and (run.learner.num_ranks or 1) <= learners.gpus


def efa_environment(settings: SageMakerConfig) -> dict[str, str]:
    """What NCCL needs where GPU hosts with EFA speak to each other; nothing within one host, which has NVSwitch."""
    kinds = instance_kinds(settings).values()
    num_hosts = sum(count for kind, count in kinds if kind in INSTANCES and INSTANCES[kind].efa)
    return dict(EFA_ENVIRONMENT) if num_hosts > 1 else {}


def check_fitting(settings: SageMakerConfig, run: RunConfig) -> str:
    """Who gets which GPUs, in words; empty where a type's figures are not known here.

    Raises ConfigError when the run needs more GPUs than its hosts have, has them on the wrong hosts, or cannot compute
    on them.
    """
    for role, (kind, _) in instance_kinds(settings).items():
        if role != REWARD:
            check_kind(kind, run)
    divided = division_of_gpus(run, hosts) if (hosts := _all_hosts(settings)) else ""
    _check_learner(settings, _sized_there(settings, run))
    return divided


def notes(settings: SageMakerConfig, run: RunConfig) -> tuple[str, ...]:
    """Who gets which GPUs, so that idle ones are seen before they are paid for, and what is not known of the hosts."""
    kinds = instance_kinds(settings)
    said = [check_fitting(settings, run)]
    if settings.spot and not (run.save_every or run.save_minutes):
        said.append("spot hosts vanish at two minutes' notice, and save_minutes=0 keeps nothing for that")
    said += [
        f"{kind} has the GPU {gpu.name}: CUDA 13 needs its hosts to have NVIDIA's driver R580 or later, or R535 or "
        f"later by the image's compatibility libraries, which the hosts turn on"
        for kind in sorted({kinds[role][0] for role in expected_gpus(settings, run)})
        if (gpu := gpu_kind(kind)) is not None
    ]
    said += [
        f"what GPUs {kind} has is not known here: who gets which of them, the job's log says"
        for kind in sorted({kind for kind, _ in kinds.values() if num_gpus(kind) is None})
    ]
    kind, count = kinds.get(REWARD, ("", 1))
    if count > 1:
        said.append(f"the reward service is on one host: of {count} × {kind} of reward, {count - 1} would be idle")
    if num_gpus(kind):
        said.append(f"the GPUs of {kind} would be idle: the reward service needs none")
    return tuple(filter(None, said))


def _known_hosts(settings: SageMakerConfig) -> dict[str, Hosts]:
    """The hosts that rollout workers or learner ranks are on, of types whose figures are known, by role."""
    return {
        role: Hosts(name=f"{count} × {kind}{role and f' of {role}'}", gpus=gpus, count=count)
        for role, (kind, count) in instance_kinds(settings).items()
        if role != REWARD and (gpus := num_gpus(kind)) is not None
    }


def _all_hosts(settings: SageMakerConfig) -> dict[str, Hosts]:
    """The same; empty where one of the types is not known."""
    hosts = _known_hosts(settings)
    return hosts if len(hosts) == len(instance_kinds(settings).keys() - {REWARD}) else {}


def _sized_there(settings: SageMakerConfig, run: RunConfig) -> RunConfig:
    return sized_on(run, hosts) if (hosts := _all_hosts(settings)) else run


def _check_learner(settings: SageMakerConfig, run: RunConfig) -> None:
    """Hosts of a training job share no disk, so what the ranks save of a state has to be saved on one."""
    hosts = _known_hosts(settings)
    learners = hosts.get(ALL_ROLES) or hosts.get(LEARNER)
    if learners is None or learners.count < 2 or run.learner_nodes is not None or learner_on_head(settings, run):
        return
    raise ConfigError(
        f"the learner's {run.learner.num_ranks} ranks (placement={run.placement}) would be on several hosts, which "
        f"share no disk for its checkpoints; use placement=split and as many learner.num_ranks as one host has GPUs"
    )
