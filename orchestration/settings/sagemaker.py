"""Settings of a SageMaker training job. Loads no heavy library."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from orchestration.section import INSTANCE_TYPE, Section, VariableName

Role = Literal["learner", "rollout", "reward"]
AwsService = Literal["logs", "s3", "sagemaker", "secretsmanager", "ssm"]


class InstanceGroup(Section):
    """Hosts of one kind in a heterogeneous cluster; all of them carry the Ray resource of the group's role."""

    role: Role = Field(description="What runs there; the group's name too.")
    instance_type: str = Field(pattern=INSTANCE_TYPE, description="Such as ml.p4d.24xlarge.")
    instance_count: int = Field(1, ge=1, le=100, description="Hosts.")


class SageMakerConfig(Section):
    """A SageMaker training job that holds a Ray cluster of its own."""

    role: str | None = Field(None, description="ARN of the execution role, arn:aws:iam::ACCOUNT:role/NAME.")
    bucket: str | None = Field(
        None, description="S3 bucket for code, configuration, data and results, in the job's region."
    )
    prefix: str = Field(
        "rlvr",
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$",
        description="In front of all keys in the bucket: a job's are in PREFIX/jobs/NAME.",
    )
    region: str | None = Field(None, description="AWS region; unset: the AWS configuration's.")
    image: str | None = Field(None, description="The training image, docker/rollout_learner.Dockerfile pushed to ECR.")
    instance_type: str | None = Field(None, pattern=INSTANCE_TYPE, description="ml.p4d.24xlarge …")
    instance_count: int = Field(1, ge=1, le=100, description="Hosts of that type.")
    instance_groups: tuple[InstanceGroup, ...] = Field((), description="A heterogeneous cluster, in place of a type.")
    volume_size_gib: int = Field(
        200, ge=1, le=16384, description="Disk of each host, where its type has none of its own, GiB."
    )
    max_runtime_s: int = Field(
        86400, ge=1, le=28 * 86400, description="The job is stopped after so long, seconds; `resume` goes on."
    )
    spot: bool = Field(False, description="Spare capacity: cheaper, and interrupted at two minutes' notice.")
    max_wait_s: int | None = Field(None, ge=1, description="With spot: waiting and running together, seconds.")
    training_plan: str | None = Field(None, description="ARN of a training plan: the hosts that you have reserved.")
    keep_alive_s: int = Field(
        0, ge=0, le=3600, description="Warm pool: the hosts stay so long, and are paid, for the next job, seconds."
    )
    remote_debug: bool = Field(
        True, description="SSM may open a shell or a port of the hosts: the way to the dashboard."
    )
    join_timeout_s: float = Field(900.0, gt=0, description="All hosts have joined within so long, seconds.")
    subnets: tuple[str, ...] = Field((), description="Of a VPC of your own, with security_group_ids.")
    security_group_ids: tuple[str, ...] = Field((), description="Of that VPC.")
    registry_credentials: str | None = Field(
        None, description="ARN of the Lambda function that gives a private registry's password to SageMaker."
    )
    endpoints: dict[AwsService, Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+$")]] = Field(
        default_factory=dict, description="VPC endpoints in place of AWS's own, such as {s3: https://bucket.vpce-….}."
    )
    network_isolation: bool = Field(
        False, description="Hosts reach each other and nothing else: no hub, no reward.url, no dashboard."
    )
    encrypt_traffic: bool = Field(False, description="Encrypt what hosts say to each other, NCCL's data too: slower.")
    kms_key: str | None = Field(
        None, description="KMS key, id or ARN, that encrypts uploads and results; unset: as the bucket does by itself."
    )
    volume_kms_key: str | None = Field(
        None, description="KMS key of the hosts' volumes; types with disks of their own take none."
    )
    secrets: dict[VariableName, str] = Field(
        default_factory=dict,
        description="Environment variables whose values the hosts fetch at their start, by name: {HF_TOKEN: "
        "secretsmanager:NAME} or ssm:NAME of a parameter; the role may read it.",
    )
    resume: str | None = Field(
        None,
        pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}$",
        description="Name of an earlier job, whose checkpoints this one goes on from and adds to.",
    )
    tags: dict[str, str] = Field(default_factory=dict, description="Tags of the job.")
    session_tags: bool = Field(
        False, description="The tags of the assumed role's session hold for the job too (session tag chaining)."
    )

    @field_validator("secrets")
    @classmethod
    def _are_names(cls, secrets: dict[str, str]) -> dict[str, str]:
        for variable, name in secrets.items():
            if not re.fullmatch(r"(secretsmanager|ssm):((?!arn:)|arn:[a-z-]+:\1:[a-z0-9-]+:\d{12}:)[\w/+=.@:-]+", name):
                raise ValueError(f"{variable} wants a secret's name or ARN, secretsmanager:NAME or ssm:NAME")
        return secrets
