"""The SageMaker backend against moto: what is sent, what lies on S3, what is said of a job afterwards."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import botocore.handlers
import jsonschema
import pytest
from botocore.session import Session as BotocoreSession
from botocore.stub import Stubber
from botocore.validate import ParamValidator
from moto import mock_aws

from orchestration.errors import ConfigError, SubmitError
from orchestration.report.plain import EVALUATION_METRICS, LINE_METRICS, metric_regex
from orchestration.settings.config import load_config, load_settings
from orchestration.submit.common.job import JobSpec
from orchestration.submit.common.package import CodePackage
from orchestration.submit.sagemaker import backend as sagemaker
from orchestration.submit.sagemaker import request
from orchestration.submit.sagemaker.backend import SageMakerBackend
from orchestration.submit.sagemaker.container import Layout, container_inputs
from orchestration.submit.sagemaker.limits import breaches

EXPECTED = Path(__file__).parent / "expected"
REGION, BUCKET, NAME = "us-west-2", "runs.example", "rlvr-tiny-20261121-172233"
FOLDER = f"rlvr/jobs/{NAME}"
ACCOUNT = (
    "sagemaker.role=arn:aws:iam::123456789012:role/rlvr",
    f"sagemaker.bucket={BUCKET}",
    f"sagemaker.region={REGION}",
    f"sagemaker.image=123456789012.dkr.ecr.{REGION}.amazonaws.com/rlvr:1.0",
)
ONE_HOST = ("sagemaker.instance_type=ml.p4d.24xlarge", "sagemaker.tags={team: post-training}")
GROUPS = (
    "sagemaker.instance_groups=[{role: rollout, instance_type: ml.g5.12xlarge, instance_count: 2}, "
    "{role: reward, instance_type: ml.c5.4xlarge}, {role: learner, instance_type: ml.p4d.24xlarge}]"
)
CASES = {
    "one_host": ONE_HOST,
    "several_hosts": (
        *ONE_HOST,
        "sagemaker.instance_count=2",
        "sagemaker.subnets=[subnet-1]",
        "sagemaker.security_group_ids=[sg-1]",
        "job.environment={NCCL_DEBUG: INFO, NCCL_SOCKET_IFNAME: eth1}",
    ),
    "heterogeneous": (GROUPS, "rollout.num_workers=8", "learner.num_ranks=8", "sagemaker.remote_debug=false"),
    "spot": (*ONE_HOST, "sagemaker.spot=true", "sagemaker.max_wait_s=172800", "sagemaker.resume=rlvr-earlier-1"),
    "warm_pool": (*ONE_HOST, "sagemaker.keep_alive_s=1800", "sagemaker.kms_key=1234abcd-12ab-34cd-56ef-1234567890ab"),
}

Captured = list[dict[str, Any]]


@pytest.fixture
def code(tmp_path: Path) -> CodePackage:
    """As little as the SDK takes."""
    entry = tmp_path / "code" / "orchestration" / "cli.py"
    entry.parent.mkdir(parents=True)
    entry.write_text("pass")
    return CodePackage(folder=tmp_path / "code", digest="0" * 64, num_files=1, num_bytes=4)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Captured:
    """Parameters of every CreateTrainingJob, as botocore is given them: first by the SDK, then by us."""
    seen: Captured = []
    event = ("provide-client-params.sagemaker.CreateTrainingJob", lambda params, **_: seen.append(params))
    monkeypatch.setattr(botocore.handlers, "BUILTIN_HANDLERS", [*botocore.handlers.BUILTIN_HANDLERS, event])
    return seen


@pytest.fixture
def aws() -> Iterator[Any]:
    """moto's AWS with the bucket in it; gives its S3."""
    with mock_aws():
        s3 = boto3.client("s3", region_name=REGION)
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        yield s3


def prepared(code: CodePackage, settings: Sequence[str], recipe: str = "tiny") -> tuple[SageMakerBackend, JobSpec]:
    both = load_settings(recipe, [*ACCOUNT, *settings])
    job = JobSpec(name=NAME, run=both.run, code=code, environment=both.submit.job.environment)
    return SageMakerBackend(both.submit), job


def objects(s3: Any) -> dict[str, bytes]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {key: s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def test_the_sdks_defaults_are_as_its_schema_wants_them() -> None:
    from sagemaker.core.config.config_schema import SAGEMAKER_PYTHON_SDK_CONFIG_SCHEMA

    jsonschema.validate(request._SDK_DEFAULTS, SAGEMAKER_PYTHON_SDK_CONFIG_SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**request._SDK_DEFAULTS, "SageMakr": {}}, SAGEMAKER_PYTHON_SDK_CONFIG_SCHEMA)


@pytest.mark.parametrize("case", CASES)
def test_what_is_sent_is_what_is_expected_and_what_was_planned(
    case: str, code: CodePackage, aws: Any, captured: Captured
) -> None:
    backend, job = prepared(code, CASES[case])
    plan = backend.plan(job)
    backend.submit(job, lambda line: None)
    by_sdk, by_sdk_again, sent = captured

    assert sent == plan.request["CreateTrainingJob"] == by_sdk | {"TrainingJobName": NAME}
    assert by_sdk_again["TrainingJobName"].startswith(f"{NAME}-")  # the SDK's habit
    definitions = sent["AlgorithmSpecification"].pop("MetricDefinitions")
    assert definitions == [{"Name": name, "Regex": metric_regex(name)} for name in (*LINE_METRICS, *EVALUATION_METRICS)]
    expected = json.loads((EXPECTED / f"{case}.json").read_text())
    assert json.dumps(sent, indent=2) == json.dumps(expected, indent=2)

    shape = BotocoreSession().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    sent["AlgorithmSpecification"]["MetricDefinitions"] = definitions
    assert ParamValidator().validate(sent, shape).generate_report() == ""
    assert list(breaches(sent, shape)) == []


def test_everything_that_a_run_reads_is_uploaded(code: CodePackage, aws: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    for name, text in (("config.json", "{}"), ("model.safetensors", "weights"), ("tokenizer.json", "{}")):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(text)
    (model / "linked.json").symlink_to(model / "config.json")
    (tmp_path / "train #1.jsonl").write_text("training problems")
    (tmp_path / "service.yml").write_text("max_batch_items: 8")
    backend, job = prepared(
        code,
        [
            *CASES["heterogeneous"],
            f"model.name={model}",
            f"data={{kind: gsm8k, train_file: '{tmp_path}/train #1.jsonl', eval_file: 's3://elsewhere/gsm8k/test.jsonl'}}",
            f"reward.settings_file={tmp_path}/service.yml",
            "reward.deployment={kind: actor, num_cpus: 6}",
        ],
    )
    said: list[str] = []
    reference = backend.submit(job, said.append)
    stored = {key.removeprefix(f"{FOLDER}/input/"): content for key, content in objects(aws).items()}

    assert stored["model/model.safetensors"] == b"weights"
    assert stored["model/linked.json"] == b"{}"
    assert stored["train/train #1.jsonl"] == b"training problems"
    assert stored["config/reward.yaml"] == b"max_batch_items: 8"
    assert stored["code/orchestration/cli.py"] == (code.folder / "orchestration" / "cli.py").read_bytes()
    assert "sm_drivers/distributed_drivers/driver.py" in stored
    assert json.loads(stored["sm_drivers/distributed.json"]) == {
        "join_timeout_s": 900.0,
        "roles": {"learner": "learner", "rollout": "rollout", "reward": "reward"},
        "head_group": "learner",
    }
    assert not [key for key in stored if key.endswith(".pyc")]
    # `eval` of it makes the driver what SageMaker sends SIGTERM to
    assert (
        b"exec $SM_PYTHON_CMD /opt/ml/input/data/sm_drivers/distributed_drivers/driver.py"
        in stored["sm_drivers/sm_train.sh"]
    )

    (tmp_path / "run.yaml").write_bytes(stored["config/run.yaml"])
    run = load_config(str(tmp_path / "run.yaml"))
    assert (run.run_dir, run.ray_address) == ("/opt/ml/checkpoints/run", "auto")
    assert run.model.name == "/opt/ml/input/data/model"
    assert run.data.model_dump(include={"train_file", "eval_file"}) == {
        "train_file": "/opt/ml/input/data/train/train #1.jsonl",
        "eval_file": "/opt/ml/input/data/validation/test.jsonl",
    }
    assert (run.rollout_nodes, run.learner_nodes) == ("rollout", "learner")
    assert str(run.reward.settings_file) == "/opt/ml/input/data/config/reward.yaml"
    assert run.reward.deployment.model_dump() == {"kind": "actor", "num_cpus": 6, "resources": {"reward": 0.001}}
    assert reference == {
        "job_name": NAME,
        "region": REGION,
        "bucket": BUCKET,
        "prefix": "rlvr",
        "remote_debug": "false",
        "head_group": "learner",
    }
    assert "1 × ml.p4d.24xlarge, 2 × ml.g5.12xlarge, 1 × ml.c5.4xlarge" in said[-1]


def test_a_reward_service_key_goes_beside_the_token(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2")
    both = load_settings("tiny", [*ACCOUNT, "reward.url=http://10.0.0.7", f"reward.api_key_file={tmp_path}/key"])
    inputs = container_inputs(both.submit.sagemaker, both.run, {}, Layout.of(both.submit.sagemaker, NAME))
    assert str(inputs.run.reward.api_key_file) == "/opt/ml/input/data/auth/reward_api_key"
    (upload,) = inputs.uploads
    assert upload.uri == f"s3://{BUCKET}/{FOLDER}/input/auth/reward_api_key"


def test_a_model_on_s3_is_read_where_it_lies() -> None:
    both = load_settings("tiny", [*ACCOUNT, "model.name=s3://elsewhere/models/qwen"])
    inputs = container_inputs(both.submit.sagemaker, both.run, {}, Layout.of(both.submit.sagemaker, NAME))
    assert inputs.run.model.name == "/opt/ml/input/data/model"
    assert (inputs.channels["model"], inputs.uploads) == ("s3://elsewhere/models/qwen/", ())


def test_the_token_is_in_one_place_and_encrypted(code: CodePackage, aws: Any, captured: Captured) -> None:
    said: list[str] = []
    backend, job = prepared(code, ONE_HOST)
    reference = backend.submit(job, said.append)
    planned = backend.plan(job).request
    token_key = f"{FOLDER}/input/auth/auth_token"
    stored = objects(aws)
    token = stored.pop(token_key)
    assert re.fullmatch(rb"[0-9a-f]{64}", token)
    assert aws.head_object(Bucket=BUCKET, Key=token_key)["ServerSideEncryption"] == "AES256"
    assert not [key for key, content in stored.items() if token in content]
    told = json.dumps([captured, reference, said, planned], default=str)
    assert token.decode() not in told


def test_a_plan_needs_no_account_and_no_network(
    code: CodePackage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    backend, job = prepared(code, ONE_HOST)
    plan = backend.plan(job)
    assert json.loads(json.dumps(plan.request)) == plan.request
    assert plan.request["uploads"][f"s3://{BUCKET}/{FOLDER}/input/auth/auth_token"] == "made at submission"
    assert "TrainingJobName: " + NAME in plan.text
    assert capfd.readouterr() == ("", ""), "the SDK is quiet"


def test_hosts_have_the_disk_that_the_settings_say(code: CodePackage) -> None:
    backend, job = prepared(code, [*ONE_HOST, "sagemaker.volume_size_gib=321"])
    request = backend.plan(job).request["CreateTrainingJob"]
    assert request["ResourceConfig"]["VolumeSizeInGB"] == 321


def test_the_services_limits_are_kept_before_it_is_asked(code: CodePackage) -> None:
    backend, job = prepared(code, [*ONE_HOST, f"job.environment={{LONG: {'x' * 513}}}"])
    with pytest.raises(ConfigError, match=r"Environment\.LONG has 513 characters, at most 512"):
        backend.plan(job)


def test_a_name_that_is_taken_is_refused_before_anything_is_uploaded(code: CodePackage, aws: Any) -> None:
    request = json.loads((EXPECTED / "one_host.json").read_text())
    boto3.client("sagemaker", region_name=REGION).create_training_job(**request)
    backend, job = prepared(code, ONE_HOST)
    with pytest.raises(SubmitError, match="there is a training job named"):
        backend.submit(job, lambda line: None)
    assert objects(aws) == {}


def test_no_bucket_is_said_with_the_remedy(code: CodePackage) -> None:
    with mock_aws():
        backend, job = prepared(code, ONE_HOST)
        with pytest.raises(SubmitError, match=r"NoSuchBucket.*; correct the bucket's name"):
            backend.submit(job, lambda line: None)


def test_no_credentials_are_said_with_the_remedy(
    code: CodePackage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    backend, job = prepared(code, ONE_HOST)
    with pytest.raises(SubmitError, match="Unable to locate credentials; run `aws configure`"):
        backend.submit(job, lambda line: None)


A_DESCRIPTION = {
    "TrainingJobName": NAME,
    "TrainingJobArn": f"arn:aws:sagemaker:{REGION}:123456789012:training-job/{NAME}",
    "ModelArtifacts": {"S3ModelArtifacts": ""},
    "TrainingJobStatus": "InProgress",
    "SecondaryStatus": "Starting",
    "StoppingCondition": {},
    "CreationTime": datetime(2026, 11, 21, tzinfo=UTC),
}


@pytest.mark.parametrize("is_there", [True, False])
def test_a_job_whose_start_was_not_answered_is_not_lost(
    is_there: bool, code: CodePackage, aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = boto3.client("sagemaker", region_name=REGION)
    monkeypatch.setattr(sagemaker, "client", lambda name, region: client if name == "sagemaker" else aws)
    backend, job = prepared(code, ONE_HOST)
    said: list[str] = []
    with Stubber(client) as stubber:
        stubber.add_client_error("describe_training_job", "ValidationException", "Requested resource not found.")
        stubber.add_client_error("create_training_job", "ResourceInUse", "The name is taken")
        if is_there:
            stubber.add_response("describe_training_job", A_DESCRIPTION)
            backend.submit(job, said.append)
        else:
            stubber.add_client_error("describe_training_job", "ValidationException", "Requested resource not found.")
            with pytest.raises(SubmitError, match=r"starting the training job: .*ResourceInUse"):
                backend.submit(job, said.append)
    assert any("the training job is there" in line for line in said) is is_there
