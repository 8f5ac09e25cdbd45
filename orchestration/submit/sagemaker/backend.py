"""`--to sagemaker`: a training job whose hosts form a Ray cluster of their own, for as long as the run lasts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from orchestration.errors import ConfigError, SubmitError
from orchestration.run.ledger.names import ADAPTER_FOLDER
from orchestration.settings.config import dump_config
from orchestration.settings.sagemaker import AwsService
from orchestration.settings.submit import SubmitConfig
from orchestration.storage.aws import client, configured_region, error_code, explained
from orchestration.submit.common.job import (
    JobSpec,
    JobState,
    JobStatus,
    Plan,
    Record,
    Say,
    check_variables,
    unrecorded,
)
from orchestration.submit.ray.jobs import DASHBOARD_PORT
from orchestration.submit.sagemaker.checks import check
from orchestration.submit.sagemaker.container import container_inputs
from orchestration.submit.sagemaker.fitting import instance_kinds, notes
from orchestration.submit.sagemaker.logs import logs_of
from orchestration.submit.sagemaker.request import form, has_dashboard
from orchestration.submit.sagemaker.uploads import check_resumable, put_all, resumers

_STATES = {
    "InProgress": JobState.RUNNING,
    "Stopping": JobState.RUNNING,
    "Completed": JobState.SUCCEEDED,
    "Failed": JobState.FAILED,
    "Stopped": JobState.STOPPED,
}
_BEFORE_TRAINING = (
    "Starting",
    "Pending",
    "Downloading",
    "DownloadingTrainingImage",
    "LaunchingMLInstances",
    "PreparingTraining",
    "Interrupted",
)
_LIMITS = {
    "MaxRuntimeExceeded": "it ran longer than sagemaker.max_runtime_s",
    "MaxWaitTimeExceeded": "it waited longer than sagemaker.max_wait_s for spot capacity",
}


class SageMakerBackend:
    """Training jobs. A reference holds `job_name`, `region`, `token` and `adapter` on S3, `remote_debug`; with groups
    `head_group` too."""

    def __init__(self, settings: SubmitConfig) -> None:
        self._settings = settings.sagemaker

    def plan(self, job: JobSpec) -> Plan:
        region, inputs = self._checked(job), container_inputs(self._settings, job)
        request = {
            "region": region,
            "uploads": {
                inputs.layout.token: "made at submission",
                **{upload.uri: upload.describe() for upload in inputs.uploads},
            },
            "run": yaml.safe_load(dump_config(inputs.run)),
            "CreateTrainingJob": form(self._settings, job, inputs),
        }
        return Plan(request=request, notes=notes(self._settings, job.run))

    def submit(self, job: JobSpec, say: Say, record: Record = unrecorded) -> dict[str, str]:
        region, settings = self._checked(job), self._settings
        inputs = container_inputs(settings, job)
        request, layout = form(settings, job, inputs), inputs.layout
        sagemaker, s3 = (self._client(service, region) for service in ("sagemaker", "s3"))
        if settings.resume is not None:
            for name in (settings.resume, *resumers(s3, layout, settings.resume)):
                earlier = _describe(sagemaker, name)
                if earlier is not None and not training_status(earlier).state.ended:
                    raise ConfigError(
                        f"sagemaker.resume={settings.resume!r}: {name!r} is running still, and two jobs would write "
                        f"one folder; stop it first: rlvr jobs stop {name}"
                    )
            check_resumable(s3, layout, settings.resume)
        put_all(s3, layout, inputs.uploads, kms_key=settings.kms_key, say=say)
        reference = {
            "job_name": job.name,
            "region": region,
            "token": layout.token,
            "adapter": f"{layout.run_folder(settings.resume)}/{ADAPTER_FOLDER}",
            "remote_debug": str(has_dashboard(settings)).lower(),
        }
        if settings.instance_groups:
            reference["head_group"] = "learner"
        record(reference)
        _create(sagemaker, request, say)
        hosts = ", ".join(f"{count} × {kind}" for kind, count in instance_kinds(settings).values())
        say(f"training job {job.name} in {region} on {hosts}")
        return reference

    def status(self, reference: Mapping[str, str]) -> JobStatus:
        name, sagemaker = reference["job_name"], self._client("sagemaker", reference["region"])
        return training_status(_describe(sagemaker, name))

    def logs(self, reference: Mapping[str, str], *, follow: bool) -> Iterator[str]:
        logs = self._client("logs", reference["region"])
        ended = (lambda: self.status(reference).state.over) if follow else None
        return logs_of(logs, reference["job_name"], ended=ended)

    def stop(self, reference: Mapping[str, str]) -> None:
        name = reference["job_name"]
        if self.status(reference).state.ended:
            return
        sagemaker = self._client("sagemaker", reference["region"])
        try:
            with explained(f"stopping the training job {name}"):
                sagemaker.stop_training_job(TrainingJobName=name)
        except SubmitError:
            if not self.status(reference).state.ended:  # else it ended by itself between the two calls
                raise

    def dashboard_hint(self, reference: Mapping[str, str]) -> str:
        name, region = reference["job_name"], reference["region"]
        if reference.get("remote_debug") == "false":
            return f"{name} was started without sagemaker.remote_debug, or isolated: there is no way in"
        forward = shlex.join(
            [
                *("aws", "ssm", "start-session", "--region", region),
                *("--target", f"sagemaker-training-job:{name}_algo-1"),
                *("--document-name", "AWS-StartPortForwardingSession"),
                *("--parameters", f'{{"portNumber":["{DASHBOARD_PORT}"],"localPortNumber":["{DASHBOARD_PORT}"]}}'),
            ]
        )
        token = f"aws s3 cp --region {region} {reference.get('token')} -"
        where = " (the log says which host is the head, should it not be algo-1)" if "head_group" in reference else ""
        return f"{forward}{where}, then open http://localhost:{DASHBOARD_PORT} with the token that `{token}` prints"

    def _checked(self, job: JobSpec) -> str:
        """The job's region. Raises ConfigError for all that would be refused later."""
        region = configured_region(self._settings.region)
        check(self._settings, job.run, region=region)
        check_variables(job, self._settings.secrets, place="sagemaker")
        assert region is not None
        return region

    def _client(self, service: AwsService, region: str) -> Any:
        return client(service, region, self._settings.endpoints.get(service))


def training_status(description: Mapping[str, Any] | None) -> JobStatus:
    """A job's state from DescribeTrainingJob; from None, that SageMaker does not know it."""
    if description is None:
        return JobStatus(state=JobState.UNKNOWN, message="SageMaker knows no training job of that name")
    secondary = str(description.get("SecondaryStatus", ""))
    state = _STATES.get(description["TrainingJobStatus"], JobState.UNKNOWN)
    if state is JobState.RUNNING and secondary in _BEFORE_TRAINING:
        state = JobState.PENDING
    if secondary in _LIMITS:
        return JobStatus(state=JobState.FAILED, message=f"{secondary}: {_LIMITS[secondary]}")
    transitions = description.get("SecondaryStatusTransitions") or [{}]
    detail = description.get("FailureReason") or transitions[-1].get("StatusMessage") or ""
    return JobStatus(state=state, message=": ".join(part for part in (secondary, " ".join(detail.split())) if part))


def _describe(sagemaker: Any, name: str) -> Mapping[str, Any] | None:
    """None for a job that SageMaker does not know."""
    from botocore.exceptions import ClientError

    with explained(f"asking for the training job {name}"):
        try:
            description: Mapping[str, Any] = sagemaker.describe_training_job(TrainingJobName=name)
        except ClientError as error:
            # What SageMaker answers for a name that it does not know.
            if error_code(error) in ("ValidationException", "ResourceNotFound"):
                return None
            raise
    return description


def _create(sagemaker: Any, request: Mapping[str, Any], say: Say) -> None:
    name = request["TrainingJobName"]
    try:
        with explained(f"starting the training job {name}"):
            sagemaker.create_training_job(**request)
    except SubmitError as refused:
        # An answer that is lost makes botocore ask again, and then the name is taken: by this job, or by another's.
        try:
            there = _describe(sagemaker, name)
        except SubmitError:
            raise refused from None
        if there is None or _inputs(there) != _inputs(request):
            raise
        say("AWS did not say so in time, but the training job is there")


def _inputs(job: Mapping[str, Any]) -> set[str]:
    """Where a job's channels lie: some of them are of one submission alone."""
    return {channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in job.get("InputDataConfig") or ()}
