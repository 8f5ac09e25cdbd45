"""Settings of a submission: one section for what all places share, and one for each place. Loads no heavy library."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from orchestration.section import Section, VariableName
from orchestration.settings.hyperpod import HyperPodConfig
from orchestration.settings.sagemaker import SageMakerConfig

MAX_NAME_CHARS = 57
"""Of a job's name: SageMaker takes 63, Kubernetes 63 for a label, and KubeRay appends to it."""


_SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(API|ACCESS|SECRET|PRIVATE)_?KEY|APIKEY)(_?\d+)?$"
)
"""Last words of names; TOKENIZERS_PARALLELISM, MAX_TOKENS and RAY_AUTH_TOKEN_PATH hold no secret."""


class JobConfig(Section):
    """What every place is told."""

    name: str | None = Field(
        None,
        max_length=MAX_NAME_CHARS,
        pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
        description="The job's name: small letters, digits and hyphens; unset: rlvr-RECIPE-TIME-RANDOM.",
    )
    environment: dict[VariableName, str] = Field(
        default_factory=dict,
        description="Environment variables of the job. Everybody who may look at the job can read them: no secrets.",
    )
    include: tuple[Path, ...] = Field(
        (),
        description="Files and folders of your own to send along, such as a task or a reward; importable there by "
        "their names. Relative paths begin here or where the recipe's file lies.",
    )

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if _SECRET.search(name.upper()):
                raise ValueError(
                    f"{name} looks like a secret, and a job's environment is there for many to read; give its name to "
                    f"sagemaker.secrets or hyperpod.secrets, or set it on the cluster"
                )
        return environment


class LocalConfig(Section):
    """A Ray head on this machine, started for the job and ended when it has been idle."""

    linger_s: float = Field(
        900.0, ge=0, description="The head, and with it the dashboard, stays so long after its last job, seconds."
    )
    start_timeout_s: float = Field(120.0, gt=0, description="Limit on the head's start, seconds.")
    stop_timeout_s: float = Field(
        300.0, gt=0, description="A stopped job has so long to save its state before it is killed, seconds."
    )


class RayConfig(Section):
    """A Ray cluster that is there already."""

    address: str | None = Field(
        None,
        description="Its dashboard: http://HOST:8265, https://…, or for a RayCluster on HyperPod "
        "sagemaker_ray://CLUSTER/NAMESPACE, found by the kubeconfig's current context; unset: RAY_API_SERVER_ADDRESS.",
    )
    token_file: Path | None = Field(
        None,
        description="File with the cluster's authentication token; unset: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
        "~/.ray/auth_token, and none of them for a cluster without authentication.",
    )
    ca_file: Path | None = Field(None, description="Certificate authority of an https address, PEM.")
    use_proxy: bool = Field(
        False, description="Go through the proxies of HTTP_PROXY and HTTPS_PROXY, with the token, instead of straight."
    )
    run_root: str = Field(
        "~/rlvr-runs",
        description="Folder on the cluster that run folders go to: shared storage, or it stays on the driver's node.",
    )
    check_gpus: bool = Field(True, description="Refuse a run that needs more GPUs than the cluster has now.")
    timeout_s: float = Field(30.0, gt=0, le=3600, description="Limit on one call of the dashboard, seconds.")
    stop_timeout_s: float = Field(
        300.0, gt=0, description="A stopped job has so long to save its state before it is killed, seconds."
    )


class SubmitConfig(Section):
    """Everything about where a run goes."""

    job: JobConfig = Field(default_factory=JobConfig)
    local: LocalConfig = Field(default_factory=LocalConfig)
    ray: RayConfig = Field(default_factory=RayConfig)
    sagemaker: SageMakerConfig = Field(default_factory=SageMakerConfig)
    hyperpod: HyperPodConfig = Field(default_factory=HyperPodConfig)
