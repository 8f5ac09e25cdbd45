"""What is said of a training job after its submission: state, log, stop, dashboard; and what AWS refuses, in words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import (
    ConnectTimeoutError,
    EndpointConnectionError,
    NoRegionError,
    ProfileNotFound,
    UnauthorizedSSOTokenError,
)
from botocore.stub import Stubber
from moto import mock_aws

from orchestration.errors import ConfigError, SubmitError
from orchestration.settings.config import load_settings
from orchestration.storage.aws import configured_region, explained
from orchestration.submit.common.job import JobState
from orchestration.submit.sagemaker import backend as sagemaker
from orchestration.submit.sagemaker.backend import SageMakerBackend, training_status
from orchestration.submit.sagemaker.logs import LOG_GROUP, logs_of

REGION, BUCKET, NAME = "us-west-2", "runs.example", "rlvr-tiny-20261121-172233"
STARTED_MS = int(datetime.now(UTC).timestamp() * 1000)
REFERENCE = {
    "job_name": NAME,
    "region": REGION,
    "token": f"s3://{BUCKET}/rlvr/jobs/{NAME}/input-1/auth/auth_token",
    "adapter": f"s3://{BUCKET}/rlvr/jobs/{NAME}/checkpoints/run/adapter",
    "remote_debug": "true",
}


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubber]:
    """The backend's SageMaker client with scripted answers."""
    client = boto3.client("sagemaker", region_name=REGION, aws_access_key_id="a", aws_secret_access_key="b")
    monkeypatch.setattr(sagemaker, "client", lambda service, region, endpoint: client)
    with Stubber(client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


def described(status: str, secondary: str = "Training", **more: object) -> dict[str, Any]:
    arn = f"arn:aws:sagemaker:{REGION}:123456789012:training-job/{NAME}"
    return {
        "TrainingJobName": NAME,
        "TrainingJobArn": arn,
        "ModelArtifacts": {"S3ModelArtifacts": ""},
        "TrainingJobStatus": status,
        "SecondaryStatus": secondary,
        "StoppingCondition": {},
        "CreationTime": datetime(2026, 11, 21, tzinfo=UTC),
        **more,
    }


def a_backend() -> SageMakerBackend:
    return SageMakerBackend(load_settings("tiny").submit)


def test_a_running_job_is_stopped(stubbed: Stubber) -> None:
    stubbed.add_response("describe_training_job", described("InProgress"), {"TrainingJobName": NAME})
    stubbed.add_response("stop_training_job", {}, {"TrainingJobName": NAME})
    a_backend().stop(REFERENCE)


def test_a_job_that_has_ended_is_left_as_it_is(stubbed: Stubber) -> None:
    stubbed.add_response("describe_training_job", described("Completed", "Completed"))
    a_backend().stop(REFERENCE)


def test_a_job_that_ends_before_it_is_stopped_is_left_as_it_is(stubbed: Stubber) -> None:
    stubbed.add_response("describe_training_job", described("InProgress"))
    stubbed.add_client_error("stop_training_job", "ValidationException", "The job is Completed.")
    stubbed.add_response("describe_training_job", described("Completed", "Completed"))
    a_backend().stop(REFERENCE)


def test_a_stop_that_is_not_allowed_is_said(stubbed: Stubber) -> None:
    stubbed.add_response("describe_training_job", described("InProgress"))
    stubbed.add_client_error("stop_training_job", "AccessDeniedException", "User is not authorized.")
    stubbed.add_response("describe_training_job", described("InProgress"))
    with pytest.raises(
        SubmitError, match=r"stopping .*AccessDeniedException: User is not authorized; let your AWS identity"
    ):
        a_backend().stop(REFERENCE)


def test_a_job_that_sagemaker_does_not_know_is_unknown(stubbed: Stubber) -> None:
    stubbed.add_client_error("describe_training_job", "ValidationException", "Requested resource not found.")
    assert a_backend().status(REFERENCE).state is JobState.UNKNOWN


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("ResourceLimitExceeded", "Service Quotas"),
        ("ExpiredTokenException", "aws sso login"),
        ("UnrecognizedClientException", "aws sts get-caller-identity"),
        ("InvalidSignatureException", "check this machine's clock"),
        ("ThrottlingException", "try again in a minute"),
        ("TooManyRequestsException", "try again in a minute"),
    ],
)
def test_refusals_come_with_the_remedy(stubbed: Stubber, code: str, says: str) -> None:
    stubbed.add_client_error("describe_training_job", code, "No.")
    with pytest.raises(SubmitError, match=f"AWS refused with .*: No; .*{says}"):
        a_backend().status(REFERENCE)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (EndpointConnectionError(endpoint_url="https://x"), 'endpoint URL: "https://x"; check the network'),
        (ConnectTimeoutError(endpoint_url="https://x"), "; check the network"),
        (ProfileNotFound(profile="me"), "; correct AWS_PROFILE"),
        (UnauthorizedSSOTokenError(), "; sign in again by `aws sso login`"),
        (NoRegionError(), "; set sagemaker.region"),
        (FileNotFoundError(2, "No such file", "/opt/sign-in"), "No such file: '/opt/sign-in'; is that what"),
        (EOFError(), "wants an MFA code, and here is no terminal"),
        (S3UploadFailedError("Failed to upload a to b/a"), "Failed to upload a to b/a"),
    ],
)
def test_what_does_not_reach_aws_comes_with_the_remedy(error: Exception, says: str) -> None:
    with pytest.raises(SubmitError) as told, explained("uploading"):
        raise error
    assert str(told.value).startswith("uploading: ")
    assert says in str(told.value)


def test_a_configuration_of_aws_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text("[default]\nregion = us-east-1\n[broken\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(ConfigError, match=r"Unable to parse config file: .*/config; correct"):
        configured_region(None)
    monkeypatch.setenv("AWS_REGION", "eu-west-2")  # as all of AWS's tools but boto3 have it
    assert configured_region(None) == "eu-west-2"


@pytest.mark.parametrize(
    ("description", "state", "message"),
    [
        (described("InProgress", "Starting"), JobState.PENDING, "Starting"),
        (
            described(
                "InProgress",
                "Pending",
                SecondaryStatusTransitions=[{"Status": "Pending", "StatusMessage": "Insufficient capacity"}],
            ),
            JobState.PENDING,
            "Pending: Insufficient capacity",
        ),
        (described("InProgress"), JobState.RUNNING, "Training"),
        (described("InProgress", "Uploading"), JobState.RUNNING, "Uploading"),
        (described("Stopping", "Stopping"), JobState.RUNNING, "Stopping"),
        (described("Stopped", "Stopped"), JobState.STOPPED, "Stopped"),
        (described("Deleting", "Stopped"), JobState.UNKNOWN, "Stopped"),
        (described("Stopped", "MaxRuntimeExceeded"), JobState.FAILED, "MaxRuntimeExceeded: it ran longer than"),
        (described("Completed", "Completed"), JobState.SUCCEEDED, "Completed"),
        (
            described("Failed", "Failed", FailureReason="AlgorithmError: the head, algo-1, is gone\n"),
            JobState.FAILED,
            "Failed: AlgorithmError: the head, algo-1, is gone",
        ),
    ],
)
def test_states_and_their_reasons(description: dict[str, Any], state: JobState, message: str) -> None:
    status = training_status(description)
    assert status.state is state
    assert status.message.startswith(message)


@pytest.fixture
def logs() -> Iterator[Any]:
    """moto's CloudWatch Logs."""
    with mock_aws():
        yield boto3.client("logs", region_name=REGION)


def log_to(logs: Any, host: str, *events: tuple[int, str]) -> None:
    stream = f"{NAME}/{host}-1732209999"
    logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
    entries = [{"timestamp": STARTED_MS + at, "message": text} for at, text in events]
    logs.put_log_events(logGroupName=LOG_GROUP, logStreamName=stream, logEvents=entries)


def test_logs_of_all_hosts_in_the_order_of_time(logs: Any) -> None:
    backend = a_backend()
    assert list(backend.logs(REFERENCE, follow=False)) == []  # not even the group is there
    logs.create_log_group(logGroupName=LOG_GROUP)
    log_to(logs, "algo-1", (0, "head is up"), (200, "step 1/2 loss=0.5"))
    assert list(backend.logs(REFERENCE, follow=False)) == ["head is up\n", "step 1/2 loss=0.5\n"]
    log_to(logs, "algo-2", (100, "joined"))
    logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=f"{NAME}-2/algo-1-1")  # of another job
    assert list(backend.logs(REFERENCE, follow=False)) == [
        "[algo-1] head is up\n",
        "[algo-2] joined\n",
        "[algo-1] step 1/2 loss=0.5\n",
    ]


def test_logs_are_followed_until_the_job_has_ended(logs: Any) -> None:
    logs.create_log_group(logGroupName=LOG_GROUP)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            log_to(logs, "algo-1", (0, "late"))

    pieces = logs_of(logs, NAME, ended=lambda: len(pauses) >= 1, sleep=sleep)
    assert list(pieces) == ["late\n"]
    assert len(pauses) == 2
    assert list(logs_of(logs, NAME)) == ["late\n"]


def test_a_throttled_look_is_made_again_and_expired_credentials_are_said() -> None:
    client = boto3.client("logs", region_name=REGION, aws_access_key_id="a", aws_secret_access_key="b")
    with Stubber(client) as answers:
        answers.add_client_error("describe_log_streams", "ResourceNotFoundException", "No group.")
        answers.add_client_error("describe_log_streams", "ThrottlingException", "Rate exceeded.")
        answers.add_client_error("describe_log_streams", "ExpiredTokenException", "Expired.")
        followed = logs_of(client, NAME, ended=lambda: False, sleep=lambda _: None)
        with pytest.raises(SubmitError, match=r"looking for the logs .*ExpiredTokenException: Expired; sign in again"):
            list(followed)
        answers.assert_no_pending_responses()


def test_the_dashboard_is_reached_through_ssm() -> None:
    hint = a_backend().dashboard_hint(REFERENCE)
    assert f"--target sagemaker-training-job:{NAME}_algo-1" in hint
    assert f"s3://{BUCKET}/rlvr/jobs/{NAME}/input-1/auth/auth_token" in hint
    closed = a_backend().dashboard_hint({**REFERENCE, "remote_debug": "false"})
    assert "no way in" in closed
