"""What runs on every host of a SageMaker training job: a Ray cluster of all hosts, and the run as a job in it.

The head starts Ray, waits for the workers, submits the run, relays its log and tells the workers how it ended. A worker
joins, and waits for the head's word, for SIGTERM and for the head's silence. All hosts leave with the same exit code,
and those that fail with the reason in the failure file. Only the head writes checkpoints and the model.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

import psutil

from orchestration.errors import SubmitError
from orchestration.run.folder import ADAPTER_FOLDER, CONFIG_FILE, SUMMARY_FILE, read_status
from orchestration.submit.common.job import JobState
from orchestration.submit.ray.jobs import DASHBOARD_PORT, RUN_FILE, Endpoint, RayJobs, entrypoint
from orchestration.submit.sagemaker.host import places
from orchestration.submit.sagemaker.host.facts import (
    EXIT_FAILED,
    EXIT_STOPPED,
    NOTICE_PORT,
    POLL_S,
    STOP_JOB_S,
    Ending,
    HostError,
    HostFacts,
    Notice,
    Phase,
    WorkerView,
    failure_text,
    host_facts,
    missing,
    object_store_bytes,
    ray_environment,
    ray_start,
    run_failure,
    worker_ending,
)
from orchestration.submit.sagemaker.host.notice import NoticeBoard, ask, asking
from orchestration.submit.sagemaker.host.ray_process import JobLog, RayProcess

ML = Path(places.ML)
CODE = Path(places.CHANNELS_FOLDER / "code")
TOKEN_PATH = Path(places.CHANNELS_FOLDER / places.AUTH / places.TOKEN_FILE)
RUN_CONFIG = Path(places.CHANNELS_FOLDER / places.CONFIG / RUN_FILE)
RUN_FOLDER = Path(places.RUN_FOLDER)
OBJECT_STORE_VARIABLE = "RLVR_OBJECT_STORE_BYTES"
"""Upper bound of this host's object store, bytes."""

_TELL_WORKERS_S = 15.0
_CALL_TIMEOUT_S = 15.0
_DASHBOARD_SILENT_S = 120.0
_RESTART_S = 3.0


def main() -> int:
    """Returns this host's exit status; the reason of a failure is in the failure file."""
    stop = _Stop()
    try:
        facts = host_facts(
            json.loads((ML / "input/config/resourceconfig.json").read_bytes()),
            json.loads(os.environ["SM_DISTRIBUTED_CONFIG"]),
            job_name=os.environ["TRAINING_JOB_NAME"],
        )
        token = TOKEN_PATH.read_text(encoding="utf-8").strip()
        say(facts, f"{'head' if facts.is_head else f'worker of {facts.head}'}, {len(facts.hosts)} hosts in all")
        ending = run_head(facts, token, stop) if facts.is_head else run_worker(facts, token, stop)
    except HostError as error:
        ending = Ending(exit_code=EXIT_FAILED, reason=str(error))
    except Exception as error:  # nobody above would write the reason where SageMaker looks for it
        traceback.print_exc()
        ending = Ending(exit_code=EXIT_FAILED, reason=f"{type(error).__name__}: {error}")
    if ending.reason:
        text = failure_text(ending.reason)
        print(f"{os.environ.get('SM_CURRENT_HOST', 'this host')} leaves: {text}", flush=True)
        (ML / "output/failure").write_text(text, encoding="utf-8")
    return ending.exit_code


class _Stop:
    """Since when this host has to stop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._at = 0.0
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        if not self._event.is_set():
            self._at = time.monotonic()
            self._event.set()

    @property
    def for_s(self) -> float | None:
        return time.monotonic() - self._at if self._event.is_set() else None

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it is set."""
        return self._event.wait(seconds)


def say(facts: HostFacts, message: str) -> None:
    """A line of the log, in the manner of the run's own."""
    print(f"{time.strftime('%H:%M:%S')} {facts.name}: {message}", flush=True)


# The head


def run_head(facts: HostFacts, token: str, stop: _Stop) -> Ending:
    """The whole life of the head, its workers' end included.

    Args:
        token: the cluster's.
        stop: set by SIGTERM.

    Returns:
        How this host leaves; the workers have been told.
    """
    with ExitStack() as stack:
        board = stack.enter_context(NoticeBoard(own_ip(facts), token=token))
        try:
            ending = _head_ending(facts, token, stop, board, stack)
            if ending.exit_code != EXIT_FAILED:
                put_out(RUN_FOLDER, ML / "model")
        except (HostError, SubmitError, OSError) as error:
            ending = Ending(exit_code=EXIT_FAILED, reason=str(error))
        board.post(Notice(phase=Phase.ENDED, ending=ending))
        if untold := board.wait_until_told(facts.workers, timeout_s=_TELL_WORKERS_S):
            say(facts, f"did not ask how it ended: {', '.join(untold)}")
    return ending


def _head_ending(facts: HostFacts, token: str, stop: _Stop, board: NoticeBoard, stack: ExitStack) -> Ending:
    """Start Ray, which ends with `stack`: after the workers know how the run ended, and have left it."""
    if read_status(RUN_FOLDER) == "finished":  # an interruption came between the run's end and the job's
        say(facts, "the checkpoint folder holds a finished run: nothing to do")
        return Ending(exit_code=0)
    ray = start_ray(facts, head_ip=own_ip(facts))
    stack.callback(ray.stop)
    jobs = _all_joined(facts, ray, token, board, stop)
    if jobs is None:
        return Ending(exit_code=EXIT_STOPPED, reason="stopped before all hosts had joined")
    jobs.submit(name=facts.job_name, command=entrypoint(str(RUN_CONFIG), python=sys.executable), runtime_env={})
    say(facts, f"submitted the run as Ray job {facts.job_name}")
    return _followed(facts, ray, jobs, stop)


def _all_joined(facts: HostFacts, ray: RayProcess, token: str, board: NoticeBoard, stop: _Stop) -> RayJobs | None:
    """Wait for all hosts; None: stopped meanwhile. Raises HostError naming those that are missing in time."""
    endpoint = Endpoint(address=f"http://127.0.0.1:{DASHBOARD_PORT}", token=token, timeout_s=_CALL_TIMEOUT_S)
    deadline = time.monotonic() + facts.join_timeout_s
    jobs: RayJobs | None = None
    absent, trouble = facts.hosts, ""
    while not stop.wait(POLL_S):
        if (words := ray.ended()) is not None:
            raise HostError(f"Ray ended on the head, {facts.name}: {words}")
        before = absent
        try:
            jobs = jobs or RayJobs(endpoint)
            absent, trouble = missing(facts, jobs.nodes()), ""
        except SubmitError as error:  # it is starting
            trouble = str(error)
        if facts.name not in absent:
            board.post(Notice(phase=Phase.JOINABLE))
        if absent != before:
            say(facts, f"{len(facts.hosts) - len(absent)} of {len(facts.hosts)} hosts have joined")
        if not absent:
            return jobs
        if time.monotonic() > deadline:
            names = f"{', '.join(absent)} did not join Ray within {facts.join_timeout_s:g} s"
            raise HostError(f"{names}: {trouble}" if trouble else names)
    return None


def _followed(facts: HostFacts, ray: RayProcess, jobs: RayJobs, stop: _Stop) -> Ending:
    """Relay the run's log until it has ended; after SIGTERM ask it to stop."""
    log = JobLog(facts.job_name)
    asked_to_stop, answered = False, time.monotonic()
    while True:
        time.sleep(POLL_S)
        log.relay()
        stopping_s, trouble = stop.for_s, ""
        try:
            if stopping_s is not None and not asked_to_stop:
                say(facts, f"asked to stop: the run may save its state for {STOP_JOB_S:g} s")
                jobs.stop(facts.job_name)
                asked_to_stop = True
            status = jobs.status(facts.job_name)
            answered = time.monotonic()
            if status.state.ended:
                log.relay(all_of_it=True)
                return _run_ending(status.state, list(log.tail), status.message)
        except SubmitError as error:
            trouble = str(error)
        if stopping_s is not None and stopping_s > STOP_JOB_S + 5:
            return Ending(exit_code=EXIT_STOPPED, reason=f"stopped; the run had not ended after {STOP_JOB_S:g} s")
        if (words := ray.ended()) is not None:
            raise HostError(f"Ray ended on the head, {facts.name}, during the run: {words}")
        if time.monotonic() - answered > _DASHBOARD_SILENT_S:
            raise HostError(f"Ray's dashboard on {facts.name} stopped answering: {trouble}")


def _run_ending(state: JobState, tail: list[str], message: str) -> Ending:
    if state is JobState.SUCCEEDED:
        return Ending(exit_code=0)
    if state is JobState.STOPPED:
        return Ending(exit_code=EXIT_STOPPED, reason="stopped; a job with the same checkpoint folder goes on from here")
    return Ending(exit_code=EXIT_FAILED, reason=run_failure(tail, message))


def put_out(run_folder: Path, model_folder: Path) -> None:
    """Copy what SageMaker shall keep as the job's model: the adapter, the summary and the configuration."""
    model_folder.mkdir(parents=True, exist_ok=True)
    if (run_folder / ADAPTER_FOLDER).is_dir():
        shutil.copytree(run_folder / ADAPTER_FOLDER, model_folder / ADAPTER_FOLDER, dirs_exist_ok=True)
    for name in (SUMMARY_FILE, CONFIG_FILE):
        if (run_folder / name).is_file():
            shutil.copyfile(run_folder / name, model_folder / name)


# A worker


def run_worker(facts: HostFacts, token: str, stop: _Stop) -> Ending:
    """The whole life of a worker: join, and stay until there is a reason to leave. Arguments as of `run_head`."""
    began = heard = time.monotonic()
    ray: RayProcess | None = None
    ray_ended: str | None = None
    notice: Notice | None = None
    started_at = 0.0
    http = asking()
    try:
        while True:
            now = time.monotonic()
            ray_ended = ray.ended() if ray is not None else None
            head_ip = _address_of(facts.head)
            answer = head_ip and ask(http, f"http://{head_ip}:{NOTICE_PORT}/", host=facts.name, token=token)
            if answer:
                notice, heard = answer, time.monotonic()
            retry = ray_ended is not None and now - began < facts.join_timeout_s
            view = WorkerView(
                notice=notice,
                silent_s=0.0 if answer else time.monotonic() - heard,
                ray_ended=None if retry else ray_ended,
                stopping_s=stop.for_s,
            )
            if (ending := worker_ending(facts, view)) is not None:
                return ending
            if answer and answer.phase is Phase.JOINABLE and (ray is None or retry) and now - started_at > _RESTART_S:
                if ray_ended is not None:
                    say(facts, f"Ray did not start, trying again: {ray_ended}")
                ray, started_at = start_ray(facts, head_ip=str(head_ip)), now
            time.sleep(POLL_S)
    finally:
        http.close()
        if ray is not None:
            ray.stop()


# Both


def start_ray(facts: HostFacts, *, head_ip: str) -> RayProcess:
    """Start Ray on this host."""
    limit = os.environ.get(OBJECT_STORE_VARIABLE)
    store = object_store_bytes(
        memory=psutil.virtual_memory().total,
        shared_memory=psutil.disk_usage("/dev/shm").free,
        limit=int(limit) if limit else None,
    )
    command = ray_start(facts, node_ip=own_ip(facts), head_ip=head_ip, object_store_bytes=store)
    environment = {
        # What the job's environment says of them wins.
        **{
            name: os.environ.get(name, facts.network_interface) for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
        },
        **ray_environment(code=str(CODE), token_file=str(TOKEN_PATH), python_path=os.environ.get("PYTHONPATH", "")),
    }
    log = ML / "output/data/ray_start.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return RayProcess(command, environment, log)


def own_ip(facts: HostFacts) -> str:
    """This host's address on the network of the job.

    Raises HostError when there is no such interface.
    """
    for address in psutil.net_if_addrs().get(facts.network_interface, ()):
        if address.family is socket.AF_INET:
            return str(address.address)
    raise HostError(f"{facts.name} has no IPv4 address on {facts.network_interface!r}")


def _address_of(host: str) -> str | None:
    """None: its name is not known yet."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None
