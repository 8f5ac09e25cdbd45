"""Starting the service as a child process, for a trainer that brings its own. Loads neither FastAPI nor uvicorn."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from reward_service.errors import ServiceStartError
from reward_service.settings import ServiceSettings

_ANNOUNCEMENT = b"reward service at "
_POLL_S = 0.02
_LOG_TAIL_BYTES = 2000


class RunningService:
    """A service that runs as a child process. Ends with `stop`, with the `with` block, or with this process."""

    def __init__(self, *, url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self.url = url
        self.process = process
        self.log_path = log_path

    def stop(self, timeout_s: float = 10.0) -> None:
        """Asks it to end what it has accepted. Safe to call twice.

        Args:
            timeout_s: After so long it is killed.
        """
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_in_subprocess(
    settings: ServiceSettings | None = None, *, log_path: Path | str, timeout_s: float = 30.0
) -> RunningService:
    """Starts the service and waits until it is ready to score.

    The service ends when this process ends, however that comes about. A Ctrl-C on the terminal does not reach it, so
    that a trainer can end in order.

    Args:
        settings: None: the defaults, on a free loopback port.
        log_path: the file to which its output is appended.
        timeout_s: time it has to get ready.

    Returns:
        The running service, with its URL; a context manager that stops it.

    Raises:
        ServiceStartError: it ended or is not ready in time; the message has the end of the log.
    """
    service, wait = begin_in_subprocess(settings, log_path=log_path, timeout_s=timeout_s)
    try:
        wait()
    except BaseException:
        service.stop(timeout_s=1.0)
        raise
    return service


def begin_in_subprocess(
    settings: ServiceSettings | None = None, *, log_path: Path | str, timeout_s: float = 30.0
) -> tuple[RunningService, Callable[[], None]]:
    """As `start_in_subprocess`, for who may have to break the start off: `stop` of the service ends the wait too.

    Returns:
        The service, whose URL is not known yet, and what waits until it is and the service is ready; that may be called
        in another thread, and raises ServiceStartError.
    """
    settings = ServiceSettings(port=0) if settings is None else settings
    log_path = Path(log_path)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "reward_service", "--settings", "-", "--parent-pid", str(os.getpid())]
    deadline = time.monotonic() + timeout_s
    with log_path.open("ab") as log:
        offset = log.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=_environment(), start_new_session=True
        )
    service = RunningService(url="", process=process, log_path=log_path)

    def wait() -> None:
        try:
            assert process.stdin is not None
            with process.stdin as stdin:
                stdin.write(settings.model_dump_json().encode())
        except BrokenPipeError:
            raise ServiceStartError(f"the reward service ended at once; {_log_tail(log_path, offset)}") from None
        service.url = _wait_for_url(service, offset, deadline)
        _wait_until_ready(service, offset, deadline)

    return service, wait


def _environment() -> dict[str, str]:
    """A copy: the process's own is moved in memory when another thread sets a variable, as Ray's start does, and a
    process that is begun just then fails with "Bad address"."""
    return {name: value for name in list(os.environ) if (value := os.environ.get(name)) is not None}


def _wait_for_url(service: RunningService, offset: int, deadline: float) -> str:
    while True:
        with service.log_path.open("rb") as log:
            log.seek(offset)
            for line in log:
                if line.startswith(_ANNOUNCEMENT) and line.endswith(b"\n"):
                    return line[len(_ANNOUNCEMENT) :].decode().strip()
        _check(service, offset, deadline)


def _wait_until_ready(service: RunningService, offset: int, deadline: float) -> None:
    with httpx.Client(trust_env=False, verify=False) as client:  # a child of ours, whose certificate is for others
        while True:
            try:
                if client.get(f"{service.url}/readyz", timeout=max(_POLL_S, deadline - time.monotonic())).is_success:
                    return
            except httpx.TransportError:
                pass  # asked again until the deadline, which then says so
            _check(service, offset, deadline)


def _check(service: RunningService, offset: int, deadline: float) -> None:
    """Waits a little; raises if the child is gone or the deadline is past."""
    exit_code = service.process.poll()
    if exit_code is not None:
        tail = _log_tail(service.log_path, offset)
        raise ServiceStartError(f"the reward service ended with exit code {exit_code}; {tail}")
    if time.monotonic() > deadline:
        raise ServiceStartError(f"the reward service did not get ready in time; {_log_tail(service.log_path, offset)}")
    time.sleep(_POLL_S)


def _log_tail(log_path: Path, offset: int) -> str:
    with log_path.open("rb") as log:
        log.seek(0, os.SEEK_END)
        log.seek(max(offset, log.tell() - _LOG_TAIL_BYTES))
        tail = log.read().decode(errors="replace").strip()
    return f"the end of {log_path}: {tail or '(empty)'}"
