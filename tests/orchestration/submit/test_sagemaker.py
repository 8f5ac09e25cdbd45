"""The SageMaker backend against moto: what is sent, what lies on S3, what is said of a job afterwards."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import botocore.handlers
import pytest
from botocore.exceptions import ClientError
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
from orchestration.submit.sagemaker.backend import SageMakerBackend
from orchestration.submit.sagemaker.container import Inputs, container_inputs
from orchestration.submit.sagemaker.limits import breaches

EXPECTED = Path(__file__).parent / "expected"
REGION, BUCKET, NAME = "us-west-2", "runs.example", "rlvr-tiny-20261121-172233"
FOLDER = f"rlvr/jobs/{NAME}"
SUBMISSION = "0123456789ab"
INPUT = f"{FOLDER}/input-{SUBMISSION}"
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
        "sagemaker.training_plan=arn:aws:sagemaker:us-west-2:123456789012:training-plan/reserved",
    ),
    "heterogeneous": (GROUPS, "rollout.num_workers=8", "learner.num_ranks=8", "sagemaker.remote_debug=false"),
    "spot": (*ONE_HOST, "sagemaker.spot=true", "sagemaker.max_wait_s=172800", "sagemaker.resume=rlvr-earlier-1"),
    "warm_pool": (*ONE_HOST, "sagemaker.keep_alive_s=1800", "sagemaker.kms_key=1234abcd-12ab-34cd-56ef-1234567890ab"),
    "guarded": (
        *ONE_HOST,
        "sagemaker.instance_type=ml.c5.9xlarge",  # hosts with disks of their own take no key for them
        "sagemaker.instance_count=2",
        "sagemaker.image=registry.corp.example:5000/ml/rlvr:1.0",
        "sagemaker.registry_credentials=arn:aws:lambda:us-west-2:123456789012:function:registry",
        "sagemaker.subnets=[subnet-1, subnet-2]",
        "sagemaker.security_group_ids=[sg-1]",
        "sagemaker.network_isolation=true",
        "sagemaker.encrypt_traffic=true",
        "sagemaker.kms_key=arn:aws:kms:us-west-2:123456789012:key/results",
        "sagemaker.volume_kms_key=arn:aws:kms:us-west-2:123456789012:key/volumes",
        "sagemaker.session_tags=true",
    ),
}

Captured = list[dict[str, Any]]


@pytest.fixture
def code(tmp_path: Path) -> CodePackage:
    """As little as is sent."""
    entry = tmp_path / "code" / "orchestration" / "cli.py"
    entry.parent.mkdir(parents=True)
    entry.write_text("pass")
    return CodePackage(folder=tmp_path / "code", digest="0" * 64, num_files=1, num_bytes=4)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Captured:
    """Parameters of every CreateTrainingJob, as botocore is given them."""
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
    environment = both.submit.job.environment
    job = JobSpec(name=NAME, run=both.run, code=code, environment=environment, submission=SUBMISSION)
    return SageMakerBackend(both.submit), job


def objects(s3: Any) -> dict[str, bytes]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {key: s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def leave_checkpoint(s3: Any, job: str, **summary: Any) -> None:
    """What a job's run has left in the bucket."""
    run = f"rlvr/jobs/{job}/checkpoints/run"
    s3.put_object(Bucket=BUCKET, Key=f"{run}/checkpoints/step-000004/state.json", Body=b"{}")
    if summary:
        s3.put_object(Bucket=BUCKET, Key=f"{run}/summary.json", Body=json.dumps(summary).encode())


@pytest.mark.parametrize("case", CASES)
def test_what_is_sent_is_what_is_expected_and_what_was_planned(
    case: str, code: CodePackage, aws: Any, captured: Captured
) -> None:
    backend, job = prepared(code, CASES[case])
    leave_checkpoint(aws, "rlvr-earlier-1")
    plan = backend.plan(job)
    backend.submit(job, lambda line: None)
    (sent,) = captured

    assert sent == plan.request["CreateTrainingJob"]
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
    stored = {key.removeprefix(f"{INPUT}/"): content for key, content in objects(aws).items()}

    assert stored["model/model.safetensors"] == b"weights"
    assert stored["model/linked.json"] == b"{}"
    assert stored["train/train #1.jsonl"] == b"training problems"
    assert stored["config/reward.yaml"] == b"max_batch_items: 8"
    assert stored["code/orchestration/cli.py"] == (code.folder / "orchestration" / "cli.py").read_bytes()
    assert json.loads(stored["manifests/validation.json"]) == [{"prefix": "s3://elsewhere/gsm8k/"}, "test.jsonl"]
    assert json.loads(stored["config/hosts.json"]) == {
        "join_timeout_s": 900.0,
        "head_group": "learner",
        "gpus": {"learner": 8, "rollout": 4},
        "adapter": f"s3://{BUCKET}/{FOLDER}/checkpoints/run/adapter",
        "secrets": {},
        "endpoints": {},
    }
    assert not [key for key in stored if key.endswith(".pyc")]

    (tmp_path / "run.yaml").write_bytes(stored["config/run.yaml"])
    run = load_config(str(tmp_path / "run.yaml"))
    assert (run.run_dir, run.ray_address) == ("/opt/ml/checkpoints/run", "auto")
    assert run.device == "cuda", "auto would go on without the GPUs that are paid for"
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
        "token": f"s3://{BUCKET}/{INPUT}/auth/auth_token",
        "adapter": f"s3://{BUCKET}/{FOLDER}/checkpoints/run/adapter",
        "remote_debug": "false",
        "head_group": "learner",
    }
    assert "1 × ml.p4d.24xlarge, 2 × ml.g5.12xlarge, 1 × ml.c5.4xlarge" in said[-1]


def inputs_of(code: CodePackage, *settings: str) -> Inputs:
    both = load_settings("tiny", [*ACCOUNT, *ONE_HOST, *settings])
    job = JobSpec(name=NAME, run=both.run, code=code, submission=SUBMISSION)
    return container_inputs(both.submit.sagemaker, job)


def test_a_reward_service_key_goes_beside_the_token(code: CodePackage, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2")
    inputs = inputs_of(code, "reward.url=http://10.0.0.7", f"reward.api_key_file={tmp_path}/key")
    assert str(inputs.run.reward.api_key_file) == "/opt/ml/input/data/auth/reward_api_key"
    assert f"s3://{BUCKET}/{INPUT}/auth/reward_api_key" in [upload.uri for upload in inputs.uploads]


def test_a_model_on_s3_is_read_where_it_lies(code: CodePackage) -> None:
    inputs = inputs_of(code, "model.name=s3://elsewhere/models/qwen")
    assert inputs.run.model.name == "/opt/ml/input/data/model"
    assert inputs.channels["model"] == "s3://elsewhere/models/qwen/"
    assert not [upload for upload in inputs.uploads if "model" in upload.uri]


def test_no_channel_brings_its_neighbours(code: CodePackage) -> None:
    inputs = inputs_of(code, "data={kind: gsm8k, train_file: 's3://b-1/train.jsonl', eval_file: 's3://b-1/test.jsonl'}")
    assert {name for name, uri in inputs.channels.items() if not uri.endswith("/")} == {"train", "validation"}


def test_the_reward_service_has_the_cores_of_its_host(code: CodePackage) -> None:
    both = load_settings("tiny", [*ACCOUNT, GROUPS])
    inputs = container_inputs(both.submit.sagemaker, JobSpec(name=NAME, run=both.run, code=code))
    assert inputs.run.reward.deployment.model_dump()["num_cpus"] == 15  # of 16: one is Ray's


def test_the_token_is_in_one_place(code: CodePackage, aws: Any, captured: Captured) -> None:
    said: list[str] = []
    backend, job = prepared(code, ONE_HOST)
    reference = backend.submit(job, said.append)
    planned = backend.plan(job).request
    token_key = f"{INPUT}/auth/auth_token"
    stored = objects(aws)
    token = stored.pop(token_key)
    assert re.fullmatch(rb"[0-9a-f]{64}", token)
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
    assert plan.request["uploads"][f"s3://{BUCKET}/{INPUT}/auth/auth_token"] == "made at submission"
    assert "TrainingJobName: " + NAME in plan.text()
    assert capfd.readouterr() == ("", "")


def test_hosts_have_the_disk_that_the_settings_say(code: CodePackage) -> None:
    small = ("sagemaker.instance_type=ml.g4dn.xlarge", "rollout.dtype=float16", "learner.dtype=float32")
    for words, gib in (((*ONE_HOST, "sagemaker.volume_size_gib=321"), 321), (small, 125)):  # that type's own disk
        backend, job = prepared(code, words)
        request = backend.plan(job).request["CreateTrainingJob"]
        assert request["ResourceConfig"]["VolumeSizeInGB"] == gib


def test_the_services_limits_are_kept_before_it_is_asked(code: CodePackage) -> None:
    backend, job = prepared(code, [*ONE_HOST, f"job.environment={{LONG: {'x' * 513}}}"])
    with pytest.raises(ConfigError, match=r"Environment\.LONG has 513 characters, at most 512"):
        backend.plan(job)


class Unique:
    """moto's SageMaker, which takes a name twice, as the real one, which does not."""

    def __init__(self) -> None:
        self._client = boto3.Session(region_name=REGION).client("sagemaker")

    def create_training_job(self, **request: Any) -> None:
        if self._client.list_training_jobs(NameContains=request["TrainingJobName"])["TrainingJobSummaries"]:
            error = {"Code": "ResourceInUse", "Message": "Training job names must be unique"}
            raise ClientError({"Error": error}, "CreateTrainingJob")
        self._client.create_training_job(**request)

    def describe_training_job(self, **request: Any) -> Any:
        return self._client.describe_training_job(**request)


def test_of_two_submissions_of_a_name_one_is_refused(
    code: CodePackage, aws: Any, captured: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SageMaker alone: they write nothing that the other reads, and neither takes the other's job for its own."""
    monkeypatch.setattr(sagemaker, "client", lambda name, *_: Unique() if name == "sagemaker" else aws)
    backend, first = prepared(code, ONE_HOST)
    second = dataclasses.replace(first, submission="ba9876543210")
    backend.submit(first, print)
    before = objects(aws)
    with pytest.raises(SubmitError, match=r"ResourceInUse.*give another job\.name"):
        backend.submit(second, print)
    after = objects(aws)
    assert {key: after[key] for key in before} == before
    assert {key.split("/")[3] for key in after.keys() - before.keys()} == {"input-ba9876543210"}
    uris = [channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in captured[0]["InputDataConfig"]]
    assert all(f"/input-{SUBMISSION}/" in uri for uri in uris)


def test_nothing_that_is_there_is_written_over(code: CodePackage, aws: Any) -> None:
    key = f"{INPUT}/auth/auth_token"
    aws.put_object(Bucket=BUCKET, Key=key, Body=b"another's")
    backend, job = prepared(code, ONE_HOST)
    with pytest.raises(SubmitError, match=r"PreconditionFailed.*submit again"):
        backend.submit(job, print)
    assert objects(aws) == {key: b"another's"}


def test_uploads_name_a_key_or_leave_it_to_the_bucket(code: CodePackage, aws: Any) -> None:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "of-the-bucket"}}
    aws.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]})
    keys = []
    for number, words in enumerate(((), ("sagemaker.kms_key=of-the-job",))):
        backend, job = prepared(code, [*ONE_HOST, *words])
        backend.submit(dataclasses.replace(job, name=f"job-{number}"), print)
        heads = [aws.head_object(Bucket=BUCKET, Key=key) for key in objects(aws) if f"/job-{number}/" in key]
        assert {head["ServerSideEncryption"] for head in heads} == {"aws:kms"}
        keys.append({head["SSEKMSKeyId"].rpartition("/")[2] for head in heads})
    assert keys == [{"of-the-bucket"}, {"of-the-job"}]


def test_a_job_that_left_nothing_is_not_resumed(code: CodePackage, aws: Any, captured: Captured) -> None:
    for job in ("rlvr-gsm8k-1", "rlvr-gsm8k-2"):
        leave_checkpoint(aws, job)
    leave_checkpoint(aws, "rlvr-done", status="finished", steps=40)
    for name, says in (
        ("rlvr-gsm8k-7", r"no checkpoint and no record to go on from; did you mean 'rlvr-gsm8k-\d'"),
        ("elsewhere", r"no checkpoint and no record to go on from; there are rlvr-done, rlvr-gsm8k-1, rlvr-gsm8k-2"),
        ("rlvr-done", r"finished, after 40 steps, and does not go on"),
    ):
        backend, job = prepared(code, [*ONE_HOST, f"sagemaker.resume={name}", "max_steps=100"])
        with pytest.raises(ConfigError, match=says):
            backend.submit(job, print)
    assert captured == []
    backend, job = prepared(code, [*ONE_HOST, "sagemaker.resume=rlvr-gsm8k-1"])
    assert backend.submit(job, print)["adapter"] == f"s3://{BUCKET}/rlvr/jobs/rlvr-gsm8k-1/checkpoints/run/adapter"


def test_a_job_that_runs_is_not_resumed(code: CodePackage, aws: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_checkpoint(aws, "rlvr-busy")
    monkeypatch.setattr(sagemaker, "_describe", lambda client, name: A_DESCRIPTION)
    backend, job = prepared(code, [*ONE_HOST, "sagemaker.resume=rlvr-busy"])
    with pytest.raises(ConfigError, match=r"'rlvr-busy' is running still.*rlvr jobs stop rlvr-busy"):
        backend.submit(job, print)


def test_one_job_at_a_time_goes_on_from_an_earlier_one(
    code: CodePackage, aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second writes the folder of the first, whatever its own name is."""
    leave_checkpoint(aws, "rlvr-first")
    backend, second = prepared(code, [*ONE_HOST, "sagemaker.resume=rlvr-first"])
    backend.submit(second, print)
    third = dataclasses.replace(second, name="rlvr-third", submission="ba9876543210")
    with monkeypatch.context() as patch:
        patch.setattr(sagemaker, "_describe", lambda client, name: A_DESCRIPTION if name == NAME else None)
        with pytest.raises(ConfigError, match=rf"rlvr-first.*'{NAME}' is running still.*rlvr jobs stop {NAME}"):
            backend.submit(third, print)
    backend.submit(third, print)


def test_endpoints_of_a_vpc_are_asked(code: CodePackage) -> None:
    endpoints = {name: f"https://{name}.vpce-1.example" for name in ("s3", "sagemaker", "logs")}
    backend, _ = prepared(code, [*ONE_HOST, f"sagemaker.endpoints={json.dumps(endpoints)}"])
    asked = {name: backend._client(name, REGION).meta.endpoint_url for name in ("s3", "sagemaker", "logs")}
    assert asked == endpoints


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


@pytest.mark.parametrize("there", ["ours", "another's", "nothing"])
def test_a_job_whose_start_was_not_answered_is_not_lost(
    there: str, code: CodePackage, aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = boto3.client("sagemaker", region_name=REGION)
    monkeypatch.setattr(sagemaker, "client", lambda name, *_: client if name == "sagemaker" else aws)
    backend, job = prepared(code, ONE_HOST)
    said: list[str] = []
    with Stubber(client) as stubber:
        stubber.add_client_error("create_training_job", "ResourceInUse", "The name is taken")
        if there == "nothing":
            stubber.add_client_error("describe_training_job", "ValidationException", "Requested resource not found.")
        else:
            channels = backend.plan(job).request["CreateTrainingJob"]["InputDataConfig"]
            if there == "another's":
                channels = json.loads(json.dumps(channels).replace(SUBMISSION, "ba9876543210"))
            stubber.add_response("describe_training_job", {**A_DESCRIPTION, "InputDataConfig": channels})
        if there == "ours":
            backend.submit(job, said.append)
        else:
            with pytest.raises(SubmitError, match=r"starting the training job .*ResourceInUse"):
                backend.submit(job, said.append)
    assert any("the training job is there" in line for line in said) is (there == "ours")


def test_what_is_paid_for_and_idle_is_said_before_anything_is_sent(code: CodePackage) -> None:
    def notes(*settings: str) -> str:
        backend, job = prepared(code, settings)
        return " | ".join(backend.plan(job).notes)

    said = notes(*ONE_HOST, "rollout.num_workers=1", "learner.num_ranks=1", "save_minutes=0", *CASES["spot"][2:4])
    assert "1 rollout worker on 1 GPU, 1 learner rank on 1 GPU, 6 of 8 idle" in said
    assert "save_minutes=0 keeps nothing" in said
    assert "ml.p4d.24xlarge has the GPU A100" in said
    assert "driver R580" in said
    assert notes(*ONE_HOST).startswith("8 GPUs: 4 rollout workers on 4 GPUs, 4 learner ranks on 4 GPUs | ")
    assert "what GPUs ml.p6-b300.48xlarge has is not known here" in notes("sagemaker.instance_type=ml.p6-b300.48xlarge")
    groups = GROUPS.replace("ml.c5.4xlarge", "ml.g5.xlarge, instance_count: 3")
    assert "of 3 × ml.g5.xlarge of reward, 2 would be idle | the GPUs of ml.g5.xlarge would be idle" in notes(groups)
    assert "8 learner ranks on 8 GPUs, 4 of 16 idle" in notes(GROUPS, "rollout.num_workers=4", "learner.num_ranks=8")
    assert (
        notes("sagemaker.instance_type=ml.m5.large") == "0 GPUs: 1 rollout worker and 1 learner rank on the processor"
    )
