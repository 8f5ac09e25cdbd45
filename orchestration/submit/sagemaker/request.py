"""The CreateTrainingJob request: a dictionary as AWS documents it, checked against botocore's model of the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestration.errors import ConfigError
from orchestration.report.plain import EVALUATION_METRICS, LINE_METRICS, metric_regex
from orchestration.settings.sagemaker import SageMakerConfig
from orchestration.storage.aws import input_shape
from orchestration.submit.common.job import JobSpec
from orchestration.submit.sagemaker.container import Inputs
from orchestration.submit.sagemaker.fitting import efa_environment, instance_kinds
from orchestration.submit.sagemaker.host.places import CHANNELS_FOLDER, CHECKPOINTS_FOLDER
from orchestration.submit.sagemaker.limits import breaches

ENTRY_SCRIPT = CHANNELS_FOLDER / "code/orchestration/submit/sagemaker/driver/driver.py"


def is_in_ecr(image: str) -> bool:
    """Whether SageMaker fetches an image by the job's role; from elsewhere it goes through the job's VPC."""
    return ".dkr.ecr" in image.partition("/")[0]


def has_dashboard(settings: SageMakerConfig) -> bool:
    """Whether SSM reaches the hosts."""
    return settings.remote_debug and not settings.network_isolation


def form(settings: SageMakerConfig, job: JobSpec, inputs: Inputs) -> dict[str, Any]:
    """Parameters of CreateTrainingJob.

    Args:
        settings: Checked, by `checks.check`.
        job: Checked.
        inputs: Of the job.

    Raises:
        ConfigError: botocore is not installed, or one of the service's limits is not kept.
    """
    assert settings.image is not None, "checked before"
    layout = inputs.layout
    metrics = (*LINE_METRICS, *EVALUATION_METRICS)
    credentials = _given(TrainingRepositoryCredentialsProviderArn=settings.registry_credentials)
    registry = _given(TrainingRepositoryAccessMode="Vpc", TrainingRepositoryAuthConfig=credentials)
    request = _given(
        TrainingJobName=job.name,
        AlgorithmSpecification=_given(
            TrainingImage=settings.image,
            TrainingImageConfig=None if is_in_ecr(settings.image) else registry,
            TrainingInputMode="File",
            ContainerEntrypoint=["python3"],
            ContainerArguments=[str(ENTRY_SCRIPT)],
            MetricDefinitions=[{"Name": name, "Regex": metric_regex(name)} for name in metrics],
        ),
        RoleArn=settings.role,
        InputDataConfig=[_channel(name, uri) for name, uri in inputs.channels.items()],
        OutputDataConfig=_given(S3OutputPath=layout.output, KmsKeyId=settings.kms_key, CompressionType="GZIP"),
        ResourceConfig=_hosts(settings),
        VpcConfig=_given(Subnets=list(settings.subnets), SecurityGroupIds=list(settings.security_group_ids)),
        StoppingCondition=_given(MaxRuntimeInSeconds=settings.max_runtime_s, MaxWaitTimeInSeconds=settings.max_wait_s),
        Tags=[{"Key": key, "Value": value} for key, value in settings.tags.items()],
        EnableNetworkIsolation=settings.network_isolation,
        EnableInterContainerTrafficEncryption=settings.encrypt_traffic,
        EnableManagedSpotTraining=settings.spot,
        CheckpointConfig={"S3Uri": layout.checkpoints(settings.resume), "LocalPath": str(CHECKPOINTS_FOLDER)},
        Environment={**efa_environment(settings), **job.environment},  # the user's variables win
        RemoteDebugConfig=_given(EnableRemoteDebug=has_dashboard(settings)),
        SessionChainingConfig=_given(EnableSessionTagChaining=settings.session_tags),
    )
    _check_limits(request)
    return request


def _given(**members: Any) -> dict[str, Any]:
    """Those that say something: what is left out is to the service nothing, no, or no entries."""
    return {name: value for name, value in members.items() if value}


def _channel(name: str, uri: str) -> dict[str, Any]:
    kind = "S3Prefix" if uri.endswith("/") else "ManifestFile"
    source = {"S3DataType": kind, "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": "File"}


def _hosts(settings: SageMakerConfig) -> dict[str, Any]:
    kinds, groups = instance_kinds(settings), bool(settings.instance_groups)
    smallest = any(kind == "ml.g4dn.xlarge" for kind, _ in kinds.values())
    return _given(
        InstanceGroups=groups
        and [
            {"InstanceGroupName": role, "InstanceType": kind, "InstanceCount": count}
            for role, (kind, count) in kinds.items()
        ],
        InstanceType=settings.instance_type,
        InstanceCount=None if groups else settings.instance_count,
        # Of disks that are a type's own no more may be asked for than there is.
        VolumeSizeInGB=min(settings.volume_size_gib, 125) if smallest else settings.volume_size_gib,
        VolumeKmsKeyId=settings.volume_kms_key,
        TrainingPlanArn=settings.training_plan,
        KeepAlivePeriodInSeconds=settings.keep_alive_s,
    )


def _check_limits(request: Mapping[str, Any]) -> None:
    shape = input_shape("sagemaker", "CreateTrainingJob")
    from botocore.validate import ParamValidator

    problem = ParamValidator().validate(request, shape).generate_report() or next(breaches(request, shape), None)
    if problem:
        raise ConfigError(f"SageMaker would refuse the job: {problem}; change the setting it comes from")
