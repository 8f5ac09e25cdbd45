"""HyperPod's two ways before a real Ray with token authentication: through a gateway, and through the API server.

What runs is a stand-in for our command line, packed as our code is: it says where it was imported from, and waits to be
stopped as a run does. A process of its own submits it, as libraries read where certificates are when they are imported.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestration.settings.config import load_settings
from orchestration.submit.common.job import JobSpec, JobState
from orchestration.submit.common.package import CodePackage, packed_code
from orchestration.submit.hyperpod.api import KubernetesApi
from orchestration.submit.hyperpod.backend import HyperPodBackend
from orchestration.submit.hyperpod.manifest import job_manifests
from orchestration.submit.ray import local_head
from orchestration.submit.ray.jobs import RayJobs
from tests.orchestration.submit.hyperpod_fakes import FakeKubernetes, gateway, make_certificate
from tests.waiting import came_true

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
STAND_IN = """
import signal, sys, time
def on_sigterm(number, frame):
    print("saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, on_sigterm)
print("began", *sys.argv[1:], open(sys.argv[2]).read().split()[1], flush=True)
time.sleep(0 if "quick" in open(sys.argv[2]).read() else 120)
"""
SUBMIT = """
import json, sys
from pathlib import Path
from orchestration.settings.config import load_settings
from orchestration.submit.ray.cluster import RayBackend
from orchestration.submit.common.job import JobSpec
from orchestration.submit.common.package import CodePackage

folder, address, quick = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
words = [f"ray.address={address}", f"ray.run_root={folder}/runs", "ray.check_gpus=false"]
settings = load_settings("tiny", words)
backend = RayBackend(settings.submit)
code = CodePackage(folder=folder / "code", digest="0" * 64, num_files=2, num_bytes=1)
run = settings.run.model_copy(update={"recipe": quick})
reference = backend.submit(JobSpec(name="rlvr-" + quick, run=run, code=code), print)
print(json.dumps(reference))
if quick == "quick":
    print("".join(backend.logs(reference, follow=True)))
else:
    for piece in backend.logs(reference, follow=True):
        print(piece)
        if "began" in piece:
            backend.stop(reference)
print("".join(backend.logs(reference, follow=False)))
print(backend.status(reference).state)
"""


@dataclass(frozen=True)
class Cluster:
    """A real head, and what HyperPod has in front of it."""

    address: str
    token: str
    jobs: RayJobs
    kubernetes: FakeKubernetes
    certificate: Path
    kubeconfig: Path
    code: CodePackage


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("hyperpod")
    head = local_head.ensure(folder / "head", linger_s=200, object_store_bytes=100 * 2**20, timeout_s=100)
    try:
        endpoint = local_head.endpoint(folder / "head", head)
        assert endpoint.token is not None
        certificate, key = make_certificate(folder)
        package = folder / "code" / "orchestration"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "cli.py").write_text(STAND_IN)
        # Ray leaves out an archive's only top folder, and ours has several.
        (folder / "code" / "learner.py").write_text("")
        with (
            FakeKubernetes().serving() as kubernetes,
            gateway(head.address, token=endpoint.token, certificate=(certificate, key)) as address,
        ):
            kubernetes.dashboard, kubernetes.gateway = head.address, address
            yield Cluster(
                address=address,
                token=endpoint.token,
                jobs=RayJobs(endpoint),
                kubernetes=kubernetes,
                certificate=certificate,
                kubeconfig=kubernetes.kubeconfig(folder),
                code=CodePackage(folder=package.parent, digest="0123456789abcdef" * 4, num_files=2, num_bytes=1),
            )
    finally:
        with suppress(ProcessLookupError):
            os.kill(head.pid, signal.SIGTERM)
        came_true(lambda: local_head.find(folder / "head") is None, 40, poll_s=0.1)


def run_submission(cluster: Cluster, address: str, kind: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "KUBECONFIG": str(cluster.kubeconfig),
        "REQUESTS_CA_BUNDLE": str(cluster.certificate),
        "SSL_CERT_FILE": str(cluster.certificate),
        "NO_PROXY": "127.0.0.1",
        **variables,
    }
    words = [str(cluster.code.folder.parent), address, kind]
    return subprocess.run(
        [sys.executable, "-c", SUBMIT, *words],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class TestTheClusterThatIsThere:
    def test_it_takes_a_job_and_prints_its_log(self, cluster: Cluster) -> None:
        done = run_submission(cluster, "sagemaker_ray://team-cluster/team-a", "quick")
        assert done.returncode == 0, done.stderr
        assert "runs Ray 2." in done.stdout
        assert done.stdout.count("began train run.yaml quick") == 2  # followed, and asked for at the end
        assert done.stdout.split()[-1] == "succeeded"
        assert any("raydashboardconnections" in call for call in cluster.kubernetes.calls)
        assert cluster.token not in done.stdout

    def test_a_job_that_is_stopped_saves_its_state(self, cluster: Cluster) -> None:
        done = run_submission(cluster, "sagemaker_ray://team-cluster/team-a", "stopped")
        assert done.returncode == 0, done.stderr
        assert "saved" in done.stdout
        assert done.stdout.split()[-1] == "stopped"

    @pytest.mark.parametrize(
        ("status", "says"),
        [(401, "Your EKS credentials may have expired"), (403, "you are not authorized"), (404, "Resource not found")],
    )
    def test_who_may_not_is_told_so(self, cluster: Cluster, status: int, says: str) -> None:
        cluster.kubernetes.refuse["POST", "connections"] = status, "no"
        try:
            done = run_submission(cluster, "sagemaker_ray://team-cluster/team-a", "refused")
        finally:
            cluster.kubernetes.refuse.clear()
        assert "SubmitError: no access to sagemaker_ray://team-cluster/team-a: " in done.stderr.splitlines()[-1]
        assert says in done.stderr.splitlines()[-1]

    def test_no_kubeconfig(self, cluster: Cluster) -> None:
        done = run_submission(cluster, "sagemaker_ray://team-cluster/team-a", "refused", KUBECONFIG="/nowhere")
        assert "Kubeconfig not found at '/nowhere'" in done.stderr.splitlines()[-1]


def manifest_of(cluster: Cluster, code: CodePackage, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """RayJob and ConfigMap of a job."""
    overrides = ["hyperpod.image=rlvr:1", "hyperpod.fsx_claim=fsx", "hyperpod.learner.instance_type=ml.p4d.24xlarge"]
    settings = load_settings("tiny", overrides)
    job = JobSpec(name=name, run=settings.run, code=code)
    made = {m["kind"]: m for m in job_manifests(job, settings.submit.hyperpod, token="x")}
    return made["RayJob"], made["ConfigMap"]


def mounted(ray_job: dict[str, Any], config_map: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """Entry point and runtime environment, for a machine on which the ConfigMap is mounted at `folder`."""
    for name, text in config_map["data"].items():
        (folder / name).write_text(text)
    for name, content in config_map["binaryData"].items():
        (folder / name).write_bytes(base64.b64decode(content))
    import yaml

    text = json.dumps([ray_job["spec"]["entrypoint"], yaml.safe_load(ray_job["spec"]["runtimeEnvYAML"])])
    command, environment = json.loads(text.replace("/etc/rlvr", str(folder)))
    return command, environment


def state_of(jobs: RayJobs, name: str) -> JobState:
    came_true(lambda: jobs.status(name).state.ended, 60, poll_s=0.2)
    return jobs.status(name).state


class TestTheClusterThatIsMade:
    def test_ray_unpacks_the_config_maps_code_and_runs_its_entry_point(self, cluster: Cluster, tmp_path: Path) -> None:
        with packed_code() as code:
            ray_job, config_map = manifest_of(cluster, code, "rlvr-real")
        command, environment = mounted(ray_job, config_map, tmp_path)
        # The real command line, which reads the run's settings before it misses what this machine lacks.
        command = command.replace(" train ", " doctor --json ")
        cluster.jobs.submit(name="rlvr-real", command=command, runtime_env=environment)
        state_of(cluster.jobs, "rlvr-real")  # as this machine pleases the doctor
        log = "".join(cluster.jobs.logs("rlvr-real", follow=False))
        report = json.loads(log[log.index("{") :])
        assert "auto" in [finding["here"] for finding in report["findings"] if finding["what"] == "cluster"]

    def test_a_stop_reaches_the_driver_through_the_api_server(
        self, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = str(cluster.kubeconfig)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path)
        ray_job, config_map = manifest_of(cluster, cluster.code, "rlvr-stop")
        command, environment = mounted(ray_job, config_map, tmp_path)
        variables = {entry["name"]: entry.get("value") for entry in _head(ray_job)["env"]}
        environment["env_vars"] = {"RAY_JOB_STOP_WAIT_TIME_S": variables["RAY_JOB_STOP_WAIT_TIME_S"]}
        cluster.jobs.submit(name="rlvr-stop", command=command, runtime_env=environment)
        for piece in cluster.jobs.logs("rlvr-stop", follow=True):
            if "began" in piece:
                break
        status = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "jobId": "rlvr-stop", "rayClusterName": "c"}
        kubernetes = cluster.kubernetes
        kubernetes.objects["rayjobs", "rlvr-stop"] = {"metadata": {"uid": "1"}, "status": status}
        secret = {"auth_token": base64.b64encode(cluster.token.encode()).decode()}
        kubernetes.objects["secrets", "rlvr-stop"] = {"metadata": {"uid": "2"}, "data": secret}
        backend = HyperPodBackend(load_settings("tiny", []).submit)
        backend.stop({"name": "rlvr-stop", "namespace": "team-a", "context": ""})
        assert (
            "POST /api/v1/namespaces/team-a/services/c-head-svc:8265/proxy/api/jobs/rlvr-stop/stop" in kubernetes.calls
        )
        assert state_of(cluster.jobs, "rlvr-stop") is JobState.STOPPED
        assert "saved" in "".join(cluster.jobs.logs("rlvr-stop", follow=False))

    def test_another_token_does_not(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        path = str(cluster.kubeconfig)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path)
        secret = {"auth_token": base64.b64encode(b"of another cluster").decode()}
        cluster.kubernetes.objects["secrets", "rlvr-other"] = {"metadata": {"uid": "3"}, "data": secret}
        api = KubernetesApi(context=None, namespace="team-a", timeout_s=20)
        with pytest.raises(Exception, match="you may not reach the service"):
            api.stop_in_ray("c-head-svc", "rlvr-other", secret="rlvr-other")


def _head(ray_job: dict[str, Any]) -> dict[str, Any]:
    head: dict[str, Any] = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return head
