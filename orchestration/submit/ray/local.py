"""This machine: a Ray head of our own, with a dashboard, and the run as one of its jobs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestration.errors import ConfigError, MachineError, SubmitError
from orchestration.extras import require
from orchestration.machine.model_sizes import model_size
from orchestration.machine.needs import object_store_bytes
from orchestration.monitor import programs
from orchestration.run.ledger.folder import read_status
from orchestration.run.ledger.names import ADAPTER_FOLDER
from orchestration.settings.config import RunConfig, load_settings
from orchestration.settings.submit import SubmitConfig
from orchestration.sockets import LOOPBACK
from orchestration.storage.state import state_root
from orchestration.submit.common.job import JobSpec, JobState, JobStatus, Plan, Record, Say, unrecorded
from orchestration.submit.common.paths import paths_on_disk, refuse_what_stays_here, with_settings
from orchestration.submit.ray import local_head
from orchestration.submit.ray.cluster import Launch, jobs_at
from orchestration.submit.ray.jobs import DASHBOARD_PORT, RayJobs

_LEAST_OBJECT_STORE_BYTES = 2**30  # jobs share it


class LocalBackend:
    """`--to local`."""

    def __init__(self, settings: SubmitConfig, *, folder: Path | None = None) -> None:
        self._settings = settings.local
        self._folder = folder or state_root() / "head"

    def plan(self, job: JobSpec) -> Plan:
        head = local_head.find(self._folder)
        address = head.address if head else f"http://{LOOPBACK}:{DASHBOARD_PORT}, started for the job"
        return self._launch(job).plan(address)

    def submit(self, job: JobSpec, say: Say, record: Record = unrecorded) -> dict[str, str]:
        require("vllm", by="a run on this machine", extra="cpu")
        launch = self._launch(job)
        run = launch.run
        if local_head.find(self._folder) is None:
            say("starting Ray on this machine")
        recorded = _recorded(say) if run.monitor or programs.find_prometheus() is not None else {}
        head = local_head.ensure(
            self._folder,
            linger_s=self._settings.linger_s,
            object_store_bytes=max(
                _LEAST_OBJECT_STORE_BYTES, object_store_bytes(model_size(run.model.name), run.learner)
            ),
            timeout_s=self._settings.start_timeout_s,
            environment=recorded,
        )
        jobs = RayJobs(local_head.endpoint(self._folder, head))
        reference = {"address": head.address, "head": head.identity, "job_id": job.name}
        reference |= {"run_dir": str(run.run_dir), "adapter": f"{run.run_dir}/{ADAPTER_FOLDER}"}
        record(reference)
        launch.send(jobs)
        return reference

    def _launch(self, job: JobSpec) -> Launch:
        run, timeout_s = local_run(job.run, job.name), self._settings.stop_timeout_s
        return Launch(job=job, run=run, stop_timeout_s=timeout_s, python=sys.executable)

    def status(self, reference: Mapping[str, str]) -> JobStatus:
        jobs = self._jobs(reference)
        if jobs is None:
            return _from_run_folder(Path(reference["run_dir"]))
        return jobs.status(reference["job_id"])

    def logs(self, reference: Mapping[str, str], *, follow: bool) -> Iterator[str]:
        jobs = self._jobs(reference)
        if jobs is None:
            raise SubmitError(
                f"the Ray head that ran {reference['job_id']} has ended, and its log with it; what the run wrote is in "
                f"{reference['run_dir']}"
            )
        return jobs.logs(reference["job_id"], follow=follow)

    def stop(self, reference: Mapping[str, str]) -> None:
        if (jobs := self._jobs(reference)) is not None:
            jobs.stop(reference["job_id"])

    def dashboard_hint(self, reference: Mapping[str, str]) -> str:
        token = self._folder / local_head.TOKEN_FILE
        return f"{reference['address']}/#/jobs/{reference['job_id']}; the token it asks for is in {token}{_recording()}"

    def _jobs(self, reference: Mapping[str, str]) -> RayJobs | None:
        """Those of the head that the job was given to; None when that has ended."""
        head = local_head.find(self._folder)
        if head is None or head.identity != reference["head"]:
            return None
        return RayJobs(local_head.endpoint(self._folder, head))


def jobs_of(address: str, settings: Sequence[str] = ()) -> RayJobs:
    """Those of the dashboard at an address: of this machine's own head, with its token, or of a cluster.

    Args:
        settings: `ray.KEY=VALUE` each, such as `ray.token_file=FILE`.

    Raises ConfigError for what is no such setting or no address, SubmitError when nobody answers there.
    """
    for word in settings:
        if not word.startswith("ray."):
            raise ConfigError(
                f"{word!r} says nothing of a cluster; settings here are ray.KEY=VALUE: `rlvr settings ray`"
            )
    config = load_settings("tiny", [f"ray.address={address}", *settings]).submit.ray
    head = local_head.find(state_root() / "head")
    if head is not None and head.address == address.rstrip("/").replace("//localhost:", f"//{LOOPBACK}:"):
        return RayJobs(local_head.endpoint(state_root() / "head", head))
    return jobs_at(config)


def _recorded(say: Say) -> dict[str, str]:
    """Start Prometheus, and Grafana where there is one; what a head that is started now has to know of them."""
    try:
        monitor = programs.up()
    except MachineError as error:
        say(f"the run is not recorded: {error}")
        return {}
    say(f"recorded by Prometheus at {monitor.prometheus}; {monitor.where()}")
    return monitor.ray_environment()


def _recording() -> str:
    monitor = programs.running()
    return "" if monitor is None else f"; Prometheus at {monitor.prometheus}, {monitor.where()}"


def local_run(run: RunConfig, name: str) -> RunConfig:
    """The run with whole paths, as the job works in another folder. Raises ConfigError for what a job cannot have."""
    refuse_what_stays_here(run, place="this machine", is_here=True)
    if "://" in (run.run_dir or ""):
        raise ConfigError(f"run_dir={run.run_dir!r} is no folder; give one of this machine")
    paths = {setting: _whole(path) for setting, path in paths_on_disk(run).items()}
    for setting, path in paths.items():
        if not os.path.exists(path):
            raise ConfigError(
                f"{setting}={path!r} does not exist here; give a file or folder of this machine, or s3://…"
            )
    changes: dict[str, Any] = {
        "ray_address": "auto",
        "run_dir": _whole(run.run_dir or f"runs/{name}"),
        **paths,
    }
    if run.reward.settings_file is not None:
        changes["reward.settings_file"] = _whole(str(run.reward.settings_file))
    return with_settings(run, changes)


def _whole(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _from_run_folder(run_dir: Path) -> JobStatus:
    """How a job ended whose Ray head is gone, from its run folder."""
    status = read_status(run_dir)
    states = {"finished": JobState.SUCCEEDED, "stopped": JobState.STOPPED, "failed": JobState.FAILED}
    if status in states:
        return JobStatus(state=states[status], message=f"by {run_dir / 'summary.json'}")
    return JobStatus(state=JobState.UNKNOWN, message=f"its Ray head has ended, and {run_dir} has no summary")
