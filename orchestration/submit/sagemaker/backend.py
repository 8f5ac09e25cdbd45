"""`--to sagemaker`: a training job whose hosts form a Ray cluster of their own, for as long as the run lasts."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from orchestration.errors import SubmitError
from orchestration.settings.config import dump_config
from orchestration.settings.submit import SubmitConfig
from orchestration.storage.aws import client, configured_region, error_code, explained
from orchestration.storage.s3 import parse
from orchestration.submit.common.job import JobSpec, JobState, JobStatus, Plan, Say
from orchestration.submit.ray.jobs import DASHBOARD_PORT
from orchestration.submit.sagemaker.checks import check
from orchestration.submit.sagemaker.container import Layout
from orchestration.submit.sagemaker.fitting import groups_by_role
from orchestration.submit.sagemaker.host.places import AUTH, TOKEN_FILE
from orchestration.submit.sagemaker.logs import follow_logs, read_logs
from orchestration.submit.sagemaker.request import StagedJob, staged

_TOKEN_BYTES = 32
_UPLOADS_AT_ONCE = 8
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
    """Training jobs. A reference holds `job_name`, `region`, `bucket`, `prefix` and `remote_debug`; with groups
    `head_group` too."""

    def __init__(self, settings: SubmitConfig) -> None:
        self._settings = settings.sagemaker

    def plan(self, job: JobSpec) -> Plan:
        region = self._checked(job)
        with staged(self._settings, job, region=region) as ready:
            request = {
                "region": region,
                "uploads": {
                    **{upload.uri: upload.describe() for upload in ready.uploads},
                    ready.token_uri: "made at submission",
                },
                "run": yaml.safe_load(dump_config(ready.inputs.run)),
                "CreateTrainingJob": dict(ready.request),
            }
        return Plan(request=request, text=yaml.safe_dump(request, sort_keys=False, width=120))

    def submit(self, job: JobSpec, say: Say) -> dict[str, str]:
        region, settings = self._checked(job), self._settings
        sagemaker = client("sagemaker", region)
        _refuse_taken_name(sagemaker, job.name)
        with staged(settings, job, region=region) as ready:
            self._upload(ready, region, say)
            _create(sagemaker, ready.request, say)
        if settings.spot and not job.run.save_every:
            say("spot hosts may vanish without notice, and save_every=0 keeps nothing for that case")
        hosts = groups_by_role(settings).values()
        what = ", ".join(f"{group.instance_count} × {group.instance_type}" for group in hosts)
        say(f"training job {job.name} in {region} on {what or f'{settings.instance_count} × {settings.instance_type}'}")
        reference = {
            "job_name": job.name,
            "region": region,
            "bucket": str(settings.bucket),
            "prefix": settings.prefix,
            "remote_debug": str(settings.remote_debug).lower(),
        }
        return reference | ({"head_group": "learner"} if settings.instance_groups else {})

    def status(self, reference: Mapping[str, str]) -> JobStatus:
        return training_status(_describe(reference))

    def logs(self, reference: Mapping[str, str], *, follow: bool) -> Iterator[str]:
        logs = client("logs", reference["region"])
        if not follow:
            return read_logs(logs, reference["job_name"])

        def ended() -> bool:
            state = self.status(reference).state
            return state.ended or state is JobState.UNKNOWN  # else a job that is not there is waited for

        return follow_logs(logs, reference["job_name"], ended=ended)

    def stop(self, reference: Mapping[str, str]) -> None:
        name = reference["job_name"]
        if self.status(reference).state.ended:
            return
        sagemaker = client("sagemaker", reference["region"])
        try:
            with explained(f"stopping the training job {name}"):
                sagemaker.stop_training_job(TrainingJobName=name)
        except SubmitError:
            if not self.status(reference).state.ended:  # else it ended by itself between the two calls
                raise

    def dashboard_hint(self, reference: Mapping[str, str]) -> str:
        name, region = reference["job_name"], reference["region"]
        if reference.get("remote_debug") == "false":
            return f"{name} was started with sagemaker.remote_debug=false, and without it there is no way in"
        forward = shlex.join(
            [
                *("aws", "ssm", "start-session", "--region", region),
                *("--target", f"sagemaker-training-job:{name}_algo-1"),
                *("--document-name", "AWS-StartPortForwardingSession"),
                *("--parameters", f'{{"portNumber":["{DASHBOARD_PORT}"],"localPortNumber":["{DASHBOARD_PORT}"]}}'),
            ]
        )
        layout = Layout(bucket=reference["bucket"], folder=f"{reference['prefix']}/jobs", name=name)
        token = f"aws s3 cp --region {region} {layout.channel(AUTH)}/{TOKEN_FILE} -"
        where = " (the log says which host is the head, should it not be algo-1)" if "head_group" in reference else ""
        return f"{forward}{where}, then open http://localhost:{DASHBOARD_PORT} with the token that `{token}` prints"

    def _checked(self, job: JobSpec) -> str:
        """The job's region. Raises ConfigError for all that would be refused later."""
        region = configured_region(self._settings.region)
        check(self._settings, job.run, job.data_files, region=region)
        assert region is not None
        return region

    def _upload(self, ready: StagedJob, region: str, say: Say) -> None:
        s3, encrypted = client("s3", region), self._encryption()
        with explained("uploading the cluster's token"):  # first: it says in the clearest words what S3 refuses
            token = parse(ready.token_uri)
            s3.put_object(
                Bucket=token.bucket, Key=token.key, Body=secrets.token_hex(_TOKEN_BYTES).encode(), **encrypted
            )
        for upload in ready.uploads:
            say(f"uploading {upload.describe()} to {upload.uri}")

        def send(file: tuple[Path, str]) -> None:
            path, uri = file
            place = parse(uri)
            with explained(f"uploading {path.name} to {uri}"):
                s3.upload_file(str(path), place.bucket, place.key, ExtraArgs=encrypted)

        files = [file for upload in ready.uploads for file in upload.files()]
        with ThreadPoolExecutor(_UPLOADS_AT_ONCE) as pool:
            try:
                for sent in [pool.submit(send, file) for file in files]:
                    sent.result()
            finally:
                pool.shutdown(cancel_futures=True)  # what has not begun when one fails is not tried

    def _encryption(self) -> dict[str, str]:
        if self._settings.kms_key is None:
            return {"ServerSideEncryption": "AES256"}
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self._settings.kms_key}


def training_status(description: Mapping[str, Any] | None) -> JobStatus:
    """A job's state from DescribeTrainingJob; from None, that SageMaker does not know it."""
    if description is None:
        return JobStatus(state=JobState.UNKNOWN, message="SageMaker knows no training job of that name")
    secondary = str(description.get("SecondaryStatus", ""))
    state = _STATES[description["TrainingJobStatus"]]
    if state is JobState.RUNNING and secondary in _BEFORE_TRAINING:
        state = JobState.PENDING
    if secondary in _LIMITS:
        return JobStatus(state=JobState.FAILED, message=f"{secondary}: {_LIMITS[secondary]}")
    transitions = description.get("SecondaryStatusTransitions") or [{}]
    detail = description.get("FailureReason") or transitions[-1].get("StatusMessage") or ""
    return JobStatus(state=state, message=": ".join(part for part in (secondary, " ".join(detail.split())) if part))


def _describe(reference: Mapping[str, str]) -> Mapping[str, Any] | None:
    """None for a job that SageMaker does not know."""
    return _describe_by(client("sagemaker", reference["region"]), reference["job_name"])


def _describe_by(sagemaker: Any, name: str) -> Mapping[str, Any] | None:
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


def _refuse_taken_name(sagemaker: Any, name: str) -> None:
    """Before anything is uploaded: another job's token and configuration lie below its name."""
    if _describe_by(sagemaker, name) is not None:
        raise SubmitError(f"there is a training job named {name!r} already; give another job.name")


def _create(sagemaker: Any, request: Mapping[str, Any], say: Say) -> None:
    try:
        with explained("starting the training job"):
            sagemaker.create_training_job(**request)
    except SubmitError:
        # An answer that is lost makes botocore ask again, and then the name is taken, by this job.
        if _describe_by(sagemaker, request["TrainingJobName"]) is None:
            raise
        say("AWS did not say so in time, but the training job is there")
