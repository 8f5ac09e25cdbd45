"""What SageMaker would refuse late, or worse accept, refused now. Pure but for a look at the files that are named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from orchestration.errors import ConfigError, DataError
from orchestration.models.resolve import EMBEDDED_MODELS, check_model_folder
from orchestration.settings.config import RunConfig
from orchestration.settings.sagemaker import SageMakerConfig
from orchestration.settings.tree import nearest
from orchestration.storage.aws import known_regions
from orchestration.submit.common.paths import local_model_folder, refuse_what_stays_here
from orchestration.submit.sagemaker.fitting import check_capacity, check_gpu_kinds, groups_by_role
from orchestration.submit.sagemaker.host.places import RUN_FOLDER

MAX_KEEP_ALIVE_S = 3600
MAX_RUNTIME_S = 28 * 86400

_ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+", re.ASCII)
_ECR = re.compile(r"\d{12}\.dkr\.ecr(?:-fips)?\.([a-z0-9-]+)\.[a-z0-9.-]+")
_REGISTRY = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+(:\d{1,5})?")
_IMAGE = re.compile(r"[a-z0-9._/-]+(:[\w.-]{1,128})?(@sha256:[0-9a-f]{64})?")
_BUCKET = re.compile(r"(?!.*\.\.)(?!\d+\.\d+\.\d+\.\d+$)(?!xn--)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_S3_OBJECT = re.compile(r"s3://[a-z0-9][a-z0-9.-]+/.*[^/]")
_S3_FOLDER = re.compile(r"s3://[a-z0-9][a-z0-9.-]+/.*[^/]/?")


def check(settings: SageMakerConfig, run: RunConfig, data_files: Mapping[str, str], *, region: str | None) -> None:
    """Refuse what cannot work.

    Args:
        settings: where the job goes.
        run: what it runs, with the paths of this machine.
        data_files: the files that the run reads, by setting.
        region: the settings' or the AWS configuration's.

    Raises ConfigError: the first problem, with the value and the remedy.
    """
    _check_account(settings)
    _check_region(region)
    _check_image(settings, str(region))
    _check_instances(settings)
    _check_times(settings)
    refuse_what_stays_here(run, place="a training job")
    _check_run(settings, run)
    _check_reward(settings, run)
    for name, file in data_files.items():
        _check_data_file(name, file)
    _check_model(run)
    if settings.network_isolation:
        _check_isolated(settings, run)
    check_gpu_kinds(settings, run)
    check_capacity(settings, run)


def _check_account(settings: SageMakerConfig) -> None:
    if settings.role is None:
        raise ConfigError(
            "sagemaker.role is not set; give the ARN of an IAM role that SageMaker may assume, such as "
            "arn:aws:iam::123456789012:role/rlvr"
        )
    if not _ROLE.fullmatch(settings.role):
        raise ConfigError(
            f"sagemaker.role={settings.role!r} is not the ARN of an IAM role; write arn:aws:iam::ACCOUNT:role/NAME"
        )
    if settings.bucket is None:
        raise ConfigError(
            "sagemaker.bucket is not set; give an S3 bucket in the job's region, for code, configuration and results"
        )
    if not _BUCKET.fullmatch(settings.bucket):
        raise ConfigError(
            f"sagemaker.bucket={settings.bucket!r} is not a bucket's name; give the name alone, without s3:// and "
            f"without a folder: 3 to 63 small letters, digits, dots and hyphens"
        )
    if bool(settings.subnets) != bool(settings.security_group_ids):
        missing = "security_group_ids" if settings.subnets else "subnets"
        raise ConfigError(f"sagemaker.{missing} is empty; a VPC takes both subnets and security_group_ids, or neither")


def _check_region(region: str | None) -> None:
    if region is None:
        raise ConfigError("sagemaker.region is not set, and neither is AWS_DEFAULT_REGION; give one, such as us-east-1")
    known = known_regions("sagemaker")
    if region not in known:
        raise ConfigError(
            f"sagemaker.region={region!r} is none that this botocore knows SageMaker to be in"
            f"{nearest(region, sorted(known))}; correct it, or install a newer boto3"
        )


def _check_image(settings: SageMakerConfig, region: str) -> None:
    if settings.image is None:
        raise ConfigError(
            "sagemaker.image is not set; build docker/rollout_learner.Dockerfile, push it to ECR and give "
            "ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG"
        )
    registry, _, name = settings.image.partition("/")
    ecr = _ECR.fullmatch(registry)
    if not _IMAGE.fullmatch(name) or not (ecr or _REGISTRY.fullmatch(registry)):
        raise ConfigError(
            f"sagemaker.image={settings.image!r} is not the whole name of an image; write "
            f"ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG, or REGISTRY/NAME:TAG of one in your VPC"
        )
    if ecr and ecr[1] != region:
        raise ConfigError(
            f"sagemaker.image={settings.image!r} is in {ecr[1]}, and the job in {region}: SageMaker takes an image of "
            f"the job's region; push it to ECR there"
        )
    if not ecr and not settings.subnets:
        raise ConfigError(
            f"sagemaker.image={settings.image!r} is not in ECR, and a registry of your own is only reached from a VPC; "
            f"give sagemaker.subnets and sagemaker.security_group_ids, or push the image to ECR"
        )
    if ecr and settings.registry_credentials:
        raise ConfigError(
            f"sagemaker.registry_credentials is about a registry of your own, and {settings.image!r} is in ECR, which "
            f"the job's role reads; leave it out"
        )


def _check_isolated(settings: SageMakerConfig, run: RunConfig) -> None:
    why = "sagemaker.network_isolation=true leaves the hosts without any network but their own"
    if run.reward.url is not None:
        raise ConfigError(f"{why}: reward.url={run.reward.url!r} is not reached; leave it out, and the run starts one")
    if settings.secrets:
        raise ConfigError(f"{why}: sagemaker.secrets cannot be fetched; leave one of them out")
    name = run.model.name
    if name not in EMBEDDED_MODELS and not name.startswith("s3://") and local_model_folder(run) is None:
        raise ConfigError(f"{why}: model.name={name!r} is not fetched from the hub; give a folder here or s3://…")


def _check_instances(settings: SageMakerConfig) -> None:
    groups = settings.instance_groups
    if settings.instance_type is not None and groups:
        raise ConfigError(
            f"sagemaker.instance_type={settings.instance_type} and sagemaker.instance_groups are both set; a job "
            f"has hosts of one type or groups: leave one out"
        )
    if settings.instance_type is None and not groups:
        raise ConfigError("sagemaker.instance_type is not set; give one, such as ml.p4d.24xlarge, or instance_groups")
    if not groups:
        return
    if settings.instance_count != 1:
        raise ConfigError(
            f"sagemaker.instance_count={settings.instance_count} belongs to instance_type; with instance_groups each "
            f"group has an instance_count of its own"
        )
    counts = Counter(group.role for group in groups)
    for role in ("learner", "rollout"):
        if role not in counts:
            raise ConfigError(
                f"sagemaker.instance_groups has no group with role={role}, only {', '.join(counts)}; add one, or use "
                f"instance_type for hosts that do everything"
            )
    if twice := next((role for role, count in counts.items() if count > 1), None):
        raise ConfigError(
            f"sagemaker.instance_groups has {counts[twice]} groups with role={twice}; make them one, with a larger "
            f"instance_count"
        )


def _check_times(settings: SageMakerConfig) -> None:
    if settings.max_runtime_s > MAX_RUNTIME_S:
        raise ConfigError(
            f"sagemaker.max_runtime_s={settings.max_runtime_s} is over 28 days ({MAX_RUNTIME_S} s), the longest a "
            f"training job may run; lower it, and go on with sagemaker.resume=NAME"
        )
    if settings.keep_alive_s > MAX_KEEP_ALIVE_S:
        raise ConfigError(
            f"sagemaker.keep_alive_s={settings.keep_alive_s} is over {MAX_KEEP_ALIVE_S} s, the longest a warm pool "
            f"waits for a job; lower it"
        )
    if settings.keep_alive_s and settings.spot:
        raise ConfigError(
            f"sagemaker.keep_alive_s={settings.keep_alive_s} and sagemaker.spot=true exclude each other: warm pools "
            f"do not take spot capacity; leave one out"
        )
    if settings.keep_alive_s and settings.instance_groups:
        raise ConfigError(
            f"sagemaker.keep_alive_s={settings.keep_alive_s} and sagemaker.instance_groups exclude each other: warm "
            f"pools do not take heterogeneous clusters; leave one out"
        )
    if settings.spot and settings.max_wait_s is None:
        raise ConfigError(
            "sagemaker.spot=true needs sagemaker.max_wait_s, the limit on waiting for capacity and running together; "
            f"give at least max_runtime_s={settings.max_runtime_s}"
        )
    if settings.max_wait_s is not None and not settings.spot:
        raise ConfigError(
            f"sagemaker.max_wait_s={settings.max_wait_s} is about spot capacity; add sagemaker.spot=true, or drop it"
        )
    if settings.max_wait_s is not None and settings.max_wait_s < settings.max_runtime_s:
        raise ConfigError(
            f"sagemaker.max_wait_s={settings.max_wait_s} is less than sagemaker.max_runtime_s="
            f"{settings.max_runtime_s}, which it includes; raise the one or lower the other"
        )


def _check_run(settings: SageMakerConfig, run: RunConfig) -> None:
    """The configuration of a run that was submitted before has what the container's has, and is let through."""
    if run.run_dir not in (None, str(RUN_FOLDER)):
        raise ConfigError(
            f"run_dir={run.run_dir!r} cannot be kept: in a training job it is the folder that SageMaker copies to S3; "
            f"leave it out, and use sagemaker.resume=NAME to go on from an earlier job"
        )
    roles = groups_by_role(settings)
    for name, value in (("rollout_nodes", run.rollout_nodes), ("learner_nodes", run.learner_nodes)):
        if value is not None and not (roles and value == name.removesuffix("_nodes")):
            raise ConfigError(
                f"{name}={value!r} is set by sagemaker.instance_groups in a training job; leave it out, and give "
                f"groups with the roles rollout and learner"
            )
    if run.placement == "colocated" and settings.instance_groups:
        raise ConfigError(
            "placement=colocated shares GPUs between rooms that sagemaker.instance_groups keeps on different hosts; "
            "use placement=split, or instance_type for hosts that do everything"
        )


def _check_reward(settings: SageMakerConfig, run: RunConfig) -> None:
    reward, groups = run.reward, groups_by_role(settings)
    if reward.url is not None and "reward" in groups:
        raise ConfigError(f"reward.url={reward.url!r} leaves the reward group without work; leave one of them out")
    for name, file in (("settings_file", reward.settings_file), ("api_key_file", reward.api_key_file)):
        if file is not None and not file.is_file():
            raise ConfigError(f"reward.{name}={str(file)!r} is not a file here; give one, and it is sent along")
    if reward.deployment.kind == "actor" and (strange := set(reward.deployment.resources) - set(groups)):
        raise ConfigError(
            f"reward.deployment.resources asks for {min(strange)!r}, which no host of this job has; add a group with "
            f"role=reward to sagemaker.instance_groups, or leave it out"
        )


def _check_data_file(name: str, file: str) -> None:
    if file.startswith("s3://"):
        if not _S3_OBJECT.fullmatch(file):
            raise ConfigError(f"{name}={file!r} is not an object on S3; write s3://BUCKET/KEY of one file")
    elif not Path(file).expanduser().is_file():
        raise ConfigError(
            f"{name}={file!r} is not a file here; give one, or s3://BUCKET/KEY of one (`rlvr prepare` makes and "
            f"uploads them)"
        )


def _check_model(run: RunConfig) -> None:
    name = run.model.name
    if name.startswith("s3://"):
        if not _S3_FOLDER.fullmatch(name):
            raise ConfigError(f"model.name={name!r} is not a folder on S3; write s3://BUCKET/FOLDER/")
    elif (folder := local_model_folder(run)) is not None:
        try:
            check_model_folder(folder)
        except DataError as error:
            raise ConfigError(f"model.name={name!r}: {error}") from error
    elif name.startswith(("/", ".", "~")):
        raise ConfigError(f"model.name={name!r} is not a folder here; give one, s3://BUCKET/FOLDER/ or a hub id")
