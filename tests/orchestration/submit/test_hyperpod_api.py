"""HyperPod's RayJobs against an API server of our own, through the real client of Kubernetes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.cli import main
from orchestration.errors import SubmitError
from orchestration.settings.config import load_settings
from orchestration.submit.common.job import JobSpec, JobState
from orchestration.submit.common.package import CodePackage
from orchestration.submit.hyperpod import backend as hyperpod
from orchestration.submit.hyperpod.backend import HyperPodBackend, status_of
from tests.orchestration.submit.hyperpod_fakes import FakeKubernetes

SETTINGS = [
    "hyperpod.image=rlvr:1.0",
    "hyperpod.fsx_claim=fsx",
    "hyperpod.learner.instance_type=ml.p4d.24xlarge",
    "hyperpod.namespace=team-a",
    "hyperpod.timeout_s=1",
]
NAME = "rlvr-tiny"


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    monkeypatch.setattr(hyperpod, "POLL_S", 0.01)
    with FakeKubernetes().serving() as fake:
        # The client reads where the file is when it is imported, and that may be long ago.
        path = str(fake.kubeconfig(tmp_path))
        monkeypatch.setenv("KUBECONFIG", path)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path)
        yield fake


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "hello.py").write_text("print('hello')\n")
    code = CodePackage(folder=folder, digest="0123456789abcdef" * 4, num_files=1, num_bytes=15)
    return JobSpec(name=NAME, run=load_settings("tiny", []).run, code=code)


def backend(*overrides: str) -> HyperPodBackend:
    return HyperPodBackend(load_settings("tiny", [*SETTINGS, *overrides]).submit)


def submitted(kubernetes: FakeKubernetes, job: JobSpec, **status: Any) -> dict[str, str]:
    """A job's reference, once KubeRay has written `status` into it."""
    reference = backend().submit(job, lambda line: None)
    if status:
        kubernetes.objects["rayjobs", NAME]["status"] = status
    return reference


class TestSubmit:
    def test_the_ray_job_owns_its_token_and_its_code(self, kubernetes: FakeKubernetes, job: JobSpec) -> None:
        said: list[str] = []
        reference = backend().submit(job, said.append)
        assert reference == {
            "name": NAME,
            "namespace": "team-a",
            "context": "",
            "adapter": f"/fsx/rlvr-runs/{NAME}/adapter",
        }
        assert said == [f"RayJob {NAME} is in namespace team-a"]
        uid = kubernetes.objects["rayjobs", NAME]["metadata"]["uid"]
        for plural in ("secrets", "configmaps"):
            (owner,) = kubernetes.objects[plural, NAME]["metadata"]["ownerReferences"]
            assert owner == {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": NAME, "uid": uid}
        token = kubernetes.objects["secrets", NAME]["stringData"]["auth_token"]
        assert len(token) == 64
        assert token not in json.dumps([reference, kubernetes.objects["rayjobs", NAME]])

    def test_two_jobs_have_two_tokens(self, kubernetes: FakeKubernetes, job: JobSpec) -> None:
        tokens = set()
        for _ in range(2):
            backend().submit(job, lambda line: None)
            tokens.add(kubernetes.objects["secrets", NAME]["stringData"]["auth_token"])
            kubernetes.objects.clear()
        assert len(tokens) == 2

    @pytest.mark.parametrize("plural", ["secrets", "configmaps"])
    def test_nothing_half_made_stays(self, kubernetes: FakeKubernetes, job: JobSpec, plural: str) -> None:
        kubernetes.refuse["POST", plural] = 403, f"{plural} is forbidden"
        with pytest.raises(SubmitError, match=rf"you may not create the \w+ {NAME} in namespace 'team-a' \({plural}"):
            backend().submit(job, lambda line: None)
        assert kubernetes.objects == {}

    def test_what_cannot_be_taken_back_is_named(self, kubernetes: FakeKubernetes, job: JobSpec) -> None:
        kubernetes.refuse |= {("POST", "secrets"): (403, "no secrets"), ("DELETE", "rayjobs"): (403, "no deleting")}
        with pytest.raises(SubmitError, match=f"no secrets.* and the RayJob {NAME} is still there"):
            backend().submit(job, lambda line: None)

    @pytest.mark.parametrize(
        ("status", "message", "says"),
        [
            (401, "Unauthorized", "does not know you any more"),
            (403, "rayjobs is forbidden", "you may not create the RayJob"),
            (404, "404 page not found", "knows no RayJobs: KubeRay 1.6 or later is not installed"),
            (404, 'namespaces "team-a" not found', r"is hyperpod\.namespace right"),
            (409, "already exists", "choose another job.name"),
            (422, "spec.entrypoint: Invalid value", "with 422: spec.entrypoint: Invalid value"),
            (503, "overloaded", "with 503: overloaded"),
        ],
    )
    def test_refusals_are_one_sentence(
        self, kubernetes: FakeKubernetes, job: JobSpec, status: int, message: str, says: str
    ) -> None:
        kubernetes.refuse["POST", "rayjobs"] = status, message
        with pytest.raises(SubmitError, match=says) as caught:
            backend().submit(job, lambda line: None)
        assert "\n" not in str(caught.value)

    def test_a_server_that_does_not_answer(self, kubernetes: FakeKubernetes, job: JobSpec) -> None:
        kubernetes.hang.add("rayjobs")
        with pytest.raises(SubmitError, match="did not answer within 1 s when asked to create the RayJob"):
            backend().submit(job, lambda line: None)

    def test_a_server_that_is_not_there(
        self, kubernetes: FakeKubernetes, job: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kubernetes.address = "http://127.0.0.1:1"
        kubernetes.kubeconfig(tmp_path)
        with pytest.raises(SubmitError, match=r"Kubernetes does not answer at http://127\.0\.0\.1:1"):
            backend().submit(job, lambda line: None)

    def test_no_kubeconfig(self, job: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/nowhere")
        with pytest.raises(SubmitError, match=r"no kubeconfig that can be used .*aws eks update-kubeconfig"):
            backend().submit(job, lambda line: None)

    def test_a_context_that_it_does_not_have(self, kubernetes: FakeKubernetes, job: JobSpec) -> None:
        assert backend("hyperpod.context=hyperpod").submit(job, lambda line: None)["context"] == "hyperpod"
        with pytest.raises(SubmitError, match="no kubeconfig that can be used"):
            backend("hyperpod.context=other").submit(job, lambda line: None)


class TestStatus:
    @pytest.mark.parametrize(
        ("status", "state", "says"),
        [
            ({}, JobState.PENDING, "not seen by KubeRay yet"),
            ({"jobDeploymentStatus": "Initializing"}, JobState.PENDING, "Initializing"),
            ({"jobDeploymentStatus": "Suspended"}, JobState.PENDING, "its queue lets it in"),
            ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, JobState.PENDING, "Running"),
            ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, JobState.RUNNING, ""),
            ({"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, JobState.PENDING, "Retrying"),
            ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, JobState.SUCCEEDED, ""),
            ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, JobState.STOPPED, ""),
            ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "no  GPU"}, JobState.FAILED, "no GPU"),
            (
                {"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING", "reason": "DeadlineExceeded"},
                JobState.FAILED,
                "DeadlineExceeded",
            ),
            ({"jobDeploymentStatus": "ValidationFailed"}, JobState.FAILED, ""),
        ],
    )
    def test_what_kuberay_says_in_our_words(self, status: dict[str, str], state: JobState, says: str) -> None:
        answer = status_of({"metadata": {}, "status": status})
        assert answer.state is state
        assert says in answer.message

    def test_a_ray_job_that_was_deleted_is_known_no_more(self, kubernetes: FakeKubernetes, job: JobSpec) -> None:
        reference = submitted(kubernetes, job, jobDeploymentStatus="Running", jobStatus="RUNNING")
        assert backend().status(reference).state is JobState.RUNNING
        kubernetes.objects.clear()
        answer = backend().status(reference)
        assert (answer.state, "its RayJob was deleted" in answer.message) == (JobState.UNKNOWN, True)


class TestLogs:
    def test_what_was_printed_so_far(self, kubernetes: FakeKubernetes, job: JobSpec) -> None:
        reference = submitted(kubernetes, job, jobDeploymentStatus="Running", jobStatus="RUNNING")
        assert list(backend().logs(reference, follow=False)) == []
        kubernetes.pods["rlvr-tiny-x1"] = ["step 1/2", "step 2/2"]
        assert list(backend().logs(reference, follow=False)) == ["step 1/2\n", "step 2/2\n"]

    def test_a_quiet_pod_is_followed_to_its_end_and_nothing_comes_twice(
        self, kubernetes: FakeKubernetes, job: JobSpec
    ) -> None:
        reference = submitted(kubernetes, job, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
        kubernetes.pods["rlvr-tiny-x1"] = ["step 1/3", "step 2/3", "step 3/3"]
        kubernetes.pauses_s = [0.0, 1.5]  # one longer than hyperpod.timeout_s: the client asks again
        assert list(backend().logs(reference, follow=True)) == ["step 1/3\n", "step 2/3\n", "step 3/3\n"]
        assert sum("/log" in call for call in kubernetes.calls) == 2

    def test_whose_pods_may_not_be_read(self, kubernetes: FakeKubernetes, job: JobSpec) -> None:
        reference = submitted(kubernetes, job, jobDeploymentStatus="Running", jobStatus="RUNNING")
        kubernetes.refuse["GET", "pods"] = 403, "pods is forbidden"
        with pytest.raises(SubmitError, match=f"you may not list the pods {NAME}"):
            list(backend().logs(reference, follow=True))


class TestStop:
    def test_a_job_that_waits_is_deleted_with_all_that_it_owns(self, kubernetes: FakeKubernetes, job: JobSpec) -> None:
        backend().stop(submitted(kubernetes, job, jobDeploymentStatus="Suspended"))
        assert kubernetes.objects == {}

    @pytest.mark.parametrize(
        "status",
        [
            {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"},
            {"jobDeploymentStatus": "Running", "jobStatus": "STOPPED"},
        ],
    )
    def test_a_job_that_has_ended_is_left(
        self, kubernetes: FakeKubernetes, job: JobSpec, status: dict[str, str]
    ) -> None:
        backend().stop(submitted(kubernetes, job, **status))
        assert len(kubernetes.objects) == 3

    def test_a_job_that_is_gone_is_no_error(self, kubernetes: FakeKubernetes, job: JobSpec) -> None:
        reference = submitted(kubernetes, job)
        kubernetes.objects.clear()
        backend().stop(reference)

    def test_a_cluster_that_may_not_be_reached(self, kubernetes: FakeKubernetes, job: JobSpec) -> None:
        status = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "jobId": NAME, "rayClusterName": "c-abcde"}
        reference = submitted(kubernetes, job, **status)
        kubernetes.objects["secrets", NAME]["data"] = {"auth_token": base64.b64encode(b"t").decode()}
        kubernetes.refuse["POST", "services"] = 403, "services/proxy is forbidden"
        with pytest.raises(SubmitError, match=r"you may not reach the service c-abcde-head-svc .*services/proxy"):
            backend().stop(reference)
        assert len(kubernetes.objects) == 3  # nothing was lost


def test_the_dashboard_is_a_command_away() -> None:
    hint = backend().dashboard_hint({"name": NAME, "namespace": "team-a", "context": "eks", "run_dir": "/fsx/r"})
    assert hint.startswith("kubectl --namespace team-a --context eks port-forward ")
    assert '-head-svc" 8265, then http://127.0.0.1:8265' in hint
    assert f"get secret {NAME} --output jsonpath='{{.data.auth_token}}' | base64 --decode" in hint


def test_the_command_line_from_submission_to_stop(
    kubernetes: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLVR_STATE", str(tmp_path / "state"))

    def rlvr(*words: str, exit_status: int = 0) -> str:
        assert main(words) == exit_status
        return capsys.readouterr().out

    submission = json.loads(rlvr("submit", "tiny", *SETTINGS, f"job.name={NAME}", "--to", "hyperpod", "--json"))
    assert submission["reference"]["adapter"] == f"/fsx/rlvr-runs/{NAME}/adapter"
    assert "pending" in rlvr("jobs", "status", NAME)
    ray_job = kubernetes.objects["rayjobs", NAME]
    ray_job["status"] = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "exit code 1"}
    kubernetes.pods[f"{NAME}-x1"] = ["rlvr: no GPU"]
    assert rlvr("jobs", "logs", "--follow", NAME, exit_status=1) == "rlvr: no GPU\n"
    row = json.loads(rlvr("jobs", "status", NAME, "--json"))
    assert (row["state"], row["message"]) == ("failed", "exit code 1")
    ray_job["status"] = {"jobDeploymentStatus": "Suspended"}
    rlvr("jobs", "stop", NAME)
    assert kubernetes.objects == {}
    token_holders = [path for path in (tmp_path / "state").rglob("*.json") if "auth_token" in path.read_text()]
    assert token_holders == []
