"""`rlvr submit … --to sagemaker` and `rlvr jobs`, against moto's server; the first as a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import boto3
import pytest
from moto.server import ThreadedMotoServer

from orchestration.cli import main
from orchestration.submit.sagemaker.logs import LOG_GROUP

REGION, BUCKET = "eu-west-1", "runs.example"
SUBMIT = (
    "submit",
    "tiny",
    "--to",
    "sagemaker",
    "job.name=tiny-1",
    "sagemaker.role=arn:aws:iam::123456789012:role/rlvr",
    f"sagemaker.bucket={BUCKET}",
    f"sagemaker.image=123456789012.dkr.ecr.{REGION}.amazonaws.com/rlvr:1.0",
    "sagemaker.instance_type=ml.p4d.24xlarge",
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of somebody without an AWS account."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {
        "HOME": str(tmp_path),
        "RLVR_STATE": str(tmp_path / "state"),
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def rlvr(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestration.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def rlvr_here(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported it all."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ, environment, clear=True), redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.mark.slow
def test_a_dry_run_without_an_account(environment: dict[str, str]) -> None:
    result = rlvr(environment, *SUBMIT, "--dry-run", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    plan = json.loads(result.stdout)
    assert plan["region"] == REGION
    assert plan["CreateTrainingJob"]["ResourceConfig"]["InstanceType"] == "ml.p4d.24xlarge"
    assert plan["run"]["run_dir"] == "/opt/ml/checkpoints/run"
    assert plan["notes"][0].startswith("8 GPUs: 4 rollout workers")

    refused = rlvr_here(environment, *SUBMIT, "--dry-run", "sagemaker.keep_alive_s=99999")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("rlvr: sagemaker.keep_alive_s=99999: input should be less than or equal to 3600")

    unsent = rlvr_here(environment, *SUBMIT)
    assert unsent.returncode == 1
    assert "Unable to locate credentials; run `aws configure`" in unsent.stderr
    assert unsent.stderr.splitlines()[-1].startswith("rlvr: ")


@pytest.mark.slow
def test_a_job_from_its_submission_to_its_end(environment: dict[str, str], endpoint: str) -> None:
    keys = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with_account = environment | keys
    options = {
        "region_name": REGION,
        "endpoint_url": endpoint,
        "aws_access_key_id": "a",
        "aws_secret_access_key": "b",
    }
    s3, logs = boto3.client("s3", **options), boto3.client("logs", **options)
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})

    submitted = rlvr_here(with_account, *SUBMIT, "--json")
    assert submitted.returncode == 0, submitted.stderr
    assert json.loads(submitted.stdout)["reference"]["job_name"] == "tiny-1"
    keys_stored = {entry["Key"].split("/", 4)[-1] for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert {"config/run.yaml", "config/hosts.json", "auth/auth_token"} <= keys_stored

    logs.create_log_group(logGroupName=LOG_GROUP)
    stream = {"logGroupName": LOG_GROUP, "logStreamName": "tiny-1/algo-1-1"}
    logs.create_log_stream(**stream)
    logs.put_log_events(**stream, logEvents=[{"timestamp": int(time.time() * 1000), "message": "step 1/2 loss=0.5"}])
    status = rlvr_here(with_account, "jobs", "status", "tiny-1", "--json")
    assert json.loads(status.stdout)["state"] == "succeeded"  # moto's jobs end at once
    assert rlvr_here(with_account, "jobs", "stop", "tiny-1").returncode == 0
    where = "s3://runs.example/rlvr/jobs/tiny-1/checkpoints/run/adapter"
    assert json.loads(status.stdout)["evaluate"] == f"rlvr eval --model tiny --adapter {where} --data tiny"
    followed = rlvr_here(with_account, "jobs", "logs", "-f", "tiny-1")
    assert (followed.returncode, followed.stdout) == (0, "step 1/2 loss=0.5\n")
    assert f"adapter: {where}\n" in followed.stderr
    assert f"to measure it here: rlvr eval --model tiny --adapter {where} --data tiny\n" in followed.stderr
    place = json.loads(submitted.stdout)["reference"]["token"].removeprefix(f"s3://{BUCKET}/")
    token = s3.get_object(Bucket=BUCKET, Key=place)["Body"].read().decode()
    state = "".join(path.read_text() for path in Path(environment["RLVR_STATE"]).rglob("*.json"))
    assert "tiny-1" in state
    assert token not in state + submitted.stdout + submitted.stderr
