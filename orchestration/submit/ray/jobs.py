"""Ray's job interface, with a limit on every call and its errors in words. Imports ray's job client, not its core.

Used by every place that has a Ray dashboard: this machine, a cluster, the hosts of a training job. Calls go straight to
the dashboard, past the proxies of the environment, and to no other host: the cluster's token goes with them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from orchestration.concurrency import within
from orchestration.errors import SubmitError, UnreachableError, one_line
from orchestration.extras import require
from orchestration.submit.common.follow import GIVE_UP_S, follow
from orchestration.submit.common.job import JobState, JobStatus

DASHBOARD_PORT = 8265
"""Ray's own choice, where it is free."""
RUN_FILE = "run.yaml"
"""The run's settings, in the job's working directory."""

_SILENT_S = 60.0
"""A stream that brings nothing for so long may be one that nobody is at the other end of."""
_FRUITLESS_STREAMS = 2
"""After so many that brought nothing the log is asked for instead: there are proxies that let no stream through."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """How a dashboard is reached."""

    address: str
    """http(s)://HOST:PORT, or a scheme that a package of the cluster's vendor resolves."""
    token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    timeout_s: float = 30.0
    use_proxy: bool = False
    """Through the proxies that the environment names."""
    give_up_s: float = GIVE_UP_S
    """A log is followed over so long a silence."""


def entrypoint(config_path: str = RUN_FILE, *, python: str = "python") -> str:
    """The job's shell command."""
    return shlex.join([python, "-m", "orchestration.cli", "train", config_path])


class RayJobs:
    """The jobs of one cluster. Every method raises SubmitError, in one sentence with the remedy."""

    def __init__(self, endpoint: Endpoint) -> None:
        require("ray", by="a Ray job", extra="ray", package="ray[default]")
        self._endpoint = endpoint

    @cached_property
    def _client(self) -> Any:
        with self._explained():
            return _timed_client(self._endpoint)

    def connect(self) -> None:
        """Ask whether the dashboard is there, which else the first call does."""
        assert self._client is not None

    def submit(
        self, *, name: str, command: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Send a command of the cluster's shell as a job, which is found again by its name.

        A folder of this machine that is the `working_dir` is uploaded; the dashboard shows the metadata.
        """
        with self._explained(name):
            self._client.submit_job(
                entrypoint=command, submission_id=name, runtime_env=dict(runtime_env), metadata=dict(metadata or {})
            )

    def status(self, name: str) -> JobStatus:
        with self._explained(name):
            info = self._client.get_job_info(name)
        state, code = JobState(str(info.status.value).lower()), info.driver_exit_code
        return JobStatus(state=state, message=one_line(info.message or ""), exit_code=code)

    def unfinished(self) -> list[str]:
        """Names of the submitted jobs that have not ended."""
        with self._explained():
            jobs = self._client.list_jobs()
        return [
            job.submission_id for job in jobs if job.submission_id and not JobState(str(job.status.value).lower()).ended
        ]

    def log(self, name: str) -> str:
        """All that the job printed so far."""
        with self._explained(name):
            return str(self._client.get_job_logs(name))

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """What the job printed, in pieces; with `follow` until it ends, over as many connections as that takes."""
        return _Followed(self, name).pieces(self._endpoint.give_up_s) if follow else iter([self.log(name)])

    def stream(self, name: str) -> Iterator[str]:
        """The log from its beginning on, until the connection ends or brings nothing for a while."""
        pieces = self._client.tail_job_logs(name)
        with asyncio.Runner() as runner, self._explained(name):
            try:
                while True:
                    try:
                        yield runner.run(within(_SILENT_S, anext(pieces)))
                    except (StopAsyncIteration, TimeoutError):
                        return
                    except asyncio.CancelledError:  # a Ctrl-C that came as the runner was being set up
                        raise KeyboardInterrupt from None
            finally:
                with suppress(RuntimeError):
                    runner.run(pieces.aclose())

    def stop(self, name: str) -> None:
        """Ask it to end: it gets SIGTERM and has RAY_JOB_STOP_WAIT_TIME_S of its environment before SIGKILL."""
        with self._explained(name):
            self._client.stop_job(name)

    def check_version(self) -> str:
        """The cluster's version of Ray.

        Raises:
            SubmitError: Our code does not run on it.
        """
        with self._explained():
            version = str(self._client._do_request("GET", "/api/version").json()["ray_version"])
        wanted = _supported_ray()
        if not wanted.specifier.contains(Version(version), prereleases=True):
            raise SubmitError(
                f"the cluster at {self._endpoint.address} runs Ray {version}, and this needs {wanted}: "
                f"give the cluster a newer Ray"
            )
        return version

    def nodes(self) -> list[dict[str, float]]:
        """What each living node has in all: CPU, GPU and the resources of its operator."""
        answer = self._get("/api/v0/nodes?limit=10000&detail=1")
        rows: Sequence[Mapping[str, Any]] = answer["data"]["result"]["result"]
        return [dict(row["resources_total"]) for row in rows if row["state"] == "ALIVE"]

    @property
    def address(self) -> str:
        return self._endpoint.address

    def details(self) -> list[dict[str, Any]]:
        """All jobs as the jobs page has them, drivers that nobody submitted too: `submission_id`, `job_id`, `status`,
        `message`, `metadata`, `start_time` and `end_time` in milliseconds."""
        return list(self._get("/api/jobs/"))

    def actor_texts(self, job_id: str | None) -> list[str]:
        """What the actors page says of each living actor of a job, by its driver's number."""
        actors = self._get("/logical/actors")["data"]["actors"].values()
        alive = [actor for actor in actors if actor.get("state") == "ALIVE" and actor.get("jobId") == job_id]
        return sorted(str(actor.get("reprName") or actor.get("className")) for actor in alive)

    def _get(self, path: str) -> Any:
        with self._explained():
            answer = self._client._do_request("GET", path)
            answer.raise_for_status()
            return answer.json()

    def metric_targets(self) -> list[str]:
        """`host:port` of every living node's metrics."""
        nodes = [node["raylet"] for node in self._get("/nodes?view=summary")["data"]["summary"]]
        return [f"{n['nodeManagerAddress']}:{n['metricsExportPort']}" for n in nodes if n["state"] == "ALIVE"]

    @contextmanager
    def _explained(self, job: str | None = None) -> Iterator[None]:
        """Turns what ray, requests and aiohttp raise into SubmitError."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        address = self._endpoint.address
        try:
            try:
                yield
            except ConnectionError as error:  # Ray's own does not say why: what it met does
                why = error.__context__
                raise why if isinstance(why, requests.exceptions.RequestException) else error from None
        except AuthenticationError as error:
            given = "the token it was given" if self._endpoint.token else "a call without a token"
            raise SubmitError(
                f"the Ray cluster at {address} refused {given}; set ray.token_file to a file with its token"
            ) from error
        except (requests.exceptions.SSLError, ssl.SSLError) as error:
            raise SubmitError(
                f"the certificate of {address} is not trusted ({one_line(error)}); set ray.ca_file to its authority"
            ) from error
        except (requests.exceptions.Timeout, TimeoutError) as error:
            raise UnreachableError(
                f"the Ray dashboard at {address} did not answer within {self._endpoint.timeout_s:g} s; raise "
                f"ray.timeout_s, or look after the cluster"
            ) from error
        except (ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError) as error:
            raise UnreachableError(
                f"no Ray dashboard answers at {address} ({one_line(error)}); is the cluster up, and its address "
                f"http(s)://HOST:8265?"
            ) from error
        except (RuntimeError, ValueError, KeyError) as error:
            text = one_line(error)
            if job is not None and ("does not exist" in text or "status code 404" in text):
                raise SubmitError(f"the Ray cluster at {address} knows no job {job!r}; was it restarted?") from error
            if "already" in text and "submission_id" in text:
                raise SubmitError(f"the Ray cluster at {address} has a job {job!r}; choose another job.name") from error
            if "WebSocket" in text or "status code 5" in text:  # cut, or said by what stands before the dashboard
                raise UnreachableError(f"{address} broke off: {text}") from error
            raise SubmitError(f"the Ray cluster at {address} refused: {text}") from error


class _Followed:
    """A job's log, of which no character comes twice, however often it is asked for from its beginning."""

    def __init__(self, jobs: RayJobs, name: str) -> None:
        self._jobs, self._name = jobs, name
        self._printed = self._fruitless = 0

    def pieces(self, give_up_s: float) -> Iterator[str]:
        return follow(lambda: self._jobs.status(self._name).state.ended, self._news, give_up_s=give_up_s)

    def _news(self, *, over: bool) -> Iterator[str]:
        streams, seen = not over and self._fruitless < _FRUITLESS_STREAMS, 0
        self._fruitless += streams
        for piece in self._jobs.stream(self._name) if streams else [self._jobs.log(self._name)]:
            news = piece[max(0, self._printed - seen) :]
            seen += len(piece)
            self._printed = max(self._printed, seen)
            if news:
                self._fruitless = 0 if streams else self._fruitless
                yield news


def _timed_client(endpoint: Endpoint) -> Any:
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class TimedClient(JobSubmissionClient):  # type: ignore[misc]  # untyped
        """Ray's own waits for ever, follows redirections, and obeys the proxies and the .netrc of this machine."""

        def _do_request(
            self, method: str, path: str, *, data: bytes | None = None, json_data: Any = None, **options: Any
        ) -> Any:
            with requests.Session() as http:
                http.trust_env = endpoint.use_proxy
                answer = http.request(
                    method,
                    self._address + path,
                    data=data,
                    json=json_data,
                    headers=self._headers,
                    cookies=self._cookies,
                    verify=self._verify,
                    **{"timeout": endpoint.timeout_s, **options},
                    allow_redirects=False,
                )
            if answer.status_code in (401, 403):
                raise AuthenticationError(answer.text)
            if answer.is_redirect:
                raise ValueError(f"it sends on to {answer.headers['location']}; give the dashboard's own address")
            return answer

    # They log every request.
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.WARNING)
    headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else None
    authority = endpoint.ca_file or os.environ.get("REQUESTS_CA_BUNDLE")
    return TimedClient(endpoint.address, headers=headers, verify=True if authority is None else str(authority))


def _supported_ray() -> Requirement:
    """Our own requirement of Ray, from the distribution's metadata."""
    requirements = (Requirement(line) for line in metadata.requires("rlvr") or ())
    return next(requirement for requirement in requirements if requirement.name == "ray")
