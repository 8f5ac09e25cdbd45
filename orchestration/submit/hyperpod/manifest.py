"""Settings and a job → the manifests of a KubeRay RayJob and what goes with it; pure.

    RayJob     one head (dashboard, driver), worker groups `learner`, `rollout`, `reward`, marked by Ray resources
    Secret     the token that Ray's processes, KubeRay and people show each other
    ConfigMap  code.zip, our packages, and run.yaml, the run's settings; mounted in all pods

The RayJob owns the other two. KubeRay 1.6 or later is needed, which shows the Secret's token to the dashboard itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import yaml
from packaging.version import Version

from orchestration.cluster.environment import NODE_ENVIRONMENT
from orchestration.errors import ConfigError
from orchestration.settings.config import dump_config
from orchestration.settings.hyperpod import CpuPod, GpuGroup, HyperPodConfig
from orchestration.submit.common.instances import EFA_ENVIRONMENT, Instance
from orchestration.submit.common.job import JobSpec, Plan
from orchestration.submit.hyperpod.checks import (
    CONFIG_FOLDER,
    LEARNER,
    REWARD,
    ROLLOUT,
    check_cluster,
    gpu_groups,
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

_FIRST_WITH_TOKENS = Version("2.52.0")  # KubeRay refuses a token for any older Ray
_HEALTHY = {"sagemaker.amazonaws.com/node-health-status": "Schedulable"}
_SUBMITTER = CpuPod(cpus=1, memory_gib=2)
_GIB = 2**30


def job_manifests(job: JobSpec, settings: HyperPodConfig, *, token: str) -> list[Manifest]:
    """RayJob, Secret and ConfigMap, in the order in which they are made.

    Raises ConfigError for everything that would be refused, would never start, or would not find its files.
    """
    check_cluster(job, settings)
    config_map = _config_map(job, settings)
    secret = {
        **_head_of("v1", "Secret", job, settings),
        "type": "Opaque",
        "immutable": True,
        "stringData": {TOKEN_KEY: token},
    }
    return [_ray_job(job, settings), secret, config_map]


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
    shown = [_for_reading(manifest) for manifest in job_manifests(job, settings, token="-")]
    text = "---\n".join(yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=110) for manifest in shown)
    return Plan(request={"manifests": shown}, text=text)


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


def _head_of(api_version: str, kind: str, job: JobSpec, settings: HyperPodConfig) -> Manifest:
    meta = {"name": job.name, "namespace": settings.namespace, "labels": _labels(job)}
    return {"apiVersion": api_version, "kind": kind, "metadata": meta}


def _labels(job: JobSpec) -> dict[str, str]:
    return {"app.kubernetes.io/name": "rlvr", "app.kubernetes.io/instance": job.name}


def _config_map(job: JobSpec, settings: HyperPodConfig) -> Manifest:
    archive = job.code.zipped()
    texts = {RUN_FILE: dump_config(run_in_pods(job, settings))}
    if (path := sent_settings_file(job.run, settings)) is not None:
        texts[path.name] = path.read_text(encoding="utf-8")
    num_bytes = len(archive) + sum(len(text.encode()) for text in texts.values())
    if num_bytes > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"the code is {num_bytes / 1000:.0f} kB as a zip, and a ConfigMap takes {MAX_CONFIG_BYTES // 1000}: put "
            f"what job.include names into the image"
        )
    return {
        **_head_of("v1", "ConfigMap", job, settings),
        "immutable": True,
        "data": texts,
        "binaryData": {_archive_name(job): base64.b64encode(archive).decode()},
    }


def _archive_name(job: JobSpec) -> str:
    return f"code-{job.code.digest[:12]}.zip"


def _ray_job(job: JobSpec, settings: HyperPodConfig) -> Manifest:
    manifest = _head_of("ray.io/v1", "RayJob", job, settings)
    spec: Manifest = {
        "entrypoint": entrypoint(f"{CONFIG_FOLDER}/{RUN_FILE}"),
        "jobId": job.name,
        "runtimeEnvYAML": yaml.safe_dump({"working_dir": f"file://{CONFIG_FOLDER}/{_archive_name(job)}"}),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": settings.keep_s,
        "activeDeadlineSeconds": settings.max_runtime_s,
        "preRunningDeadlineSeconds": settings.start_timeout_s,
        "backoffLimit": settings.retries,
        "submitterConfig": {"backoffLimit": 2},
        "submitterPodTemplate": _submitter(job, settings),
        "rayClusterSpec": {
            "rayVersion": _ray_version(),
            "authOptions": {"mode": "token", "secretName": job.name},
            "headGroupSpec": _head_group(job, settings),
            "workerGroupSpecs": _worker_groups(job, settings),
        },
    }
    if settings.queue is not None:
        manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = settings.queue
        spec["suspend"] = True  # until the queue lets it in
        if settings.priority is not None:
            manifest["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] = settings.priority
    return {**manifest, "spec": spec}


def _ray_version() -> str:
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise ConfigError("HyperPod jobs need Ray here, as well as in the image: install rlvr[hyperpod]") from None
    if Version(version) < _FIRST_WITH_TOKENS:
        raise ConfigError(f"Ray {version} has no token authentication; install {_FIRST_WITH_TOKENS} or later")
    return version


def _head_group(job: JobSpec, settings: HyperPodConfig) -> Manifest:
    head = settings.head
    shm_gib = max(1, head.memory_gib // 4)
    container = _container("ray-head", job, settings, _requests(head))
    # No cores for actors: what runs here is the driver, and the reward service where that is the driver's child.
    params = {"dashboard-host": "0.0.0.0", "num-cpus": "0", **_object_store(shm_gib)}
    return {
        "rayStartParams": params,
        "template": _pod(job, settings, container, instance_type=head.instance_type, shm_gib=shm_gib),
    }


def _worker_groups(job: JobSpec, settings: HyperPodConfig) -> list[Manifest]:
    groups = [_gpu_group(role, group, job, settings) for role, group in gpu_groups(settings).items()]
    if settings.reward is not None:
        groups.append(_reward_group(settings.reward, job, settings))
    return groups


def _gpu_group(role: str, group: GpuGroup, job: JobSpec, settings: HyperPodConfig) -> Manifest:
    host = host_of(group, role)
    marks = [LEARNER, ROLLOUT] if settings.rollout is None else [role]
    requests = {**_requests(host), "nvidia.com/gpu": str(host.gpus)}
    environment: dict[str, str] = {}
    if host.efa:
        requests["vpc.amazonaws.com/efa"] = str(host.efa)
        # Pods ask for no huge pages, which a fork would not inherit either.
        environment = {**EFA_ENVIRONMENT, "FI_EFA_USE_HUGE_PAGE": "0"}
    container = _container("ray-worker", job, settings, requests, environment)
    pod = _pod(job, settings, container, instance_type=group.instance_type, shm_gib=settings.shm_gib)
    pod["spec"]["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return _group(role, group.count, {**_marked(*marks), **_object_store(settings.shm_gib)}, pod)


def _reward_group(reward: CpuPod, job: JobSpec, settings: HyperPodConfig) -> Manifest:
    shm_gib = max(1, reward.memory_gib // 4)
    container = _container("ray-worker", job, settings, _requests(reward))
    pod = _pod(job, settings, container, instance_type=reward.instance_type, shm_gib=shm_gib)
    return _group(REWARD, 1, {**_marked(REWARD), **_object_store(shm_gib)}, pod)


def _group(name: str, count: int, params: Mapping[str, str], pod: Manifest) -> Manifest:
    return {
        "groupName": name,
        "replicas": count,
        "minReplicas": count,
        "maxReplicas": count,
        "rayStartParams": dict(params),
        "template": pod,
    }


def _marked(*roles: str) -> dict[str, str]:
    # KubeRay puts it into a shell's command line as it is, so it brings its own quotes.
    return {"resources": json.dumps(json.dumps(dict.fromkeys(roles, 1)))}


def _object_store(shm_gib: int) -> dict[str, str]:
    # The other half is for NCCL, for vLLM's processes and for published adapters.
    return {"object-store-memory": str(shm_gib * _GIB // 2)}


def _requests(size: CpuPod | Instance) -> dict[str, str]:
    return {"cpu": str(size.cpus), "memory": f"{size.memory_gib}Gi"}


def _container(
    name: str,
    job: JobSpec,
    settings: HyperPodConfig,
    requests: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
) -> Manifest:
    values = {
        "HOME": "/tmp",
        "PYTHONUNBUFFERED": "1",
        "RLVR_CACHE": f"{settings.fsx_path}/rlvr-cache",
        "HF_HOME": f"{settings.fsx_path}/rlvr-cache/huggingface",
        "RAY_JOB_STOP_WAIT_TIME_S": str(settings.stop_timeout_s),
        **NODE_ENVIRONMENT,
        **(environment or {}),
        **job.environment,
    }
    return {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [*({"name": key, "value": value} for key, value in values.items()), *_authentication(job)],
        "resources": {"requests": dict(requests), "limits": dict(requests)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "rlvr", "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": "fsx", "mountPath": settings.fsx_path},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def _authentication(job: JobSpec) -> list[Manifest]:
    return [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": job.name, "key": TOKEN_KEY}}},
    ]


def _pod(
    job: JobSpec, settings: HyperPodConfig, container: Manifest, *, instance_type: str | None, shm_gib: int
) -> Manifest:
    volumes = [
        {"name": "rlvr", "configMap": {"name": job.name}},
        {"name": "fsx", "persistentVolumeClaim": {"claimName": settings.fsx_claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_gib}Gi"}},
    ]
    spec = {**_pod_spec(settings, container, instance_type), "volumes": volumes}
    return {"metadata": {"labels": _labels(job)}, "spec": spec}


def _pod_spec(settings: HyperPodConfig, container: Manifest, instance_type: str | None) -> Manifest:
    selector = dict(_HEALTHY)
    if instance_type is not None:
        selector["node.kubernetes.io/instance-type"] = instance_type
    user = settings.user_id
    spec: Manifest = {
        "nodeSelector": selector,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",  # not a walk over the whole volume at every start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    if settings.service_account is not None:
        spec["serviceAccountName"] = settings.service_account
    if settings.image_pull_secret is not None:
        spec["imagePullSecrets"] = [{"name": settings.image_pull_secret}]
    return spec


def _submitter(job: JobSpec, settings: HyperPodConfig) -> Manifest:
    """The pod that hands the job to Ray, follows its log, and is where the log is read afterwards."""
    requests = _requests(_SUBMITTER)
    container = {
        "name": "ray-job-submitter",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "HOME", "value": "/tmp"}, *_authentication(job)],
        "resources": {"requests": requests, "limits": requests},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {**_pod_spec(settings, container, None), "restartPolicy": "Never"}
    return {"metadata": {"labels": _labels(job)}, "spec": spec}


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _as_block)
