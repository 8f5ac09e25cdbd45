"""What runs on every host of a SageMaker training job: a Ray cluster of all hosts, and the run as a job in it.

The head starts Ray, waits for the workers, submits the run and relays its log. A worker joins, and asks the head's Ray
how the run is, until that has ended, SIGTERM comes or the head is silent. The head stays until the workers know. Hosts
that fail write the reason to the failure file. Only the head writes checkpoints and the model.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import psutil

from orchestration.errors import RlvrError, SubmitError
from orchestration.run.ledger.folder import read_status
from orchestration.run.ledger.names import ADAPTER_FOLDER, CONFIG_FILE, SUMMARY_FILE
from orchestration.storage.atomic import atomic_write
from orchestration.submit.ray.jobs import RUN_FILE, entrypoint
from orchestration.submit.ray.process import RayProcess
from orchestration.submit.sagemaker.host import places
from orchestration.submit.sagemaker.host.environment import cuda_compatibility, fetch_secrets
from orchestration.submit.sagemaker.host.facts import (
    EXIT_FAILED,
    EXIT_STOPPED,
    POLL_S,
    STOP_JOB_S,
    Ending,
    HostError,
    HostFacts,
    failure_text,
    host_facts,
    lacking_gpus,
    missing,
    object_store_bytes,
    ray_environment,
    ray_start,
    run_ending,
    worker_ending,
)
from orchestration.submit.sagemaker.host.head_ray import HeadRay, JobLog

ML = Path(places.ML)
CODE = Path(places.CHANNELS_FOLDER / "code")
TOKEN_PATH = Path(places.CHANNELS_FOLDER / places.AUTH / places.TOKEN_FILE)
CONFIG = Path(places.CHANNELS_FOLDER / places.CONFIG)
RUN_FOLDER = Path(places.RUN_FOLDER)
OBJECT_STORE_VARIABLE = "RLVR_OBJECT_STORE_BYTES"
"""Upper bound of this host's object store, bytes."""

_INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
_TELL_WORKERS_S = 15.0
_DASHBOARD_SILENT_S = 120.0
_RESTART_S = 3.0


def main() -> int:
    """Returns this host's exit status; the reason of a failure is in the failure file."""
    stop = _Stop()
    try:
        facts = host_facts(
            json.loads((ML / "input/config/resourceconfig.json").read_bytes()),
            settings := json.loads((CONFIG / places.HOSTS_FILE).read_bytes()),
            job_name=os.environ["TRAINING_JOB_NAME"],
        )
        token = TOKEN_PATH.read_text(encoding="utf-8").strip()
        os.environ.update(fetch_secrets(settings["secrets"], settings["endpoints"]))  # Ray's processes inherit them
        say(facts, f"{'head' if facts.is_head else f'worker of {facts.head}'}, {len(facts.hosts)} hosts in all")
        ending = run_head(facts, token, stop) if facts.is_head else run_worker(facts, token, stop)
    except (HostError, RlvrError) as error:
        ending = Ending(EXIT_FAILED, str(error))
    except Exception as error:  # nobody above would write the reason where SageMaker looks for it
        traceback.print_exc()
        ending = Ending(EXIT_FAILED, f"{type(error).__name__}: {error}")
    if ending.reason:
        text = failure_text(ending.reason)
        print(f"{socket.gethostname()} leaves: {text}", flush=True)
        (ML / "output/failure").write_text(text, encoding="utf-8")
    return ending.exit_code


class _Stop:
    """Since when this host has to stop."""

    def __init__(self) -> None:
        self._at = math.inf
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self._at = min(self._at, time.monotonic())

    @property
    def for_s(self) -> float:
        """Negative while it has not."""
        return time.monotonic() - self._at


def say(facts: HostFacts, message: str) -> None:
    """A line of the log, in the manner of the run's own."""
    print(f"{time.strftime('%H:%M:%S')} {facts.name}: {message}", flush=True)


# The head


def run_head(facts: HostFacts, token: str, stop: _Stop) -> Ending:
    """The whole life of the head, its workers' end included; returns how this host leaves. SIGTERM sets `stop`."""
    ray = start_ray(facts)
    jobs = HeadRay(facts, token)
    try:
        try:
            ending = _head_ending(facts, ray, jobs, stop)
            if ending.exit_code != EXIT_FAILED:
                put_out(RUN_FOLDER, ML / "model", adapter=facts.adapter)
                say(facts, f"adapter: {facts.adapter}")
        except (HostError, SubmitError, OSError) as error:
            ending = Ending(EXIT_FAILED, str(error))
        jobs.tell(ending.reason)
        if left := jobs.wait_for_workers_to_leave(timeout_s=_TELL_WORKERS_S):
            say(facts, f"did not leave before the head: {', '.join(left)}")
        return ending
    finally:
        ray.stop()


def _head_ending(facts: HostFacts, ray: RayProcess, jobs: HeadRay, stop: _Stop) -> Ending:
    if not _all_joined(facts, ray, jobs, stop):
        return Ending(EXIT_STOPPED, "stopped before all hosts had joined")
    if read_status(RUN_FOLDER) == "finished":  # an interruption came between the run's end and the job's
        say(facts, "the checkpoint folder holds a finished run: nothing to do")
        jobs.submit("true")
    else:
        jobs.submit(entrypoint(str(CONFIG / RUN_FILE), python=sys.executable))
        say(facts, f"submitted the run as Ray job {facts.job_name}")
    return _followed(facts, ray, jobs, stop)


def _all_joined(facts: HostFacts, ray: RayProcess, jobs: HeadRay, stop: _Stop) -> bool:
    """Wait for all hosts; False: stopped meanwhile. Raises HostError naming those that are missing in time, or that
    lack GPUs."""
    deadline = time.monotonic() + facts.join_timeout_s
    absent, trouble = facts.hosts, ""
    nodes: list[dict[str, float]] = []
    while stop.for_s < 0:
        time.sleep(POLL_S)
        if (words := ray.ended()) is not None:
            raise HostError(f"Ray ended on the head, {facts.name}: {words}")
        before = absent
        try:
            nodes = jobs.ray.nodes()
            absent, trouble = missing(facts, nodes), ""
        except SubmitError as error:  # it is starting
            trouble = str(error)
        if absent != before:
            say(facts, f"{len(facts.hosts) - len(absent)} of {len(facts.hosts)} hosts have joined")
        if not absent:
            if lacking := lacking_gpus(facts, nodes):
                raise HostError(
                    f"{lacking} that Ray can see: the driver may be too old for CUDA 13, see the host's log"
                )
            return True
        if time.monotonic() > deadline:
            names = f"{', '.join(absent)} did not join Ray within {facts.join_timeout_s:g} s"
            raise HostError(f"{names}: {trouble}" if trouble else names)
    return False


def _followed(facts: HostFacts, ray: RayProcess, jobs: HeadRay, stop: _Stop) -> Ending:
    """Relay the run's log until it has ended; after SIGTERM ask it to stop."""
    log = JobLog(facts.job_name)
    asked_to_stop, answered = False, time.monotonic()
    while True:
        time.sleep(POLL_S)
        log.relay()
        stopping_s, trouble = stop.for_s, ""
        try:
            if stopping_s >= 0 and not asked_to_stop:
                say(facts, f"asked to stop: the run may save its state for {STOP_JOB_S:g} s")
                jobs.ray.stop(facts.job_name)
                asked_to_stop = True
            status = jobs.ray.status(facts.job_name)
            answered = time.monotonic()
            if status.state.ended:
                log.relay(all_of_it=True)
                return run_ending(status, list(log.tail))
        except SubmitError as error:
            trouble = str(error)
        if stopping_s > STOP_JOB_S + 5:
            return Ending(EXIT_STOPPED, f"stopped; the run had not ended after {STOP_JOB_S:g} s")
        if (words := ray.ended()) is not None:
            raise HostError(f"Ray ended on the head, {facts.name}, during the run: {words}")
        if time.monotonic() - answered > _DASHBOARD_SILENT_S:
            raise HostError(f"Ray's dashboard on {facts.name} stopped answering: {trouble}")


def put_out(run_folder: Path, model_folder: Path, *, adapter: str) -> None:
    """Copy what SageMaker shall keep as the job's model: the adapter, the configuration, and the summary, which is told
    where the adapter lies on S3."""
    model_folder.mkdir(parents=True, exist_ok=True)
    if (run_folder / ADAPTER_FOLDER).is_dir():
        shutil.copytree(run_folder / ADAPTER_FOLDER, model_folder / ADAPTER_FOLDER, dirs_exist_ok=True)
    if (run_folder / CONFIG_FILE).is_file():
        shutil.copyfile(run_folder / CONFIG_FILE, model_folder / CONFIG_FILE)
    for path in (run_folder / SUMMARY_FILE, model_folder / SUMMARY_FILE):
        if (run_folder / SUMMARY_FILE).is_file():
            summary: dict[str, Any] = json.loads((run_folder / SUMMARY_FILE).read_bytes())
            atomic_write(path, json.dumps({**summary, "adapter": adapter}, ensure_ascii=False, indent=2).encode())


# A worker


def run_worker(facts: HostFacts, token: str, stop: _Stop) -> Ending:
    """The whole life of a worker: join, and stay until there is a reason to leave."""
    began = heard = time.monotonic()
    ray: RayProcess | None = None
    jobs = HeadRay(facts, token)
    answered, started_at = False, 0.0
    try:
        while True:
            now = time.monotonic()
            ray_ended = ray.ended() if ray is not None else None
            if answer := jobs.status():
                answered, heard = True, time.monotonic()
                if answer.state.ended:
                    return jobs.ending(answer)
            retry = ray_ended is not None and now - began < facts.join_timeout_s
            ending = worker_ending(
                facts,
                answered=answered,
                silent_s=0.0 if answer else time.monotonic() - heard,
                ray_ended=None if retry else ray_ended,
                stopping_s=stop.for_s,
            )
            if ending is not None:
                return ending
            if answer and (ray is None or retry) and now - started_at > _RESTART_S:
                if ray_ended is not None:
                    say(facts, f"Ray did not start, trying again: {ray_ended}")
                ray, started_at = start_ray(facts), now
            time.sleep(2 * POLL_S)
    finally:
        if ray is not None:
            ray.stop()


# Both


def start_ray(facts: HostFacts) -> RayProcess:
    """Start Ray on this host."""
    limit = os.environ.get(OBJECT_STORE_VARIABLE)
    store = object_store_bytes(
        memory=psutil.virtual_memory().total,
        shared_memory=psutil.disk_usage("/dev/shm").free,
        limit=int(limit) if limit else None,
    )
    command = ray_start(facts, node_ip=own_ip(facts), object_store_bytes=store)
    environment = {
        # What the job's environment says of them wins.
        **{name: os.environ.get(name, facts.network_interface) for name in _INTERFACE_VARIABLES},
        **cuda_compatibility(),
        **ray_environment(code=str(CODE), token_file=str(TOKEN_PATH), python_path=os.environ.get("PYTHONPATH", "")),
    }
    log = ML / "output/data/ray_start.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return RayProcess(command, environment, log)


def own_ip(facts: HostFacts) -> str:
    """This host's address on the network of the job.

    Raises:
        HostError: There is no such interface.
    """
    for address in psutil.net_if_addrs().get(facts.network_interface, ()):
        if address.family is socket.AF_INET:
            return str(address.address)
    raise HostError(f"{facts.name} has no IPv4 address on {facts.network_interface!r}")
