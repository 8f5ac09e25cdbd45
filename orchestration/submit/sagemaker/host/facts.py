"""What a host of a training job is told, and what follows from it: pure functions of files and clocks.

Times are seconds. SageMaker kills what is left 120 s after SIGTERM; the limits of a stop add up to less.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestration.cluster.environment import NODE_ENVIRONMENT, with_token
from orchestration.errors import one_line
from orchestration.submit.common.job import JobState, JobStatus
from orchestration.submit.ray.jobs import DASHBOARD_PORT
from orchestration.submit.ray.process import last_words

GCS_PORT = 6379
AGENT_PORT = 8266
"""Of the head's agent of runtime environments. With an unnamed one Ray's client server, which every head has, ends when
the node has not registered within 30 s, and `ray start --block` ends the head with it."""
RAY_FOLDER = "/tmp/ray"  # Ray's own default; said aloud, as the job's log is read there
HEAD = "head"
"""A Ray resource that the head alone has."""
MAX_FAILURE_CHARS = 1024
"""SageMaker shows no more of a failure file."""

STOP_JOB_S = 80.0
"""After SIGTERM the run may finish its update and save a checkpoint for so long; then Ray kills it."""
STOPPED_WORKER_S = 110.0
"""After SIGTERM a worker stays so long for the head, whose run still needs it."""
HEAD_GONE_S = 120.0
"""A head whose dashboard does not answer for so long is gone."""
POLL_S = 1.0

EXIT_FAILED, EXIT_STOPPED = 1, 130

_OBJECT_STORE_SHARE = 0.1
_RAYS_LEAST_OBJECT_STORE = 75 * 2**20
_MIN_OBJECT_STORE, _MAX_OBJECT_STORE = 2**28, 2**34

GOES_ON = "stopped; a job with the same checkpoint folder goes on from here"


class HostError(Exception):
    """This host cannot go on; the message is the reason that SageMaker shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostFacts:
    """Who this host is, and who the others are."""

    job_name: str
    name: str
    hosts: tuple[str, ...]
    """All of the job, algo-2 before algo-10."""
    head: str
    role: str | None
    """`rollout`, `learner` or `reward` in a heterogeneous cluster: a Ray resource of this host."""
    network_interface: str
    join_timeout_s: float
    gpus: Mapping[str, int] = field(default_factory=dict)
    """What Ray must see on each host, by its name; hosts without GPUs are left out."""
    adapter: str = ""
    """Where SageMaker copies the run's adapter to."""

    @property
    def is_head(self) -> bool:
        return self.name == self.head

    @property
    def workers(self) -> tuple[str, ...]:
        return tuple(host for host in self.hosts if host != self.head)


def by_number(hosts: Iterable[str]) -> tuple[str, ...]:
    """Host names in the order of their numbers; as text, algo-10 comes before algo-2."""
    return tuple(sorted(hosts, key=lambda host: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", host)]))


def host_facts(resources: Mapping[str, Any], settings: Mapping[str, Any], *, job_name: str) -> HostFacts:
    """Who this host is.

    Args:
        resources: SageMaker's `resourceconfig.json`.
        settings: `hosts.json`, which `container.host_settings` writes.
        job_name: As SageMaker has it.

    Raises:
        HostError: The settings name a group that the job does not have.
    """
    name, hosts = resources["current_host"], by_number(resources["hosts"])
    # A job of one instance type has a group as well, and then its name says nothing.
    groups = {g["instance_group_name"]: by_number(g["hosts"]) for g in resources.get("instance_groups") or ()}
    head_group = settings.get("head_group")
    if head_group and head_group not in groups:
        raise HostError(f"head_group={head_group!r} is no instance group of this job, which has {sorted(groups)}")
    role_of = {host: group for group, members in groups.items() for host in members} if head_group else {}
    gpus = {host: settings["gpus"].get(role_of.get(host, ""), 0) for host in hosts}
    return HostFacts(
        job_name=job_name,
        name=name,
        hosts=hosts,
        head=groups[head_group][0] if head_group else hosts[0],
        role=role_of.get(name),
        network_interface=resources.get("network_interface_name") or "eth0",
        join_timeout_s=float(settings["join_timeout_s"]),
        gpus={host: count for host, count in gpus.items() if count},
        adapter=settings["adapter"],
    )


def ray_start(facts: HostFacts, *, node_ip: str, object_store_bytes: int) -> list[str]:
    """The command that starts Ray on this host and stays until it ends. CPUs and GPUs are counted by Ray.

    Args:
        node_ip: this host's address on the network of the job.
    """
    marks = {facts.name: 1} | ({} if facts.role is None else {facts.role: 1}) | ({HEAD: 1} if facts.is_head else {})
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *(f"--node-name={facts.name}", f"--node-ip-address={node_ip}", f"--object-store-memory={object_store_bytes}"),
        f"--resources={json.dumps(marks)}",
    ]
    if not facts.is_head:
        return [*command, f"--address={facts.head}:{GCS_PORT}"]
    return [
        *(*command, "--head", f"--port={GCS_PORT}", f"--temp-dir={RAY_FOLDER}"),
        f"--runtime-env-agent-port={AGENT_PORT}",
        *("--include-dashboard=true", "--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD_PORT}"),
    ]


def ray_environment(*, code: str, token_file: str, python_path: str = "") -> dict[str, str]:
    """What Ray's processes on this host, and so the run and its actors, have in their environment: our packages before
    the image's `python_path`, and the file of the cluster's token."""
    return {
        **NODE_ENVIRONMENT,
        **with_token(Path(token_file)),
        "RAY_JOB_STOP_WAIT_TIME_S": f"{STOP_JOB_S:.0f}",
        "PYTHONPATH": f"{code}:{python_path}" if python_path else code,
        "PYTHONUNBUFFERED": "1",
    }


def object_store_bytes(*, memory: int, shared_memory: int, limit: int | None = None) -> int:
    """Size of a host's object store, which passes adapters and groups around: a tenth of the memory, within bounds.

    Args:
        memory: of the host, bytes.
        shared_memory: free in /dev/shm, bytes; what does not fit there would lie on the disk.
        limit: upper bound instead of ours.

    Raises:
        HostError: /dev/shm is smaller than the least that Ray takes.
    """
    most = _MAX_OBJECT_STORE if limit is None else limit
    wanted = min(max(int(memory * _OBJECT_STORE_SHARE), _MIN_OBJECT_STORE), most, int(shared_memory * 0.8))
    if wanted < _RAYS_LEAST_OBJECT_STORE:
        raise HostError(
            f"/dev/shm has {shared_memory / 2**20:.0f} MiB free, and Ray's object store needs "
            f"{_RAYS_LEAST_OBJECT_STORE / 0.8 / 2**20:.0f}: take a larger instance type"
        )
    return wanted


@dataclass(frozen=True, slots=True)
class Ending:
    """How a host leaves."""

    exit_code: int
    reason: str = ""
    """For the failure file; empty after success."""


def run_ending(status: JobStatus, lines: Sequence[str]) -> Ending:
    """How a host leaves whose run has ended, with these lines at the end of its log."""
    if status.state is JobState.SUCCEEDED:
        return Ending(0)
    if status.state is JobState.STOPPED:
        return Ending(EXIT_STOPPED, GOES_ON)
    return Ending(EXIT_FAILED, run_failure(lines, status.message))


def worker_ending(
    facts: HostFacts, *, answered: bool, silent_s: float, ray_ended: str | None, stopping_s: float
) -> Ending | None:
    """How a worker has to leave while the run goes on; None: it stays.

    Args:
        answered: The head has said how the run is, at least once.
        silent_s: Since it did, 0 if it was just now; without an answer, since this host's start.
        ray_ended: The last words of this host's Ray, if it ended and is not started again.
        stopping_s: Since SIGTERM, negative without one.
    """
    head = f"the head, {facts.head},"
    if not answered and stopping_s >= 0:
        return Ending(EXIT_STOPPED, f"{facts.name} was stopped before the head was up")
    if not answered and silent_s > facts.join_timeout_s:
        return Ending(EXIT_FAILED, f"{head} did not answer {facts.name} within {facts.join_timeout_s:g} s")
    if answered and silent_s > HEAD_GONE_S:
        return Ending(EXIT_FAILED, f"{head} is gone")
    if stopping_s > STOPPED_WORKER_S:
        return Ending(EXIT_STOPPED, f"{facts.name} was stopped, and {head} was not")
    # A worker's Ray ends soon after the head's. If the head has just said that it goes on, this one ended by itself.
    if ray_ended is not None and silent_s == 0:
        return Ending(EXIT_FAILED, f"Ray ended on {facts.name}: {ray_ended}")
    return None


def lacking_gpus(facts: HostFacts, nodes: Iterable[Mapping[str, float]]) -> str:
    """Hosts that Ray sees too few GPUs on, in words; empty when all have theirs."""
    seen = {name: int(node.get("GPU", 0)) for node in nodes for name in node if name in facts.gpus}
    words = [f"{host} has {seen.get(host, 0)} of {n} GPUs" for host, n in facts.gpus.items() if seen.get(host, 0) < n]
    return ", ".join(words)


def missing(facts: HostFacts, nodes: Iterable[Mapping[str, float]]) -> tuple[str, ...]:
    """Hosts that are not there yet, by the resources of the nodes that are: a host's name is one of its own."""
    there = {name for resources in nodes for name in resources}
    return tuple(host for host in facts.hosts if host not in there)


def run_failure(lines: Sequence[str], message: str) -> str:
    """Why a run failed: its own sentence, which `rlvr` prints last in its log; without one, it was killed or broke off,
    and Ray's message of the job has to do."""
    if (sentence := next((line for line in reversed(lines) if line.startswith("rlvr: ")), None)) is not None:
        return sentence.removeprefix("rlvr: ")
    said = message.partition(", last available logs")[0] or "the run failed"
    return f"{said}; its last line: {last_words(lines)}"


def failure_text(reason: str) -> str:
    """A failure file's content: one line, no longer than SageMaker shows."""
    return one_line(reason, MAX_FAILURE_CHARS)
