"""A Ray head on this machine that belongs to us: a process that holds it, and ends it when it has been idle.

    python -m orchestration.submit.ray.local_head FOLDER LINGER_S OBJECT_STORE_BYTES

FOLDER, which only its owner can read, has the cluster's token (`auth_token`), and `head.json` while the head runs.
The head's process holds the lock on `lock`: so no head is started twice, and none that is gone is taken for running.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock, Timeout

from orchestration.cluster.environment import NODE_ENVIRONMENT, ON_LOOPBACK, with_token
from orchestration.errors import MachineError, SubmitError
from orchestration.sockets import LOOPBACK, free_port, may_use_dashboard_port
from orchestration.storage.atomic import atomic_write
from orchestration.submit.ray.jobs import DASHBOARD_PORT, Endpoint, RayJobs
from orchestration.submit.ray.process import RayProcess

TOKEN_FILE, STATE_FILE, LOCK_FILE, LOG_FILE = "auth_token", "head.json", "lock", "head.log"

_FIRST_JOB_S = 60.0
_POLL_S = 2.0
_ANSWER_S = 10.0
_SILENT_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A running head."""

    pid: int
    """Of the process that holds it."""
    address: str
    """Its dashboard."""
    identity: str
    """Tells it from the heads before and after it at the same address."""


def find(folder: Path) -> Head | None:
    """The head that runs, if one does."""
    with suppress(OSError), (folder / LOCK_FILE).open("rb") as lock:
        try:  # shared, which `filelock` is not: who only looks must not pass for the holder
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(OSError, ValueError, TypeError):
                return Head(**json.loads((folder / STATE_FILE).read_bytes()))
    return None


def endpoint(folder: Path, head: Head) -> Endpoint:
    token = (folder / TOKEN_FILE).read_text().strip()
    return Endpoint(address=head.address, token=token, timeout_s=_ANSWER_S, give_up_s=3 * _ANSWER_S)


def ensure(
    folder: Path,
    *,
    linger_s: float,
    object_store_bytes: int,
    timeout_s: float,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Head:
    """The head that runs, or one that is started now and outlives this process.

    Args:
        folder: the head's own, with its token, its state, its lock and its log.
        linger_s: it ends when it had no unfinished job for so long.
        object_store_bytes: of a head that is started.
        timeout_s: limit on its start.
        environment: variables of its processes, beside those of this one.

    Raises:
        MachineError: the folder cannot be written, or the head does not get ready in time; with the end of its log.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        log = (folder / LOG_FILE).open("ab")
    except OSError as error:
        raise MachineError(f"{folder} cannot be written: {error.strerror}; set RLVR_STATE to another folder") from error
    if (head := find(folder)) is not None:
        log.close()
        return head
    words = (str(folder), str(linger_s), str(object_store_bytes))
    start = log.tell()
    with log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestration.submit.ray.local_head", *words],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C here is not meant for it
        )
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if (head := find(folder)) is not None:
                return head
            if process.poll():  # with 0 it left the start to another, which is under way
                break
            time.sleep(0.1)
    except KeyboardInterrupt:
        process.terminate()
        raise
    process.terminate()
    with (folder / LOG_FILE).open("rb") as file:
        file.seek(start)
        tail = " ".join(file.read().decode(errors="replace").split())[-400:]
    raise MachineError(
        f"Ray did not start here within {timeout_s:g} s: {tail or 'it said nothing'}; the whole log is in "
        f"{folder / LOG_FILE}"
    )


def hold(folder: Path, *, linger_s: float, object_store_bytes: int) -> None:
    """Start a head, and end it when it had no unfinished job for `linger_s` seconds, on SIGTERM, or when Ray ends.

    Returns at once when another process holds the head of this folder. Arguments as of `ensure`.
    """
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return  # another was quicker
    try:
        (folder / STATE_FILE).unlink(missing_ok=True)
        token_file = folder / TOKEN_FILE
        atomic_write(token_file, secrets.token_hex(32).encode(), private=True)
        port = free_port(DASHBOARD_PORT) if may_use_dashboard_port() else free_port()
        # A folder of its own: in a shared one a job joins the head that started last. Its path is short, for sockets.
        ray_folder = Path(tempfile.mkdtemp(prefix="rlvr-ray-"))
        ray = _start_ray(port, token_file, ray_folder, object_store_bytes)
        try:
            head = Head(pid=os.getpid(), address=f"http://{LOOPBACK}:{port}", identity=secrets.token_hex(8))
            jobs = RayJobs(endpoint(folder, head))
            _until_ready(ray, jobs)
            atomic_write(folder / STATE_FILE, json.dumps(asdict(head)).encode())
            _until_idle(ray, jobs, linger_s)
        finally:
            (folder / STATE_FILE).unlink(missing_ok=True)
            ray.stop()
            shutil.rmtree(ray_folder, ignore_errors=True)
    finally:
        lock.release()


def _start_ray(port: int, token_file: Path, ray_folder: Path, object_store_bytes: int) -> RayProcess:
    command = (
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        "--port=0",
        # Free ports for all else, too: another Ray on this machine has the usual ones.
        f"--ray-client-server-port={free_port()}",
        f"--runtime-env-agent-port={free_port()}",  # unnamed, a head that is slow to start ends after 30 s
        f"--dashboard-agent-listen-port={free_port()}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--node-ip-address={LOOPBACK}",
        f"--dashboard-host={LOOPBACK}",
        f"--dashboard-port={port}",
        f"--object-store-memory={object_store_bytes}",
        f"--temp-dir={ray_folder}",
        "--disable-usage-stats",
    )
    # What Ray starts, and with it every driver and actor, finds the programs of this interpreter first.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**NODE_ENVIRONMENT, **with_token(token_file), **ON_LOOPBACK, "PATH": path}
    return RayProcess(command, environment, token_file.with_name(LOG_FILE))


def _until_ready(ray: RayProcess, jobs: RayJobs) -> None:
    """Returns when the dashboard answers. How long that may take is the affair of whoever asked for the head."""
    while True:
        try:
            return jobs.connect()
        except SubmitError:
            if ray.ended() is not None:
                raise
            time.sleep(0.3)


def _until_idle(ray: RayProcess, jobs: RayJobs, linger_s: float) -> None:
    # Whoever started it is about to send a job, which takes a busy machine long.
    busy_at = time.monotonic() + _FIRST_JOB_S
    while ray.ended() is None:
        idle_s = time.monotonic() - busy_at
        try:
            if jobs.unfinished():
                busy_at = time.monotonic()
            elif idle_s > linger_s:
                return
        except SubmitError:  # that nobody answers on a busy machine says nothing of its jobs
            if idle_s > linger_s + _SILENT_S:
                return
        time.sleep(_POLL_S)


def _on_sigterm(_number: int, _frame: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _on_sigterm)
    hold(Path(sys.argv[1]), linger_s=float(sys.argv[2]), object_store_bytes=int(sys.argv[3]))
