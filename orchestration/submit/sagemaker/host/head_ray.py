"""The head's Ray as the hosts ask it: who has joined, and how the run is, which the workers go by; the run's log."""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from pathlib import Path

from orchestration.errors import SubmitError, UnreachableError
from orchestration.submit.common.job import JobState, JobStatus
from orchestration.submit.ray.jobs import DASHBOARD_PORT, Endpoint, RayJobs
from orchestration.submit.sagemaker.host.facts import POLL_S, RAY_FOLDER, Ending, HostFacts, missing, run_ending

_TIMEOUT_S = 15.0
_TAIL_LINES = 200


class HeadRay:
    """Asked over its dashboard, by the head and by the workers."""

    def __init__(self, facts: HostFacts, token: str) -> None:
        self._facts, self._submitted = facts, False
        address = "127.0.0.1" if facts.is_head else facts.head
        self.ray = RayJobs(Endpoint(address=f"http://{address}:{DASHBOARD_PORT}", token=token, timeout_s=_TIMEOUT_S))

    def submit(self, command: str) -> None:
        self._submitted = True
        self.ray.submit(name=self._facts.job_name, command=command, runtime_env={})

    def tell(self, reason: str) -> None:
        """In place of a run that does not come: a job that says why, and fails."""
        if not self._submitted and self._facts.workers:
            try:
                self.submit(shlex.join(["sh", "-c", f"echo {shlex.quote(f'rlvr: {reason}')}; exit 1"]))
            except SubmitError as error:
                print(f"the workers are not told: {error}", flush=True)

    def wait_for_workers_to_leave(self, *, timeout_s: float) -> tuple[str, ...]:
        """Those that are still there after `timeout_s`."""
        deadline, there = time.monotonic() + timeout_s, self._facts.workers
        while there and time.monotonic() < deadline:
            try:
                absent = missing(self._facts, self.ray.nodes())
            except SubmitError:
                break
            there = tuple(host for host in self._facts.workers if host not in absent)
            time.sleep(POLL_S / 2)
        return there

    def status(self) -> JobStatus | None:
        """The run's; pending while there is none, and None when the head does not answer."""
        try:
            return self.ray.status(self._facts.job_name)
        except UnreachableError:
            return None
        except SubmitError:
            return JobStatus(state=JobState.PENDING)

    def ending(self, status: JobStatus) -> Ending:
        """A worker's, whose head's run has ended."""
        try:
            lines = self.ray.log(self._facts.job_name).splitlines()
        except SubmitError:
            lines = []
        ending = run_ending(status, lines)
        told = f"the head, {self._facts.head}, ended: {ending.reason}" if ending.reason else ""
        return Ending(ending.exit_code, told)


class JobLog:
    """The log of a Ray job on this host, passed on line by line as it grows."""

    def __init__(self, job: str) -> None:
        self._path = Path(RAY_FOLDER) / "session_latest" / "logs" / f"job-driver-{job}.log"
        self._position, self._partial = 0, b""
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def relay(self, *, all_of_it: bool = False) -> None:
        """Print the lines that are new; with `all_of_it` a last one without its end, too."""
        try:
            with self._path.open("rb") as log:
                log.seek(self._position)
                news = log.read()
        except FileNotFoundError:
            return
        self._position += len(news)
        *lines, self._partial = (self._partial + news).split(b"\n")
        if all_of_it and self._partial:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            text = line.decode(errors="replace")
            self.tail.append(text)
            sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
