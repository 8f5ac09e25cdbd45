"""Settings and a job → the manifests of a KubeRay RayJob and what goes with it; pure.

    RayJob     one head (dashboard, driver), worker groups `learner`, `rollout`, `reward`, marked by Ray resources
    Secret     the token that Ray's processes, KubeRay and people show each other
    ConfigMap  code.tar.xz, our packages, and run.yaml, the run's settings; mounted in all pods

The RayJob owns the other two. KubeRay 1.6 or later is needed, which shows the Secret's token to the dashboard itself.
What they look like stands in `ray_job.yaml`, which is filled in here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata, resources
from string import Template
from typing import Any

import yaml
from packaging.version import Version

from orchestration.cluster.environment import NODE_ENVIRONMENT
from orchestration.errors import ConfigError
from orchestration.settings.config import dump_config
from orchestration.settings.hyperpod import CpuPod, GpuGroup, HyperPodConfig
from orchestration.submit.common.hosts import LEARNER, REWARD, ROLLOUT
from orchestration.submit.common.instances import EFA_ENVIRONMENT, Instance
from orchestration.submit.common.job import JobSpec, Plan
from orchestration.submit.hyperpod.checks import (
    CONFIG_FOLDER,
    check_cluster,
    gpu_groups,
    gpus_in_pods,
    host_of,
    run_in_pods,
    sent_settings_file,
)
from orchestration.submit.ray.jobs import RUN_FILE, entrypoint

Manifest = dict[str, Any]

TOKEN_KEY = "auth_token"
"""In the Secret; KubeRay reads it under this name."""
MAX_CONFIG_BYTES = 1_000_000
"""Of a ConfigMap's contents: Kubernetes takes 1 MiB with everything around them."""

_TEMPLATE = "ray_job.yaml"
_FIRST_WITH_TOKENS = Version("2.52.0")  # KubeRay refuses a token for any older Ray
_SUBMITTER = CpuPod(cpus=1, memory_gib=2)
_GPU_TOLERATIONS = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
_GIB = 2**30


def job_manifests(job: JobSpec, settings: HyperPodConfig, *, token: str) -> list[Manifest]:
    """RayJob, Secret and ConfigMap, in the order in which they are made.

    Args:
        token: what the cluster will ask everybody for; it stands in the Secret alone.

    Raises:
        ConfigError: something would be refused, would never start, or would not find its files.
    """
    check_cluster(job, settings)
    texts, archives = _contents(job, settings)
    return [
        _ray_job(job, settings),
        _filled("secret", _of_the_job(job, settings), token=token),
        _filled("config_map", _of_the_job(job, settings), texts=texts, archives=archives),
    ]


def owned_by(manifest: Manifest, owner: Mapping[str, Any]) -> Manifest:
    """The manifest of something that goes when `owner`, an object as Kubernetes returned it, goes."""
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [reference]}}


def make_plan(job: JobSpec, settings: HyperPodConfig) -> Plan:
    """What would be applied, with the token and the code's bytes told rather than shown. Raises as `job_manifests`."""
    manifests = job_manifests(job, settings, token="-")
    shown = [_for_reading(manifest) for manifest in manifests]
    return Plan(request={"manifests": shown}, notes=(gpus_in_pods(job.run, settings),))


def _for_reading(manifest: Manifest) -> Manifest:
    if manifest["kind"] == "Secret":
        return {**manifest, "stringData": {TOKEN_KEY: "<made when the job is submitted>"}}
    if manifest["kind"] == "ConfigMap":
        contents = {name: base64.b64decode(text) for name, text in manifest["binaryData"].items()}
        told = {
            name: f"<{len(content) / 1000:.0f} kB, sha256 {hashlib.sha256(content).hexdigest()}>"
            for name, content in contents.items()
        }
        return {**manifest, "binaryData": told}
    return manifest


def _contents(job: JobSpec, settings: HyperPodConfig) -> tuple[dict[str, str], dict[str, str]]:
    """The ConfigMap's texts, and its archives in base 64."""
    archive = job.code.archived()
    texts = {RUN_FILE: dump_config(run_in_pods(job, settings))}
    if (path := sent_settings_file(job.run, settings)) is not None:
        texts[path.name] = path.read_text(encoding="utf-8")
    num_bytes = len(archive) + sum(len(text.encode()) for text in texts.values())
    if num_bytes > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"the code is {num_bytes / 1000:.0f} kB as a .tar.xz, and a ConfigMap takes {MAX_CONFIG_BYTES // 1000}: "
            f"put what job.include names into the image"
        )
    return texts, {_archive_name(job): base64.b64encode(archive).decode()}


def _archive_name(job: JobSpec) -> str:
    return f"code-{job.code.digest[:12]}.tar.xz"


def _of_the_job(job: JobSpec, settings: HyperPodConfig) -> dict[str, Any]:
    """Values that all manifests and pods share."""
    pull_secret = settings.image_pull_secret
    return {
        **settings.model_dump(include={"namespace", "image", "fsx_claim", "fsx_path", "user_id", "service_account"}),
        "name": job.name,
        "config_folder": CONFIG_FOLDER,
        "stop_timeout_s": str(settings.stop_timeout_s),
        "pull_secrets": None if pull_secret is None else [{"name": pull_secret}],
    }


def _ray_job(job: JobSpec, settings: HyperPodConfig) -> Manifest:
    head, queue = settings.head, settings.queue
    limits = {"keep_s", "max_runtime_s", "start_timeout_s", "retries"}
    return _filled(
        "ray_job",
        _of_the_job(job, settings) | settings.model_dump(include=limits),
        queue=queue,
        priority=settings.priority,
        suspend=None if queue is None else True,  # until the queue lets it in
        entrypoint=entrypoint(f"{CONFIG_FOLDER}/{RUN_FILE}"),
        archive=_archive_name(job),
        ray_version=_ray_version(),
        submitter=_pod("submitter", "ray-job-submitter", job, settings, _SUBMITTER, shm_gib=0),
        object_store_bytes=_object_store_bytes(_shm_gib(head)),
        head=_pod("pod", "ray-head", job, settings, head, shm_gib=_shm_gib(head), instance_type=head.instance_type),
        workers=_worker_groups(job, settings),
    )


def _ray_version() -> str:
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise ConfigError("HyperPod jobs need Ray here, as well as in the image: install rlvr[hyperpod]") from None
    if Version(version) < _FIRST_WITH_TOKENS:
        raise ConfigError(f"Ray {version} has no token authentication; install {_FIRST_WITH_TOKENS} or later")
    return version


def _worker_groups(job: JobSpec, settings: HyperPodConfig) -> list[Manifest]:
    groups = [_gpu_group(role, group, job, settings) for role, group in gpu_groups(settings).items()]
    if (reward := settings.reward) is not None:
        shm_gib = _shm_gib(reward)
        pod = _pod("pod", "ray-worker", job, settings, reward, shm_gib=shm_gib, instance_type=reward.instance_type)
        groups.append(_group(REWARD, 1, [REWARD], shm_gib, pod))
    return groups


def _gpu_group(role: str, group: GpuGroup, job: JobSpec, settings: HyperPodConfig) -> Manifest:
    host = host_of(group, role)
    pod = _pod(
        "pod",
        "ray-worker",
        job,
        settings,
        host,
        shm_gib=settings.shm_gib,
        instance_type=group.instance_type,
        gpus=str(host.gpus),
        efa=str(host.efa) if host.efa else None,
        tolerations=_GPU_TOLERATIONS,
        # Pods ask for no huge pages, which a fork would not inherit either.
        environment={**EFA_ENVIRONMENT, "NCCL_SOCKET_IFNAME": "eth0", "FI_EFA_USE_HUGE_PAGE": "0"} if host.efa else {},
    )
    marks = [LEARNER, ROLLOUT] if settings.rollout is None else [role]
    return _group(role, group.count, marks, settings.shm_gib, pod)


def _group(role: str, count: int, marks: list[str], shm_gib: int, pod: Manifest) -> Manifest:
    return _filled(
        "worker_group",
        role=role,
        count=count,
        # KubeRay puts it into a shell's command line as it is, so it brings its own quotes.
        marks=json.dumps(json.dumps(dict.fromkeys(marks, 1))),
        object_store_bytes=_object_store_bytes(shm_gib),
        pod=pod,
    )


def _shm_gib(pod: CpuPod) -> int:
    return max(1, pod.memory_gib // 4)


def _object_store_bytes(shm_gib: int) -> str:
    # The other half is for NCCL, for vLLM's processes and for published adapters.
    return str(shm_gib * _GIB // 2)


def _pod(
    part: str,
    container: str,
    job: JobSpec,
    settings: HyperPodConfig,
    size: CpuPod | Instance,
    *,
    environment: Mapping[str, str] | None = None,
    **values: Any,
) -> Manifest:
    """A pod with one container; the job's own variables win over all others. `values` are the template's."""
    variables = {**NODE_ENVIRONMENT, **(environment or {}), **job.environment}
    pod = _filled(
        part,
        _of_the_job(job, settings),
        container=container,
        cpus=str(size.cpus),
        memory_gib=size.memory_gib,
        **{"instance_type": None, "gpus": None, "efa": None, "tolerations": None, **values},
        environment=[
            *({"name": name, "value": value} for name, value in variables.items()),
            *({"name": name, "valueFrom": {"secretKeyRef": _key(place)}} for name, place in settings.secrets.items()),
        ],
    )
    (made,) = pod["spec"]["containers"]
    made["env"] = list({entry["name"]: entry for entry in made["env"]}.values())  # the last of each name
    return pod


def _key(place: str) -> dict[str, str]:
    secret, _, key = place.partition("/")
    return {"name": secret, "key": key}


def _filled(part: str, values: Mapping[str, Any] | None = None, **more: Any) -> Manifest:
    """A part of the template with its values."""
    filled: Manifest = _fill(_template()[part], {**(values or {}), **more})
    return filled


@cache
def _template() -> Manifest:
    tree: Manifest = yaml.safe_load(resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    return tree


def _fill(node: Any, values: Mapping[str, Any]) -> Any:
    """As the head of the template says; values are put in as they are, whatever they contain."""
    match node:
        case str() if node.startswith("$") and node[1:] in values:
            return values[node[1:]]
        case str():
            return Template(node).substitute(values)
        case dict():
            entries = {key: _fill(child, values) for key, child in node.items()}
            return {key: value for key, value in entries.items() if value is not None}
        case list():
            filled = [_fill(child, values) for child in node]
            return [entry for value in filled for entry in (value if isinstance(value, list) else [value])]
        case _:
            return node
