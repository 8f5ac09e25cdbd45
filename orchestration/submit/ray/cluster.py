"""A Ray cluster that is there already, HyperPod's too: the run becomes one of its jobs."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from orchestration.errors import ConfigError, MachineError, SubmitError, one_line
from orchestration.extras import require
from orchestration.machine.placement import place
from orchestration.run.ledger.names import ADAPTER_FOLDER
from orchestration.settings.config import RunConfig, dump_config
from orchestration.settings.submit import RayConfig, SubmitConfig
from orchestration.submit.common.job import JobSpec, JobStatus, Plan, Record, Say, unrecorded
from orchestration.submit.common.paths import refuse_relative_paths, refuse_what_stays_here, with_settings
from orchestration.submit.ray.jobs import RUN_FILE, Endpoint, RayJobs, entrypoint

HYPERPOD = "sagemaker_ray://"
"""Scheme of a RayCluster on HyperPod: access to it takes a call of Kubernetes and one of AWS's gateway."""

_PLACE = "the Ray cluster"
_SERVICE_SETTINGS = "reward_settings.yaml"
_HYPERPOD_ADDRESS = re.compile(
    HYPERPOD + r"(?:[a-z0-9]([a-z0-9-]*[a-z0-9])?(?:/[a-z0-9]([a-z0-9-]*[a-z0-9])?)?|[\w-]+(?:\.[\w-]+)+)/?"
)


class RayBackend:
    """`--to ray`."""

    def __init__(self, settings: SubmitConfig) -> None:
        self._settings = settings.ray

    def plan(self, job: JobSpec) -> Plan:
        return self._launch(job).plan(_address(self._settings))

    def submit(self, job: JobSpec, say: Say, record: Record = unrecorded) -> dict[str, str]:
        address, launch = _address(self._settings), self._launch(job)
        jobs = self._jobs(address)
        version = jobs.check_version()
        say(f"{address} runs Ray {version}")
        if self._settings.check_gpus:
            check_gpus(launch.run, jobs.nodes(), address=address)
        reference = {"address": address, "job_id": job.name, "adapter": f"{launch.run.run_dir}/{ADAPTER_FOLDER}"}
        record(reference)
        launch.send(jobs)
        return reference

    def _launch(self, job: JobSpec) -> Launch:
        run = cluster_run(job.run, job.name, run_root=self._settings.run_root)
        return Launch(job=job, run=run, stop_timeout_s=self._settings.stop_timeout_s)

    def status(self, reference: Mapping[str, str]) -> JobStatus:
        return self._jobs(reference["address"]).status(reference["job_id"])

    def logs(self, reference: Mapping[str, str], *, follow: bool) -> Iterator[str]:
        return self._jobs(reference["address"]).logs(reference["job_id"], follow=follow)

    def stop(self, reference: Mapping[str, str]) -> None:
        self._jobs(reference["address"]).stop(reference["job_id"])

    def dashboard_hint(self, reference: Mapping[str, str]) -> str:
        if reference["address"].startswith(HYPERPOD):
            return f"the cluster's owner opens the dashboard of {reference['address']} from the HyperPod console"
        return f"{reference['address']}/#/jobs/{reference['job_id']}"

    def _jobs(self, address: str) -> RayJobs:
        return jobs_at(self._settings.model_copy(update={"address": address}))


def jobs_at(config: RayConfig) -> RayJobs:
    """Those of the cluster that the settings name, with its token."""
    address = _address(config)
    if config.ca_file is not None and not config.ca_file.exists():
        raise ConfigError(f"ray.ca_file={str(config.ca_file)!r} does not exist; give a PEM file")
    hyperpod = address.startswith(HYPERPOD)  # its gateway is reached as all of AWS is, and asks for a cookie
    endpoint = Endpoint(
        address=address,
        token=None if hyperpod else _token(config),
        ca_file=config.ca_file,
        timeout_s=config.timeout_s,
        use_proxy=hyperpod or config.use_proxy,
    )
    jobs = RayJobs(endpoint)
    if not hyperpod:
        return jobs
    require("sagemaker_ray", by="HyperPod", extra="hyperpod", package="toolkit-for-ray-on-sagemaker-ai")
    from toolkit_for_ray_on_sagemaker_ai.job_submission import _kubeconfig, _token_provider

    try:
        jobs.connect()
    except (_kubeconfig.KubeconfigError, _token_provider.TokenAcquisitionError) as error:
        raise SubmitError(f"no access to {endpoint.address}: {one_line(error)}") from error
    return jobs


def cluster_run(run: RunConfig, name: str, *, run_root: str) -> RunConfig:
    """The run as a cluster's driver reads it: in the Ray that it is a job of, with its folder outside the job's own,
    which is removed after the job.

    Args:
        name: the job's; its run folder's too, unless the run has one.
        run_root: folder of all run folders, on the cluster.

    Raises:
        ConfigError: a path means nothing there.
    """
    refuse_what_stays_here(run, place=_PLACE)
    refuse_relative_paths(run, place=_PLACE)
    if run.run_dir is not None and not run.run_dir.startswith(("/", "~")):
        raise ConfigError(
            f"run_dir={run.run_dir!r} would lie in the job's working directory, which goes with the job; give the "
            f"whole path it has on {_PLACE}"
        )
    changes: dict[str, Any] = {"ray_address": "auto", "run_dir": run.run_dir or f"{run_root.rstrip('/')}/{name}"}
    if run.reward.settings_file is not None:
        changes["reward.settings_file"] = _SERVICE_SETTINGS
    return with_settings(run, changes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A job as Ray's job interface takes it: what is planned is what is sent."""

    job: JobSpec
    run: RunConfig
    """As its driver reads it."""
    stop_timeout_s: float
    """What a stopped job has between SIGTERM and SIGKILL."""
    python: str = "python"
    """The interpreter there."""

    def plan(self, address: str) -> Plan:
        """What `send` would give to the dashboard at an address."""
        request = {
            "address": address,
            "submission_id": self.job.name,
            "entrypoint": entrypoint(python=self.python),
            "runtime_env": self._runtime_env(f"uploaded: {self.job.code.describe()}, and {RUN_FILE}"),
            "run": yaml.safe_load(dump_config(self.run)),
        }
        return Plan(request=request)

    def send(self, jobs: RayJobs) -> None:
        """Upload code and settings, and start the job.

        Raises ConfigError when the reward service's settings cannot be read, SubmitError when the cluster refuses or
        does not answer.
        """
        with tempfile.TemporaryDirectory(prefix="rlvr-job-") as name:
            folder = Path(name) / "code"
            shutil.copytree(self.job.code.folder, folder)
            (folder / RUN_FILE).write_text(dump_config(self.run), encoding="utf-8")
            if str(self.run.reward.settings_file) == _SERVICE_SETTINGS:
                _copy_service_settings(self.job.run.reward.settings_file, folder)
            jobs.submit(
                name=self.job.name,
                command=entrypoint(python=self.python),
                runtime_env=self._runtime_env(str(folder)),
                metadata={"name": self.job.name, "recipe": self.run.recipe},
            )

    def _runtime_env(self, working_dir: str) -> dict[str, Any]:
        variables = {**self.job.environment, "RAY_JOB_STOP_WAIT_TIME_S": f"{self.stop_timeout_s:g}"}
        return {"working_dir": working_dir, "env_vars": variables}


def _copy_service_settings(source: Path | None, folder: Path) -> None:
    assert source is not None, "the run names a copy of it"
    try:
        shutil.copyfile(source, folder / _SERVICE_SETTINGS)
    except OSError as error:
        raise ConfigError(f"reward.settings_file={str(source)!r} cannot be read: {error.strerror}") from error


def check_gpus(run: RunConfig, nodes: list[dict[str, float]], *, address: str) -> None:
    """Refuse a run that a cluster has no place for.

    Args:
        run: To be placed.
        nodes: What each has of each resource, busy or not.
        address: For the message.

    Raises:
        SubmitError: The cluster can never place it.
    """
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    try:
        place(run, num_gpus=num_gpus)
    except MachineError as error:
        raise SubmitError(
            f"the Ray cluster at {address} has {num_gpus} GPUs on {len(nodes)} nodes: {error} (ray.check_gpus=false "
            f"if the cluster grows on demand)"
        ) from error
    for setting, mark in (("rollout_nodes", run.rollout_nodes), ("learner_nodes", run.learner_nodes)):
        if mark is not None and not any(node.get(mark) for node in nodes):
            raise SubmitError(
                f"{setting}={mark!r}, but no node of the Ray cluster at {address} has a resource of that name; start "
                f"nodes with --resources or leave the setting out"
            )


def _address(config: RayConfig) -> str:
    address = config.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if address is None:
        raise ConfigError("no Ray cluster is named: set ray.address=http://HOST:8265, its dashboard")
    if address.startswith(HYPERPOD[:-2]):
        if not _HYPERPOD_ADDRESS.fullmatch(address):  # the toolkit would try one without a cluster as plain HTTP
            raise ConfigError(
                f"ray.address={address!r} is no address of a RayCluster; write {HYPERPOD}CLUSTER/NAMESPACE"
            )
        return address
    try:
        parts = urlsplit(address.partition("#")[0])  # what a browser shows ends in #/overview
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        valid = valid and not (parts.username or parts.query)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(
            f"ray.address={address!r} is not a dashboard's address; write http://HOST:8265, https://… or {HYPERPOD}…"
        )
    return parts.geturl().rstrip("/")


def _token(config: RayConfig) -> str | None:
    """The cluster's token: the setting's file, or what Ray's own tools would take."""
    default = Path.home() / ".ray" / "auth_token"
    named = config.token_file or (os.environ.get("RAY_AUTH_TOKEN_PATH") and Path(os.environ["RAY_AUTH_TOKEN_PATH"]))
    if named is None and (token := os.environ.get("RAY_AUTH_TOKEN")):
        return token.strip()
    path = named or (default if default.exists() else None)
    if not path:
        return None
    try:
        token = Path(path).expanduser().read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"ray.token_file={str(path)!r} cannot be read: {error}") from error
    if not re.fullmatch(r"[!-~]+", token):
        raise ConfigError(f"ray.token_file={str(path)!r} is not one line with a token; put the cluster's there")
    return token
