"""Every setting of a submission acts: changed, it changes what is sent, or what is done. The list is complete."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestration.errors import MachineError, SubmitError
from orchestration.settings.config import load_settings
from orchestration.settings.submit import SubmitConfig
from orchestration.settings.tree import walk_keys
from orchestration.submit.common.job import JobSpec
from orchestration.submit.common.package import CodePackage
from orchestration.submit.hyperpod.manifest import job_manifests
from orchestration.submit.ray import cluster as ray_cluster
from orchestration.submit.ray.cluster import RayBackend
from orchestration.submit.ray.local import LocalBackend
from orchestration.submit.registry import make_backend
from tests.orchestration.submit.hyperpod_fakes import make_certificate

TESTS = Path(__file__).parent
HYPERPOD = (
    *("hyperpod.image=r/rlvr:1", "hyperpod.fsx_claim=fsx", "hyperpod.learner.instance_type=ml.p4d.24xlarge"),
    *("hyperpod.rollout.instance_type=ml.g5.12xlarge", "hyperpod.reward.cpus=3", "hyperpod.queue=q", "save_every=1"),
)
RAY = ("ray.address=http://head:8265",)
SAGEMAKER = (
    *("sagemaker.role=arn:aws:iam::123456789012:role/rlvr", "sagemaker.bucket=runs.example"),
    *("sagemaker.image=123456789012.dkr.ecr.us-west-2.amazonaws.com/rlvr:1", "sagemaker.region=us-west-2"),
    "sagemaker.instance_type=ml.p4d.24xlarge",
)
BASES = {"hyperpod": HYPERPOD, "ray": RAY, "local": (), "sagemaker": SAGEMAKER}

# setting → a value, and what of it stands in the request and did not before
SENT = {
    "hyperpod.context": None,  # of the client, not of what is sent: see ELSEWHERE
    "hyperpod.timeout_s": None,
    "hyperpod.namespace": ("team-a", '"namespace": "team-a"'),
    "hyperpod.image": ("r/rlvr:2", '"image": "r/rlvr:2"'),
    "hyperpod.image_pull_secret": ("registry", '"imagePullSecrets": [{"name": "registry"}]'),
    "hyperpod.head.instance_type": ("ml.m5.xlarge", '"node.kubernetes.io/instance-type": "ml.m5.xlarge"'),
    "hyperpod.head.cpus": ("7", '"cpu": "7"'),
    "hyperpod.head.memory_gib": ("77", '"memory": "77Gi"'),
    "hyperpod.learner.instance_type": ("ml.p5.48xlarge", 'instance-type": "ml.p5.48xlarge"'),
    "hyperpod.learner.count": ("5", '"replicas": 5'),
    "hyperpod.learner.gpus": ("5", '"nvidia.com/gpu": "5"'),
    "hyperpod.learner.cpus": ("55", '"cpu": "55"'),
    "hyperpod.learner.memory_gib": ("555", '"memory": "555Gi"'),
    "hyperpod.learner.efa": ("3", '"vpc.amazonaws.com/efa": "3"'),
    "hyperpod.rollout.instance_type": ("ml.g6.12xlarge", 'instance-type": "ml.g6.12xlarge"'),
    "hyperpod.rollout.count": ("6", '"replicas": 6'),
    "hyperpod.rollout.gpus": ("3", '"nvidia.com/gpu": "3"'),
    "hyperpod.rollout.cpus": ("33", '"cpu": "33"'),
    "hyperpod.rollout.memory_gib": ("133", '"memory": "133Gi"'),
    "hyperpod.rollout.efa": ("2", '"vpc.amazonaws.com/efa": "2"'),
    "hyperpod.reward.instance_type": ("ml.c5.4xlarge", 'instance-type": "ml.c5.4xlarge"'),
    "hyperpod.reward.cpus": ("11", '"cpu": "11"'),
    "hyperpod.reward.memory_gib": ("44", '"memory": "44Gi"'),
    "hyperpod.fsx_claim": ("other", '"claimName": "other"'),
    "hyperpod.fsx_path": ("/mnt/fast", '"mountPath": "/mnt/fast"'),
    "hyperpod.shm_gib": ("21", '"sizeLimit": "21Gi"'),
    "hyperpod.user_id": ("4321", '"runAsUser": 4321'),
    "hyperpod.secrets": ("{HF_TOKEN: hub/token}", '{"secretKeyRef": {"name": "hub", "key": "token"}}'),
    "hyperpod.service_account": ("reads-s3", '"serviceAccountName": "reads-s3"'),
    "hyperpod.queue": ("other", '"kueue.x-k8s.io/queue-name": "other"'),
    "hyperpod.priority": ("high", '"kueue.x-k8s.io/priority-class": "high"'),
    "hyperpod.retries": ("4", '"backoffLimit": 4'),
    "hyperpod.max_runtime_s": ("7777", '"activeDeadlineSeconds": 7777'),
    "hyperpod.start_timeout_s": ("777", '"preRunningDeadlineSeconds": 777'),
    "hyperpod.stop_timeout_s": ("78", '{"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "78"}'),
    "hyperpod.keep_s": ("79", '"ttlSecondsAfterFinished": 79'),
    "ray.address": ("http://other:8265", '"address": "http://other:8265"'),
    "ray.run_root": ("/fsx/runs", '"run_dir": "/fsx/runs/rlvr-tiny"'),
    "ray.stop_timeout_s": ("80", '"RAY_JOB_STOP_WAIT_TIME_S": "80"'),
    "local.stop_timeout_s": ("81", '"RAY_JOB_STOP_WAIT_TIME_S": "81"'),
    "sagemaker.prefix": ("team/a", "s3://runs.example/team/a/jobs/rlvr-tiny/input-"),
    "sagemaker.volume_size_gib": ("333", '"VolumeSizeInGB": 333'),
    "sagemaker.max_runtime_s": ("7777", '"MaxRuntimeInSeconds": 7777'),
}

# setting → the file of its test
ELSEWHERE = {
    "job.name": "test_sagemaker_command.py",
    "job.environment": "test_sagemaker.py",
    "job.include": "test_local.py",
    "local.linger_s": "test_local.py",
    "ray.token_file": "test_local.py",
    "ray.use_proxy": "test_follow.py",
    "hyperpod.context": "test_hyperpod_api.py",
    "hyperpod.timeout_s": "test_hyperpod_api.py",
    **dict.fromkeys(
        [
            *("sagemaker.role", "sagemaker.bucket", "sagemaker.region", "sagemaker.image", "sagemaker.instance_type"),
            *("sagemaker.instance_count", "sagemaker.instance_groups", "sagemaker.spot", "sagemaker.max_wait_s"),
            *("sagemaker.keep_alive_s", "sagemaker.remote_debug", "sagemaker.subnets", "sagemaker.security_group_ids"),
            "sagemaker.training_plan",
            *("sagemaker.kms_key", "sagemaker.resume", "sagemaker.tags", "sagemaker.volume_kms_key"),
            *("sagemaker.encrypt_traffic", "sagemaker.network_isolation", "sagemaker.endpoints"),
            *("sagemaker.registry_credentials", "sagemaker.session_tags"),
        ],
        "test_sagemaker.py",  # whole requests, compared with those expected
    ),
    "sagemaker.join_timeout_s": "test_sagemaker_emulated.py",
    "sagemaker.secrets": "test_sagemaker_host.py",
}

# settings whose tests are below
HERE = ("local.start_timeout_s", "ray.ca_file", "ray.check_gpus", "ray.timeout_s")


def test_the_list_is_complete() -> None:
    known = [name for name, row in SENT.items() if row] + [*ELSEWHERE, *HERE]
    assert sorted(known) == sorted(walk_keys(SubmitConfig))
    for name, file in ELSEWHERE.items():
        assert name.rpartition(".")[2] in (TESTS / file).read_text(), f"{file} does not name {name}"


@pytest.fixture
def code(tmp_path: Path) -> CodePackage:
    (tmp_path / "code/orchestration").mkdir(parents=True)
    (tmp_path / "code/orchestration/cli.py").write_text("")
    return CodePackage(folder=tmp_path / "code", digest="0" * 64, num_files=1, num_bytes=0)


def request_of(place: str, code: CodePackage, *overrides: str) -> str:
    settings = load_settings("tiny", [*BASES[place], *overrides])
    job = JobSpec(name="rlvr-tiny", run=settings.run, code=code)
    if place == "hyperpod":
        return json.dumps(job_manifests(job, settings.submit.hyperpod, token="t"))
    return json.dumps(dict(make_backend(place, settings.submit).plan(job).request))


@pytest.mark.parametrize("name", [name for name, row in SENT.items() if row])
def test_what_is_set_is_sent(name: str, code: CodePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLVR_STATE", str(tmp_path / "state"))
    row = SENT[name]
    assert row is not None
    value, sent = row
    place = name.partition(".")[0]
    assert sent not in request_of(place, code)
    assert sent in request_of(place, code, f"{name}={value}")


# --- what is done


def test_a_head_that_starts_too_slowly_is_ended(
    code: CodePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings("tiny", ["local.start_timeout_s=0.1", f"run_dir={tmp_path}/run"])
    backend = LocalBackend(settings.submit, folder=tmp_path / "head")
    with pytest.raises(MachineError, match=r"Ray did not start here within 0\.1 s"):
        backend.submit(JobSpec(name="rlvr-tiny", run=settings.run, code=code), lambda line: None)
    assert not (tmp_path / "head" / "head.json").exists()


class NoGpus:
    """A cluster's jobs, without GPUs."""

    def __init__(self, endpoint: Any) -> None:
        self.sent: list[str] = []

    def check_version(self) -> str:
        return "2.60.0"

    def nodes(self) -> list[dict[str, float]]:
        return [{"CPU": 8.0}]

    def submit(self, *, name: str, **more: Any) -> None:
        self.sent.append(name)


def test_a_run_that_does_not_fit_is_sent_only_when_asked_for(
    code: CodePackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters: list[NoGpus] = []
    monkeypatch.setattr(ray_cluster, "RayJobs", lambda endpoint: clusters.append(NoGpus(endpoint)) or clusters[-1])
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)

    def submit(*words: str) -> None:
        settings = load_settings("tiny", [*RAY, "device=cuda", *words])
        RayBackend(settings.submit).submit(JobSpec(name="big", run=settings.run, code=code), lambda line: None)

    with pytest.raises(SubmitError, match=r"has 0 GPUs on 1 nodes"):
        submit()
    submit("ray.check_gpus=false")
    assert [cluster.sent for cluster in clusters] == [[], ["big"]]


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a dashboard with TLS, which knows one job and does not answer for another; and its certificate."""
    leave = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith("/silent"):
                leave.wait(30)
            answer = {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "status": "SUCCEEDED"}
            body = json.dumps(answer | {"type": "SUBMISSION", "entrypoint": "x", "submission_id": "a"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"https://127.0.0.1:{server.server_port}", certificate
        finally:
            leave.set()
            server.shutdown()


def test_a_dashboards_certificate_is_checked_by_the_authority_that_is_named(dashboard: tuple[str, Path]) -> None:
    address, certificate = dashboard

    def state(job: str, *words: str) -> str:
        backend = RayBackend(load_settings("tiny", [f"ray.address={address}", *words]).submit)
        return backend.status({"address": address, "job_id": job}).state

    with pytest.raises(SubmitError, match=r"certificate of .* is not trusted .*; set ray\.ca_file"):
        state("a")
    with pytest.raises(SubmitError, match=r"certificate of .* is not trusted .*; set ray\.ca_file"):
        state("a", f"ray.ca_file={__file__}")  # no certificate
    trusted = f"ray.ca_file={certificate}"
    assert state("a", trusted) == "succeeded"
    with pytest.raises(SubmitError, match=r"did not answer within 0\.3 s; raise ray\.timeout_s"):
        state("silent", trusted, "ray.timeout_s=0.3")
