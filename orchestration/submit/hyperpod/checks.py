"""What HyperPod would refuse, or worse accept and leave waiting, refused before anything is sent; all of it pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from orchestration.errors import ConfigError
from orchestration.machine.placement import MARK
from orchestration.settings.config import RunConfig
from orchestration.settings.hyperpod import GpuGroup, HyperPodConfig
from orchestration.settings.rewards import ActorDeployment
from orchestration.submit.common.hosts import ALL_ROLES, LEARNER, REWARD, ROLLOUT, Hosts, check_kind, division_of_gpus
from orchestration.submit.common.instances import INSTANCES, Instance
from orchestration.submit.common.job import JobSpec, check_variables
from orchestration.submit.common.paths import paths_on_disk, refuse_what_stays_here, with_settings
from orchestration.submit.ray.jobs import RUN_FILE

MAX_NAME_CHARS = 47
"""Of a RayJob: KubeRay appends to it, and makes names of services out of that."""
CONFIG_FOLDER = "/etc/rlvr"
"""Where pods see the ConfigMap."""


def host_of(group: GpuGroup, role: str) -> Instance:
    """What a pod of the group gets of its host.

    Raises ConfigError when the host has less, or when neither the settings nor we know what it has.
    """
    known = INSTANCES.get(group.instance_type)
    if known is None:
        if group.gpus is None or group.cpus is None or group.memory_gib is None:
            raise ConfigError(
                f"hyperpod.{role}.instance_type={group.instance_type!r} is not in our table; say what it has by "
                f"hyperpod.{role}.gpus, .cpus and .memory_gib"
            )
        return Instance(gpus=group.gpus, cpus=group.cpus, memory_gib=group.memory_gib, efa=group.efa or 0)
    for name in ("gpus", "cpus", "memory_gib", "efa"):
        asked, there = getattr(group, name), getattr(known, name)
        if asked is not None and asked > there and not (name == "efa" and there == 0):
            raise ConfigError(f"hyperpod.{role}.{name}={asked} is more than {group.instance_type} has, {there}")
    # Ranks speak by NVLink within a host: adapters are of use from two hosts on.
    efa = known.efa if group.efa is None and group.count > 1 else group.efa or 0
    return Instance(
        gpus=group.gpus or known.gpus,
        # Kubernetes and its daemons need the rest.
        cpus=group.cpus or known.cpus * 9 // 10,
        memory_gib=group.memory_gib or known.memory_gib * 5 // 6,
        efa=efa,
    )


def run_in_pods(job: JobSpec, settings: HyperPodConfig) -> RunConfig:
    """The run as its driver reads it. Raises ConfigError for what no pod could do."""
    run = job.run
    refuse_what_stays_here(run, place="the pods")
    _check_rewards(run, settings)
    run_dir = run.run_dir or f"{settings.fsx_path}/rlvr-runs/{job.name}"
    if not is_below(run_dir, settings.fsx_path):
        raise ConfigError(
            f"run_dir={run_dir!r} is lost when its pod ends; give a folder below hyperpod.fsx_path="
            f"{settings.fsx_path!r}, or leave it out"
        )
    for key, path in paths_on_disk(run).items():
        if not is_below(path, settings.fsx_path):
            raise ConfigError(
                f"{key}={path!r} is in no pod; copy it to the FSx volume and give its path below hyperpod.fsx_path="
                f"{settings.fsx_path!r}"
            )
    for key, nodes, own in (
        ("rollout_nodes", run.rollout_nodes, ROLLOUT),
        ("learner_nodes", run.learner_nodes, LEARNER),
    ):
        if nodes not in (None, own):
            raise ConfigError(
                f"{key}={nodes!r}: hyperpod.rollout and hyperpod.learner mark the nodes themselves; leave it out"
            )
    gpus_in_pods(run, settings)
    return with_settings(run, _changes(run, run_dir, settings))


def _changes(run: RunConfig, run_dir: str, settings: HyperPodConfig) -> dict[str, Any]:
    # Kubernetes gives the pods GPUs; `auto` would go on without those that the driver hides.
    changes: dict[str, Any] = {"ray_address": "auto", "run_dir": run_dir, "device": "cuda"}
    if settings.rollout is not None:
        changes |= {"rollout_nodes": ROLLOUT, "learner_nodes": LEARNER}
    if settings.reward is not None:
        actor = run.reward.deployment
        if not isinstance(actor, ActorDeployment):
            actor = ActorDeployment(num_cpus=settings.reward.cpus)
        resources = {**actor.resources, REWARD: MARK}
        changes["reward.deployment"] = actor.model_copy(update={"resources": resources}).model_dump()
    if (path := sent_settings_file(run, settings)) is not None:
        changes["reward.settings_file"] = f"{CONFIG_FOLDER}/{path.name}"
    return changes


def sent_settings_file(run: RunConfig, settings: HyperPodConfig) -> Path | None:
    """The reward service's settings when they lie here rather than on the volume."""
    path = run.reward.settings_file
    return None if path is None or is_below(str(path), settings.fsx_path) else path


def check_cluster(job: JobSpec, settings: HyperPodConfig) -> None:
    """Raises ConfigError for what Kubernetes, KubeRay or HyperPod would not take."""
    for problem in _problems(job, settings):
        raise ConfigError(problem)
    check_variables(job, settings.secrets, place="hyperpod")


def _problems(job: JobSpec, settings: HyperPodConfig) -> Iterator[str]:
    if len(job.name) > MAX_NAME_CHARS or not job.name[0].isalpha():
        yield (
            f"job.name={job.name!r}: KubeRay takes names that begin with a letter and have at most {MAX_NAME_CHARS} "
            f"characters; this has {len(job.name)}"
        )
    if settings.image is None:
        yield "hyperpod.image is needed: docker/rollout_learner.Dockerfile, built and pushed to ECR"
    else:
        yield from _of_image(settings.image)
    if settings.fsx_claim is None:
        yield (
            "hyperpod.fsx_claim is needed: the PersistentVolumeClaim of the FSx for Lustre volume that run folders, "
            "caches, data and models lie on"
        )
    if settings.learner is None:
        yield "hyperpod.learner.instance_type is needed, such as ml.p4d.24xlarge"
    for role, group in gpu_groups(settings).items():
        check_kind(group.instance_type, job.run)
        memory_gib = host_of(group, role).memory_gib
        if settings.shm_gib * 2 > memory_gib:
            yield (
                f"hyperpod.shm_gib={settings.shm_gib} is over half of the {memory_gib} GiB of memory that a pod of "
                f"{role} has, and is part of it; lower it"
            )
    if settings.start_timeout_s >= settings.max_runtime_s:
        yield (
            f"hyperpod.start_timeout_s={settings.start_timeout_s} must be less than hyperpod.max_runtime_s="
            f"{settings.max_runtime_s}, which begins with it"
        )
    if settings.retries and not (job.run.save_every or job.run.save_minutes):
        yield (
            f"hyperpod.retries={settings.retries} would begin again each time: a pod that is lost saves nothing; set "
            f"save_minutes or save_every"
        )
    if settings.priority is not None and settings.queue is None:
        yield f"hyperpod.priority={settings.priority!r} is of a queue; give hyperpod.queue as well"


def gpu_groups(settings: HyperPodConfig) -> dict[str, GpuGroup]:
    """By their names."""
    groups = {LEARNER: settings.learner, ROLLOUT: settings.rollout}
    return {role: group for role, group in groups.items() if group is not None}


def _of_image(image: str) -> Iterator[str]:
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if not digest and tag in ("", "latest"):
        yield (
            f"hyperpod.image={image!r} may be another image tomorrow, and on another node today; give it a tag of its "
            f"own, or a digest"
        )
    if re.search(r"\s", image):
        yield f"hyperpod.image={image!r} is no name of an image"


def _check_rewards(run: RunConfig, settings: HyperPodConfig) -> None:
    if run.reward.url is not None and settings.reward is not None:
        raise ConfigError("hyperpod.reward is about a service that the run starts; leave it out, or reward.url")
    path = sent_settings_file(run, settings)
    if path is not None and (not path.is_file() or path.name == RUN_FILE or path.suffix not in (".yaml", ".yml")):
        raise ConfigError(f"reward.settings_file={str(path)!r} is no YAML file here; give one, or one on the volume")


def gpus_in_pods(run: RunConfig, settings: HyperPodConfig) -> str:
    """Who gets which of the hosts' GPUs, in words.

    Raises:
        ConfigError: They do not suffice.
    """
    if run.device == "cpu":
        raise ConfigError("device=cpu would leave the GPUs of hyperpod.learner idle; use device=auto")
    hosts = {
        role: Hosts(name=f"hyperpod.{role}", gpus=host_of(group, role).gpus, count=group.count)
        for role, group in gpu_groups(settings).items()
    }
    return division_of_gpus(run, hosts if ROLLOUT in hosts else {ALL_ROLES: hosts[LEARNER]})


def is_below(path: str, mount: str) -> bool:
    parts = PurePosixPath(path)
    return ".." not in parts.parts and PurePosixPath(mount) in parts.parents
