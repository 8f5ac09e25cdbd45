"""SageMaker HyperPod on EKS: a KubeRay RayJob that is made for the run."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from orchestration.errors import SubmitError
from orchestration.extras import require
from orchestration.run.ledger.names import ADAPTER_FOLDER
from orchestration.settings.submit import SubmitConfig
from orchestration.submit.common.follow import POLL_S
from orchestration.submit.common.follow import follow as followed
from orchestration.submit.common.job import JobSpec, JobState, JobStatus, Plan, Record, Say, unrecorded
from orchestration.submit.hyperpod.api import KubernetesApi, NotThereError
from orchestration.submit.hyperpod.checks import run_in_pods
from orchestration.submit.hyperpod.manifest import TOKEN_KEY, job_manifests, make_plan, owned_by
from orchestration.submit.ray.jobs import DASHBOARD_PORT


class HyperPodBackend:
    """`--to hyperpod`. A reference has `name`, `namespace` and `context` of the RayJob."""

    def __init__(self, settings: SubmitConfig) -> None:
        self._settings = settings.hyperpod

    def plan(self, job: JobSpec) -> Plan:
        return make_plan(job, self._settings)

    def submit(self, job: JobSpec, say: Say, record: Record = unrecorded) -> dict[str, str]:
        manifests = job_manifests(job, self._settings, token=secrets.token_hex(32))
        kubernetes = self._kubernetes(self._settings.namespace, self._settings.context)
        first, *rest = manifests
        reference = {
            "name": job.name,
            "namespace": self._settings.namespace,
            "context": self._settings.context or "",
            "adapter": f"{run_in_pods(job, self._settings).run_dir}/{ADAPTER_FOLDER}",
        }
        record(reference)
        # The owner first, whose pods wait for the other two: what is left of a failure is deleted with it.
        ray_job = kubernetes.create(first)
        try:
            for manifest in rest:
                kubernetes.create(owned_by(manifest, ray_job))
        except BaseException as error:
            _delete(kubernetes, job.name, after=error)
            raise
        say(f"RayJob {job.name} is in namespace {self._settings.namespace}")
        if self._settings.queue is not None and not (job.run.save_every or job.run.save_minutes):
            say(f"queue {self._settings.queue} may take its hosts away, and without save_minutes nothing is kept")
        return reference

    def status(self, reference: Mapping[str, str]) -> JobStatus:
        try:
            ray_job = self._kubernetes(reference["namespace"], reference["context"]).ray_job(reference["name"])
        except NotThereError as error:
            return JobStatus(state=JobState.UNKNOWN, message=f"its RayJob was deleted: {error}")
        return status_of(ray_job)

    def logs(self, reference: Mapping[str, str], *, follow: bool) -> Iterator[str]:
        kubernetes = self._kubernetes(reference["namespace"], reference["context"])

        def news(*, over: bool) -> Iterator[str]:
            for pod in kubernetes.submitter_pods(reference["name"]):
                yield from kubernetes.pod_log(pod, follow=not over)

        if not follow:
            return news(over=True)
        return followed(lambda: self.status(reference).state.over, news, poll_s=POLL_S)

    def stop(self, reference: Mapping[str, str]) -> None:
        """A run that is under way saves its state, and its RayJob stays; one that waits is deleted."""
        kubernetes = self._kubernetes(reference["namespace"], reference["context"])
        try:
            ray_job = kubernetes.ray_job(reference["name"])
        except NotThereError:
            return
        status = ray_job.get("status", {})
        if status.get("jobStatus") in ("PENDING", "RUNNING"):
            kubernetes.stop_in_ray(head_service(status), status["jobId"], secret=reference["name"])
        elif status_of(ray_job).state is JobState.PENDING:
            kubernetes.delete_ray_job(reference["name"])

    def dashboard_hint(self, reference: Mapping[str, str]) -> str:
        kubectl = ["kubectl", "--namespace", reference["namespace"]]
        if reference["context"]:
            kubectl += ["--context", reference["context"]]
        name = shlex.quote(reference["name"])
        cluster = f"$({shlex.join(kubectl)} get rayjob {name} --output jsonpath='{{.status.rayClusterName}}')"
        secret = f"get secret {name} --output jsonpath='{{.data.{TOKEN_KEY}}}' | base64 --decode"
        return (
            f'{shlex.join(kubectl)} port-forward "service/{cluster}-head-svc" {DASHBOARD_PORT}, then '
            f"http://127.0.0.1:{DASHBOARD_PORT} with the token that {shlex.join(kubectl)} {secret} prints"
        )

    def _kubernetes(self, namespace: str, context: str | None) -> KubernetesApi:
        require("kubernetes", by="HyperPod", extra="hyperpod")
        return KubernetesApi(context=context or None, namespace=namespace, timeout_s=self._settings.timeout_s)


def status_of(ray_job: Mapping[str, Any]) -> JobStatus:
    """What KubeRay wrote into a RayJob, as a job's state."""
    status = ray_job.get("status", {})
    in_ray, in_kubernetes = status.get("jobStatus", ""), status.get("jobDeploymentStatus", "")
    words = " ".join(f"{status.get('reason', '')} {status.get('message', '')}".split())
    if "deletionTimestamp" in ray_job.get("metadata", {}):
        return JobStatus(state=JobState.STOPPED, message="its RayJob is being deleted")
    match in_kubernetes:
        case "Complete" | "Failed" | "ValidationFailed":
            ended = {"SUCCEEDED": JobState.SUCCEEDED, "STOPPED": JobState.STOPPED}.get(in_ray, JobState.FAILED)
            if in_kubernetes != "Complete" and ended is JobState.SUCCEEDED:  # such as over its deadline
                ended = JobState.FAILED
            return JobStatus(state=ended, message=words)
        case "Running" if in_ray not in ("", "PENDING"):
            return JobStatus(state=JobState.RUNNING, message=words)
        case "Suspended" | "Suspending":
            return JobStatus(state=JobState.PENDING, message=f"suspended: its queue lets it in {words}".strip())
        case _:
            return JobStatus(
                state=JobState.PENDING, message=f"{in_kubernetes or 'not seen by KubeRay yet'} {words}".strip()
            )


def head_service(status: Mapping[str, Any]) -> str:
    """The Kubernetes service of a RayJob's dashboard."""
    head = status.get("rayClusterStatus", {}).get("head", {})
    return str(head.get("serviceName") or f"{status['rayClusterName']}-head-svc")


def _delete(kubernetes: KubernetesApi, name: str, *, after: BaseException) -> None:
    try:
        kubernetes.delete_ray_job(name)
    except SubmitError as error:
        raise SubmitError(f"{after}; and the RayJob {name} is still there, delete it by kubectl: {error}") from after
