"""Settings of a job on SageMaker HyperPod (EKS with KubeRay). Loads no heavy library."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from orchestration.section import INSTANCE_TYPE, Section, VariableName


class CpuPod(Section):
    """A pod without GPUs; what it asks for is what it gets."""

    instance_type: str | None = Field(None, pattern=INSTANCE_TYPE, description="Its host; unset: any healthy one.")
    cpus: int = Field(4, ge=1, le=256, description="Cores.")
    memory_gib: int = Field(16, ge=2, le=4096, description="Memory, GiB.")


class GpuGroup(Section):
    """Hosts with GPUs, one pod on each; what is unset is what `instances.py` knows of the instance type."""

    instance_type: str = Field(pattern=INSTANCE_TYPE, description="Such as ml.p4d.24xlarge.")
    count: int = Field(1, ge=1, le=100, description="Hosts.")
    gpus: int | None = Field(None, ge=1, le=16, description="GPUs of each; unset: all of them.")
    cpus: int | None = Field(None, ge=1, le=512, description="Cores of each pod; unset: nine tenths of the host's.")
    memory_gib: int | None = Field(
        None, ge=8, le=8192, description="Memory of each pod, GiB; unset: five sixths of the host's."
    )
    efa: int | None = Field(
        None, ge=0, le=64, description="EFA network adapters of each pod; unset: all of p4 to p6, none of others."
    )


class HyperPodConfig(Section):
    """A KubeRay RayJob that is made for the run; for a RayCluster that is there see `ray.address`."""

    context: str | None = Field(None, description="Context of the kubeconfig; unset: its current one.")
    namespace: str = Field("default", description="Namespace of the RayJob.")
    image: str | None = Field(
        None, description="The training image, docker/rollout_learner.Dockerfile, with a tag or a digest."
    )
    image_pull_secret: str | None = Field(None, description="Secret with the registry's password; ECR needs none.")
    head: CpuPod = Field(
        CpuPod(cpus=8, memory_gib=32), description="The Ray head: dashboard, the run's driver and no actors."
    )
    learner: GpuGroup | None = Field(
        None, description="Hosts of the learner ranks, and of the rollout workers if they have none of their own."
    )
    rollout: GpuGroup | None = Field(None, description="Hosts of the rollout workers.")
    reward: CpuPod | None = Field(
        None, description="A pod for the reward service; unset: it is where reward.deployment says."
    )
    fsx_claim: str | None = Field(
        None,
        description="PersistentVolumeClaim of an FSx for Lustre volume that user_id may write to: run folders, caches, "
        "data, models.",
    )
    fsx_path: str = Field("/fsx", pattern=r"^(/[\w.-]+)+$", description="Where all pods mount it.")
    shm_gib: int = Field(
        64,
        ge=1,
        le=1024,
        description="Size of /dev/shm of pods with GPUs, GiB of their memory: half of it is Ray's object store.",
    )
    user_id: int = Field(10001, ge=1, le=2**31 - 1, description="User and group that everything runs as; not root.")
    secrets: dict[VariableName, str] = Field(
        default_factory=dict,
        description="Environment variables of the pods out of Kubernetes Secrets: {HF_TOKEN: SECRET/KEY}.",
    )
    service_account: str | None = Field(
        None, description="Kubernetes service account of the pods, such as one that may read S3."
    )
    queue: str | None = Field(
        None, description="Kueue's local queue (HyperPod task governance): the job waits until it is let in."
    )
    priority: str | None = Field(None, description="Kueue's workload priority class.")
    retries: int = Field(
        0, ge=0, le=100, description="New clusters after a failure; each goes on from the last checkpoint."
    )
    max_runtime_s: int = Field(86400, ge=60, description="The job is ended after so long, seconds.")
    start_timeout_s: int = Field(3600, ge=60, description="Its pods run within so long, or it fails, seconds.")
    stop_timeout_s: int = Field(300, ge=1, le=3600, description="A stopped run has so long to save its state, seconds.")
    keep_s: int = Field(
        600, ge=0, description="The cluster stays so long after the run has ended, with its dashboard, seconds."
    )
    timeout_s: float = Field(30.0, gt=0, le=600, description="Limit on one call of Kubernetes, seconds.")

    @field_validator("secrets")
    @classmethod
    def _are_names(cls, secrets: dict[str, str]) -> dict[str, str]:
        for variable, name in secrets.items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*/[\w.-]+", name):
                raise ValueError(f"{variable} wants the name of a Kubernetes Secret and a key in it, SECRET/KEY")
        return secrets

    @field_validator("namespace", "queue")
    @classmethod
    def _is_a_label(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
            raise ValueError("a name of this kind has small letters, digits and hyphens inside, at most 63")
        return name

    @field_validator("fsx_claim", "service_account", "image_pull_secret", "priority")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", name):
            raise ValueError("a name of this kind has small letters, digits, and hyphens or dots inside, at most 253")
        return name
