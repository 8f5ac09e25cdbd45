"""SageMaker HyperPod on EKS: a job of a RayCluster that is there, or a KubeRay RayJob that is made for the run."""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import Any

from orchestration.errors import SubmitError, one_line
from orchestration.extras import require
from orchestration.settings.config import RunConfig
from orchestration.settings.submit import SubmitConfig
from orchestration.submit.common.job import JobSpec, JobState, JobStatus, Plan, Say
from orchestration.submit.hyperpod.api import KubernetesApi, NotThereError
from orchestration.submit.hyperpod.checks import require_address, run_in_pods
from orchestration.submit.hyperpod.manifest import TOKEN_KEY, job_manifests, make_plan, owned_by
from orchestration.submit.ray.cluster import cluster_run, ray_plan, send
from orchestration.submit.ray.jobs import DASHBOARD_PORT, Endpoint, RayJobs

POLL_S = 3.0
"""How often a job that does not print yet is looked at."""


class HyperPodBackend:
    """`--to hyperpod`. A reference has `address`, or `name`, `namespace` and `context` of the RayJob."""

    def __init__(self, settings: SubmitConfig) -> None:
        self._settings, self._run_root = settings.hyperpod, settings.ray.run_root

    def plan(self, job: JobSpec) -> Plan:
        if self._settings.address is None:
            return make_plan(job, self._settings)
        address = require_address(self._settings)
        return ray_plan(job, self._run_there(job), address=address, stop_timeout_s=self._settings.stop_timeout_s)

    def submit(self, job: JobSpec, say: Say) -> dict[str, str]:
        if self._settings.address is not None:
            return self._submit_there(job, say)
        manifests = job_manifests(job, self._settings, token=secrets.token_hex(32))
        kubernetes = self._kubernetes(self._settings.namespace, self._settings.context)
        first, *rest = manifests
        # The owner first, whose pods wait for the other two: what is left of a failure is deleted with it.
        ray_job = kubernetes.create(first)
        try:
            for manifest in rest:
                kubernetes.create(owned_by(manifest, ray_job))
        except BaseException as error:
            _delete(kubernetes, job.name, after=error)
            raise
        say(f"RayJob {job.name} is in namespace {self._settings.namespace}")
        if self._settings.queue is not None and not job.run.save_every:
            say(f"queue {self._settings.queue} may take its hosts away, and save_every=0 keeps nothing for that case")
        return {
            "name": job.name,
            "namespace": self._settings.namespace,
            "context": self._settings.context or "",
            "run_dir": str(run_in_pods(job, self._settings).run_dir),
        }

    def status(self, reference: Mapping[str, str]) -> JobStatus:
        if "address" in reference:
            return self._jobs(reference["address"]).status(reference["job_id"])
        try:
            ray_job = self._kubernetes(reference["namespace"], reference["context"]).ray_job(reference["name"])
        except NotThereError as error:
            return JobStatus(state=JobState.UNKNOWN, message=f"its RayJob was deleted: {error}")
        return status_of(ray_job)

    def logs(self, reference: Mapping[str, str], *, follow: bool) -> Iterator[str]:
        if "address" in reference:
            yield from self._jobs(reference["address"]).logs(reference["job_id"], follow=follow)
            return
        kubernetes = self._kubernetes(reference["namespace"], reference["context"])
        printed: set[str] = set()
        while True:
            # Asked before the pods: what began before the job ended is still printed.
            state = self.status(reference).state
            for pod in kubernetes.submitter_pods(reference["name"]):
                if pod not in printed:
                    printed.add(pod)
                    yield from kubernetes.pod_log(pod, follow=follow)
            if not follow or state.ended or state is JobState.UNKNOWN:
                return
            time.sleep(POLL_S)

    def stop(self, reference: Mapping[str, str]) -> None:
        """A run that is under way saves its state, and its RayJob stays; one that waits is deleted."""
        if "address" in reference:
            self._jobs(reference["address"]).stop(reference["job_id"])
            return
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
        if "address" in reference:
            return f"the cluster's owner opens the dashboard of {reference['address']} from the HyperPod console"
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

    def _submit_there(self, job: JobSpec, say: Say) -> dict[str, str]:
        address = require_address(self._settings)
        run = self._run_there(job)
        jobs = self._jobs(address)
        say(f"{address} runs Ray {jobs.check_version()}")
        send(jobs, job, run, stop_timeout_s=self._settings.stop_timeout_s)
        return {"address": address, "job_id": job.name, "run_dir": str(run.run_dir)}

    def _run_there(self, job: JobSpec) -> RunConfig:
        return cluster_run(job.run, job.name, run_root=self._run_root, place="the RayCluster")

    def _jobs(self, address: str) -> RayJobs:
        """The jobs of a cluster that is there; access to it takes a call of Kubernetes and one of the dashboard."""
        require("sagemaker_ray", by="HyperPod", extra="hyperpod", package="toolkit-for-ray-on-sagemaker-ai")
        from toolkit_for_ray_on_sagemaker_ai.job_submission import _kubeconfig, _token_provider

        try:
            return RayJobs(Endpoint(address=address, timeout_s=self._settings.timeout_s))
        except (_kubeconfig.KubeconfigError, _token_provider.TokenAcquisitionError) as error:
            raise SubmitError(f"no access to {address}: {one_line(error)}") from error

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
