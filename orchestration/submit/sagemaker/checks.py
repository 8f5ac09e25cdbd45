"""What SageMaker would refuse late, or worse accept, refused now. Pure but for a look at the files that are named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from orchestration.errors import ConfigError, DataError
from orchestration.models.resolve import EMBEDDED_MODELS, check_trainable
from orchestration.settings.config import RunConfig
from orchestration.settings.names import nearest
from orchestration.settings.sagemaker import SageMakerConfig
from orchestration.storage.aws import known_regions, partition
from orchestration.submit.common.hosts import LEARNER, ROLLOUT
from orchestration.submit.common.instances import has_own_disks
from orchestration.submit.common.package import is_utf8
from orchestration.submit.common.paths import data_files, local_model_folder, refuse_what_stays_here
from orchestration.submit.sagemaker.fitting import check_fitting, instance_kinds
from orchestration.submit.sagemaker.host.places import RUN_FOLDER

_ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+", re.ASCII)
_ECR = re.compile(r"\d{12}\.dkr\.ecr(?:-fips)?\.([a-z0-9-]+)\.([a-z0-9.-]+)")
_REGISTRY = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+(:\d{1,5})?")
_IMAGE = re.compile(r"[a-z0-9._/-]+(:[\w.-]{1,128})?(@sha256:[0-9a-f]{64})?")
_BUCKET = re.compile(r"(?!.*\.\.)(?!\d+\.\d+\.\d+\.\d+$)(?!xn--)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_S3_OBJECT = re.compile(r"s3://[a-z0-9][a-z0-9.-]+/.*[^/]")
_S3_FOLDER = re.compile(r"s3://[a-z0-9][a-z0-9.-]+/.*[^/]/?")


def check(settings: SageMakerConfig, run: RunConfig, *, region: str | None) -> None:
    """Refuse what cannot work.

    Args:
        run: what it runs, with the paths of this machine.
        region: the settings' or the AWS configuration's.

    Raises ConfigError: the first problem, with the value and the remedy.
    """
    for problem in (*_of_account(settings, region), *_of_instances(settings), *_of_times(settings)):
        raise ConfigError(problem)
    refuse_what_stays_here(run, place="a training job")
    files = (problem for name, file in data_files(run).items() for problem in _of_data_file(name, file))
    isolation = _of_isolation(settings, run) if settings.network_isolation else ()
    for problem in (*_of_run(settings, run), *_of_reward(settings, run), *files, *_of_model(run), *isolation):
        raise ConfigError(problem)
    check_fitting(settings, run)


def _of_account(settings: SageMakerConfig, region: str | None) -> Iterator[str]:
    if settings.role is None:
        yield "sagemaker.role is not set; give the ARN of a role for SageMaker, arn:aws:iam::ACCOUNT:role/NAME"
    elif not _ROLE.fullmatch(settings.role):
        yield f"sagemaker.role={settings.role!r} is not the ARN of an IAM role; write arn:aws:iam::ACCOUNT:role/NAME"
    if settings.bucket is None:
        yield "sagemaker.bucket is not set; give an S3 bucket of the job's region, for code, configuration and results"
    elif not _BUCKET.fullmatch(settings.bucket):
        yield f"sagemaker.bucket={settings.bucket!r} is not a bucket's name; give that alone, without s3:// or a folder"
    if bool(settings.subnets) != bool(settings.security_group_ids):
        missing = "security_group_ids" if settings.subnets else "subnets"
        yield f"sagemaker.{missing} is empty; a VPC takes both subnets and security_group_ids, or neither"
    if region is None:
        yield "sagemaker.region is not set, and neither is AWS_REGION; give one, such as us-east-1"
    elif region not in (known := known_regions("sagemaker")):
        near = nearest(region, sorted(known))
        yield f"sagemaker.region={region!r} is none where this botocore knows SageMaker; install a newer boto3{near}"
    elif settings.role is not None and settings.role.split(":")[1:2] != [partition(region)[0]]:
        yield f"sagemaker.role={settings.role!r} is not of {region}, whose ARNs begin with arn:{partition(region)[0]}:"
    elif settings.image is None:
        yield (
            "sagemaker.image is not set; build docker/rollout_learner.Dockerfile, push it to ECR and give "
            "ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG"
        )
    else:
        yield from _of_image(settings, settings.image, region)
        yield from _of_arns(settings, region)
    for key in settings.tags:
        if key.lower().startswith("aws:"):
            yield f"sagemaker.tags has {key!r}, and names that begin with aws: are AWS's own; choose another"


def _of_arns(settings: SageMakerConfig, region: str) -> Iterator[str]:
    for name in ("kms_key", "volume_kms_key", "registry_credentials", "training_plan"):
        parts = (getattr(settings, name) or "").split(":")
        if parts[0] == "arn" and parts[1:4:2] != [partition(region)[0], region]:
            yield f"sagemaker.{name}={':'.join(parts)!r} is not of {region}, where the job is; give one that is"


def _of_image(settings: SageMakerConfig, image: str, region: str) -> Iterator[str]:
    registry, _, name = image.partition("/")
    ecr = _ECR.fullmatch(registry)
    if not _IMAGE.fullmatch(name) or not (ecr or _REGISTRY.fullmatch(registry)):
        yield (
            f"sagemaker.image={image!r} is not the whole name of an image; write "
            f"ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG, or REGISTRY/NAME:TAG of one in your VPC"
        )
    elif ecr and ecr[1] != region:
        yield f"sagemaker.image={image!r} is in {ecr[1]}, and the job in {region}; push it to ECR there"
    elif ecr and ecr[2] != (domain := partition(region)[1]):
        yield f"sagemaker.image={image!r} is in no ECR: that of {region} is ACCOUNT.dkr.ecr.{region}.{domain}"
    elif ecr and settings.registry_credentials:
        yield f"sagemaker.registry_credentials is about a registry of your own, and {image!r} is in ECR; leave it out"
    elif not ecr and not settings.subnets:
        yield (
            f"sagemaker.image={image!r} is not in ECR, and a registry of your own is only reached from a VPC; give "
            f"sagemaker.subnets and sagemaker.security_group_ids, or push the image to ECR"
        )


def _of_isolation(settings: SageMakerConfig, run: RunConfig) -> Iterator[str]:
    why = "sagemaker.network_isolation=true leaves the hosts without any network but their own"
    if run.reward.url is not None:
        yield f"{why}: reward.url={run.reward.url!r} is not reached; leave it out, and the run starts one"
    if settings.secrets:
        yield f"{why}: sagemaker.secrets cannot be fetched; leave one of them out"
    name = run.model.name
    if name not in EMBEDDED_MODELS and not name.startswith("s3://") and local_model_folder(run) is None:
        yield f"{why}: model.name={name!r} is not fetched from the hub; give a folder here or s3://…"


def _of_instances(settings: SageMakerConfig) -> Iterator[str]:
    kind, groups = settings.instance_type, settings.instance_groups
    if kind is None and not groups:
        yield "sagemaker.instance_type is not set; give one, such as ml.p4d.24xlarge, or instance_groups"
    if kind is not None and groups:
        yield f"sagemaker.instance_type={kind} and sagemaker.instance_groups are both set; leave one out"
    if groups and settings.instance_count != 1:
        yield f"sagemaker.instance_count={settings.instance_count} belongs to instance_type; groups have their own"
    counts = Counter(group.role for group in groups)
    for role in (LEARNER, ROLLOUT) if groups else ():
        if role not in counts:
            yield f"sagemaker.instance_groups has no group with role={role}, only {', '.join(counts)}; add one"
    for role, count in counts.items():
        if count > 1:
            yield f"sagemaker.instance_groups has {count} groups with role={role}; make them one, with more hosts"
    if settings.volume_kms_key is not None:
        for kind in sorted({kind for kind, _ in instance_kinds(settings).values() if has_own_disks(kind)}):
            yield (
                f"sagemaker.volume_kms_key: {kind} has disks of its own, which its hardware encrypts, and takes no key "
                f"for them; leave it out"
            )


def _of_times(settings: SageMakerConfig) -> Iterator[str]:
    runtime, keep, wait = settings.max_runtime_s, settings.keep_alive_s, settings.max_wait_s
    exclude = f"sagemaker.keep_alive_s={keep} and sagemaker.{{}} exclude each other: warm pools do not take {{}}"
    if keep and settings.spot:
        yield exclude.format("spot=true", "spot capacity; leave one out")
    if keep and settings.instance_groups:
        yield exclude.format("instance_groups", "heterogeneous clusters; leave keep_alive_s out")
    if settings.training_plan and settings.spot:
        yield "sagemaker.training_plan is capacity that is reserved, and spot=true capacity that is left; leave one out"
    if settings.spot and wait is None:
        yield f"sagemaker.spot=true needs sagemaker.max_wait_s, for waiting and running together; at least {runtime}"
    if wait is not None and not settings.spot:
        yield f"sagemaker.max_wait_s={wait} is about spot capacity; add sagemaker.spot=true, or drop it"
    if wait is not None and wait < runtime:
        yield f"sagemaker.max_wait_s={wait} is less than sagemaker.max_runtime_s={runtime}, which it includes; raise it"


def _of_run(settings: SageMakerConfig, run: RunConfig) -> Iterator[str]:
    """The configuration of a run that was submitted before has what the container's has, and is let through."""
    if run.run_dir not in (None, str(RUN_FOLDER)):
        yield (
            f"run_dir={run.run_dir!r} cannot be kept: in a training job it is the folder that SageMaker copies to S3; "
            f"leave it out, and use sagemaker.resume=NAME to go on from an earlier job"
        )
    for name, value in (("rollout_nodes", run.rollout_nodes), ("learner_nodes", run.learner_nodes)):
        if value is not None and not (settings.instance_groups and value == name.removesuffix("_nodes")):
            yield (
                f"{name}={value!r} is set by sagemaker.instance_groups in a training job; leave it out, and give "
                f"groups with the roles rollout and learner"
            )


def _of_reward(settings: SageMakerConfig, run: RunConfig) -> Iterator[str]:
    reward, groups = run.reward, instance_kinds(settings)
    if reward.url is not None and "reward" in groups:
        yield f"reward.url={reward.url!r} leaves the reward group without work; leave one of them out"
    for name, file in (("settings_file", reward.settings_file), ("api_key_file", reward.api_key_file)):
        if file is not None and not file.expanduser().is_file():
            yield f"reward.{name}={str(file)!r} is not a file here; give one, and it is sent along"
    if reward.deployment.kind == "actor" and (strange := set(reward.deployment.resources) - set(groups)):
        yield (
            f"reward.deployment.resources asks for {min(strange)!r}, which no host of this job has; add a group with "
            f"role=reward to sagemaker.instance_groups, or leave it out"
        )


def _of_data_file(name: str, file: str) -> Iterator[str]:
    if file.startswith("s3://"):
        if not _S3_OBJECT.fullmatch(file):
            yield f"{name}={file!r} is not an object on S3; write s3://BUCKET/KEY of one file"
    elif not is_utf8(file):
        yield f"{name}={file!r} is a name that is not in UTF-8, as keys on S3 are; rename the file"
    elif not Path(file).expanduser().is_file():
        yield f"{name}={file!r} is not a file here; give one, or s3://BUCKET/KEY (`rlvr prepare` puts them there)"


def _of_model(run: RunConfig) -> Iterator[str]:
    name = run.model.name
    if name.startswith("s3://"):
        if not _S3_FOLDER.fullmatch(name):
            yield f"model.name={name!r} is not a folder on S3; write s3://BUCKET/FOLDER/"
    elif (folder := local_model_folder(run)) is not None:
        try:
            check_trainable(folder)
        except DataError as error:
            yield f"model.name={name!r}: {error}"
    elif name.startswith(("/", ".", "~")):
        yield f"model.name={name!r} is not a folder here; give one, s3://BUCKET/FOLDER/ or a hub id"
