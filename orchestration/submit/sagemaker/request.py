"""The CreateTrainingJob request, formed by the SageMaker SDK's ModelTrainer and caught before anything is sent.

The SDK is kept from the network, the AWS configuration and the credentials of this machine, so that a request depends
on the settings and the run alone: what a dry run shows is what a submission sends. It also packs what its own script in
the container needs; that is caught too, as files to upload.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.errors import ConfigError
from orchestration.extras import require
from orchestration.report.plain import EVALUATION_METRICS, LINE_METRICS, metric_regex
from orchestration.settings.config import dump_config
from orchestration.settings.sagemaker import SageMakerConfig
from orchestration.submit.common.job import JobSpec
from orchestration.submit.ray.jobs import RUN_FILE
from orchestration.submit.sagemaker.container import Inputs, Layout, Upload, container_inputs
from orchestration.submit.sagemaker.fitting import efa_environment, groups_by_role
from orchestration.submit.sagemaker.host.places import AUTH, CHECKPOINTS_FOLDER, CONFIG, TOKEN_FILE
from orchestration.submit.sagemaker.limits import breaches

DRIVER_FOLDER = Path(__file__).parent / "driver"
DRIVER_SCRIPT = "driver.py"
ENTRY_SCRIPT = "orchestration/cli.py"
# For the SDK's script, in place of its own call of the driver. Without `exec` a shell would be process 1 of the
# container, to which SageMaker sends SIGTERM, and keep it to itself.
COMMAND = f"exec $SM_PYTHON_CMD /opt/ml/input/data/sm_drivers/distributed_drivers/{DRIVER_SCRIPT}"

_SDK_DEFAULTS = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
_ENVIRONMENT = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "SAGEMAKER_ADMIN_CONFIG_OVERRIDE": os.devnull,
    "SAGEMAKER_USER_CONFIG_OVERRIDE": os.devnull,
    "SAGEMAKER_VALIDATE_ROLE": "false",  # it would ask IAM
}
_UNSET = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE")


class _Formed(Exception):  # noqa: N818  # not an error: the SDK has done its work
    """Ends the SDK's call where it would send the request."""


class _NotSentError(Exception):
    """The SDK tried to reach AWS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedJob:
    """Everything a submission sends, but for the token, which is made then."""

    request: Mapping[str, Any]
    """Parameters of CreateTrainingJob."""
    uploads: tuple[Upload, ...]
    token_uri: str
    inputs: Inputs


@contextmanager
def staged(settings: SageMakerConfig, job: JobSpec, *, region: str) -> Iterator[StagedJob]:
    """Form a checked job's request; the files to upload are there for as long as the block lasts.

    Args:
        job: with the paths of this machine, and checked by `checks.check`.

    Raises:
        ConfigError: the SDK is not installed, or one of the service's limits is not kept.
    """
    require("sagemaker", by="SageMaker", extra="sagemaker")
    layout = Layout.of(settings, job.name)
    inputs = container_inputs(settings, job.run, job.data_files, layout)
    with tempfile.TemporaryDirectory(prefix="rlvr-sagemaker-") as name:
        staging = Path(name)
        run_file = staging / RUN_FILE
        run_file.write_text(dump_config(inputs.run), encoding="utf-8")
        with _sdk_alone():
            request, caught = _form(settings, job, inputs, layout, region=region, staging=staging)
        yield StagedJob(
            request=request,
            uploads=(
                Upload(uri=f"{layout.channel(CONFIG)}/{RUN_FILE}", source=run_file),
                *inputs.uploads,
                *caught,
            ),
            token_uri=f"{layout.channel(AUTH)}/{TOKEN_FILE}",
            inputs=inputs,
        )


def job_environment(settings: SageMakerConfig, job: JobSpec) -> dict[str, str]:
    """The container's environment; the user's variables win."""
    return {**efa_environment(settings), **job.environment}


@contextmanager
def _sdk_alone() -> Iterator[None]:
    """The SDK neither reads this machine's configuration nor writes to its terminal, nor checks what does not change.

    A dozen times it compares its defaults, here `_SDK_DEFAULTS`, with their schema, and each time that schema with the
    schema of all schemas: five sixths of the time that a request took.
    """
    import jsonschema

    check, jsonschema.validate = jsonschema.validate, lambda *args, **kwargs: None
    before = {name: os.environ.get(name) for name in (*_ENVIRONMENT, *_UNSET)}
    logger = logging.getLogger("sagemaker")
    level = logger.level
    os.environ.update(_ENVIRONMENT)
    for name in _UNSET:
        os.environ.pop(name, None)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        jsonschema.validate = check
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _form(
    settings: SageMakerConfig, job: JobSpec, inputs: Inputs, layout: Layout, *, region: str, staging: Path
) -> tuple[dict[str, Any], list[Upload]]:
    import boto3
    from sagemaker.core.helper.session_helper import Session

    caught: list[Upload] = []
    formed: list[dict[str, Any]] = []

    class CatchingSession(Session):  # type: ignore[misc]  # untyped
        """Takes what the SDK would upload."""

        def default_bucket(self) -> str:
            return layout.bucket

        def upload_data(self, path: str, bucket: Any = None, key_prefix: str = "", **kwargs: Any) -> str:
            channel = key_prefix.rpartition("/")[2]
            place = staging / "channels" / channel
            shutil.copytree(path, place)  # the SDK deletes its own
            uri = layout.channel(channel)
            caught.append(Upload(uri=uri, source=place))
            return uri

    def catch(params: dict[str, Any], **kwargs: Any) -> None:
        formed.append(params)
        raise _Formed

    def refuse(**kwargs: Any) -> None:
        raise _NotSentError

    # No real credentials, but without any the SDK would fail before it forms the request.
    boto = boto3.Session(region_name=region, aws_access_key_id="none", aws_secret_access_key="none")
    boto.events.register_first("before-send", refuse)
    boto.events.register("provide-client-params.sagemaker.CreateTrainingJob", catch)
    session = CatchingSession(boto_session=boto, default_bucket=layout.bucket, sagemaker_config=_SDK_DEFAULTS)
    with suppress(_Formed):
        _train(settings, job, inputs, layout, session)
    assert len(formed) == 1, "ModelTrainer.train() ends in one CreateTrainingJob"
    # The SDK appends the time to the name that it is given.
    request: dict[str, Any] = json.loads(json.dumps(formed[0] | {"TrainingJobName": job.name}))
    _check_limits(request, boto)
    return request, caught


def _train(settings: SageMakerConfig, job: JobSpec, inputs: Inputs, layout: Layout, session: Any) -> None:
    from sagemaker.core.training.configs import (
        CheckpointConfig,
        InputData,
        MetricDefinition,
        Networking,
        OutputDataConfig,
        RemoteDebugConfig,
        SourceCode,
        StoppingCondition,
        Tag,
    )
    from sagemaker.train import ModelTrainer

    vpc = {"subnets": list(settings.subnets), "security_group_ids": list(settings.security_group_ids)}
    trainer = ModelTrainer(
        sagemaker_session=session,
        role=settings.role,
        base_job_name=job.name,
        training_image=settings.image,
        source_code=SourceCode(source_dir=str(job.code.folder), entry_script=ENTRY_SCRIPT, command=COMMAND),
        distributed=_ray_cluster(settings),
        compute=_compute(settings),
        networking=Networking(**vpc) if settings.subnets else None,
        stopping_condition=StoppingCondition(
            max_runtime_in_seconds=settings.max_runtime_s,
            **({} if settings.max_wait_s is None else {"max_wait_time_in_seconds": settings.max_wait_s}),
        ),
        output_data_config=OutputDataConfig(s3_output_path=layout.output, kms_key_id=settings.kms_key),
        checkpoint_config=CheckpointConfig(
            s3_uri=layout.checkpoints(settings.resume), local_path=str(CHECKPOINTS_FOLDER)
        ),
        environment=job_environment(settings, job),
        tags=[Tag(key=key, value=value) for key, value in settings.tags.items()] or None,
    )
    if settings.remote_debug:  # the SDK sends what is false as nothing at all
        trainer.with_remote_debug_config(RemoteDebugConfig(enable_remote_debug=True))
    names = (*LINE_METRICS, *EVALUATION_METRICS)
    trainer.with_metric_definitions([MetricDefinition(name=name, regex=metric_regex(name)) for name in names])
    channels = [InputData(channel_name=name, data_source=uri) for name, uri in inputs.channels.items()]
    trainer.train(input_data_config=channels, wait=False, logs=False)


def _compute(settings: SageMakerConfig) -> Any:
    from sagemaker.core.shapes import InstanceGroup
    from sagemaker.core.training.configs import Compute

    groups = groups_by_role(settings)
    if groups:
        hosts: dict[str, Any] = {
            "instance_groups": [
                InstanceGroup(
                    instance_group_name=role, instance_type=group.instance_type, instance_count=group.instance_count
                )
                for role, group in groups.items()
            ]
        }
    else:
        hosts = {"instance_type": settings.instance_type, "instance_count": settings.instance_count}
    if settings.keep_alive_s:
        hosts["keep_alive_period_in_seconds"] = settings.keep_alive_s
    return Compute(
        volume_size_in_gb=settings.volume_size_gib, enable_managed_spot_training=settings.spot or None, **hosts
    )


def _ray_cluster(settings: SageMakerConfig) -> Any:
    """Our driver for the SDK. Its fields reach the container as JSON in SM_DISTRIBUTED_CONFIG."""
    from sagemaker.train.distributed import DistributedConfig

    class RayCluster(DistributedConfig):  # type: ignore[misc]  # untyped
        """A Ray cluster of the job's hosts, whose head runs the recipe as a Ray job."""

        join_timeout_s: float
        roles: dict[str, str]
        head_group: str | None

        @property
        def driver_dir(self) -> str:
            return str(DRIVER_FOLDER)

        @property
        def driver_script(self) -> str:
            return DRIVER_SCRIPT

    groups = groups_by_role(settings)
    return RayCluster(
        join_timeout_s=settings.join_timeout_s,
        roles={role: role for role in groups},
        head_group="learner" if groups else None,
    )


def _check_limits(request: Mapping[str, Any], boto: Any) -> None:
    from botocore.exceptions import ParamValidationError
    from botocore.validate import ParamValidator

    model = boto.client("sagemaker").meta.service_model.operation_model("CreateTrainingJob")
    report = ParamValidator().validate(request, model.input_shape)
    if report.has_errors():
        raise ParamValidationError(report=report.generate_report())
    problem = next(breaches(request, model.input_shape), None)
    if problem is not None:
        raise ConfigError(f"SageMaker would refuse the job: {problem}; change the setting it comes from")
