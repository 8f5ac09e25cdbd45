"""The head's Ray as the hosts ask it: who has joined, and how the run is, which the workers go by."""

from __future__ import annotations

import shlex
import time

from orchestration.errors import SubmitError, UnreachableError
from orchestration.submit.common.job import JobState, JobStatus
from orchestration.submit.ray.jobs import DASHBOARD_PORT, Endpoint, RayJobs
from orchestration.submit.sagemaker.host.facts import POLL_S, Ending, HostFacts, missing, run_ending

_TIMEOUT_S = 15.0


class HeadRay:
    """Asked over its dashboard, by the head and by the workers."""

    def __init__(self, facts: HostFacts, token: str, address: str = "127.0.0.1") -> None:
        self._facts, self._submitted = facts, False
        self._jobs: RayJobs | None = None
        self._endpoint = Endpoint(address=f"http://{address}:{DASHBOARD_PORT}", token=token, timeout_s=_TIMEOUT_S)

    @property
    def ray(self) -> RayJobs:
        """Raises SubmitError while it does not answer."""
        self._jobs = self._jobs or RayJobs(self._endpoint)
        return self._jobs

    def submit(self, command: str) -> None:
        self._submitted = True
        self.ray.submit(name=self._facts.job_name, command=command, runtime_env={})

    def tell(self, reason: str) -> None:
        """In place of a run that does not come: a job that says why, and fails."""
        if not self._submitted and self._jobs is not None and self._facts.workers:
            try:
                self.submit(shlex.join(["sh", "-c", f"echo {shlex.quote(f'rlvr: {reason}')}; exit 1"]))
            except SubmitError as error:
                print(f"the workers are not told: {error}", flush=True)

    def wait_for_workers_to_leave(self, *, timeout_s: float) -> tuple[str, ...]:
        """Those that are still there after `timeout_s`."""
        deadline, there = time.monotonic() + timeout_s, self._facts.workers
        while there and self._jobs is not None and time.monotonic() < deadline:
            try:
                absent = missing(self._facts, self._jobs.nodes())
            except SubmitError:
                break
            there = tuple(host for host in self._facts.workers if host not in absent)
            time.sleep(POLL_S / 2)
        return there

    def status(self) -> JobStatus | None:
        """The run's; pending while there is none, and None when the head does not answer."""
        try:
            ray = self.ray
        except SubmitError:
            return None
        try:
            return ray.status(self._facts.job_name)
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
        return Ending(exit_code=ending.exit_code, reason=told)
