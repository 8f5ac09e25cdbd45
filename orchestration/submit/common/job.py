"""What is submitted, what is known of it afterwards, and what every place must be able to do with it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import yaml

from orchestration.errors import ConfigError
from orchestration.settings.config import RunConfig
from orchestration.submit.common.package import CodePackage

Say = Callable[[str], None]
"""Told, in one line, what is going on."""
Record = Callable[[Mapping[str, str]], None]
"""Told a job's reference."""


class JobState(StrEnum):
    """Where a job is in its life."""

    PENDING = "pending"
    """Taken, not running yet: waiting for hosts, or for the cluster."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    """By a person."""
    UNKNOWN = "unknown"
    """Its place did not answer, or knows it no more."""

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED)

    @property
    def over(self) -> bool:
        """Whether nothing more is to come: it has ended, or its place knows it no more."""
        return self.ended or self is JobState.UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStatus:
    """A job's state, and why."""

    state: JobState
    message: str = ""
    exit_code: int | None = None
    """Of the job's own process, where the place tells it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """One run, ready to be sent somewhere; the same wherever it goes."""

    name: str
    """Small letters, digits and hyphens, at most `settings.MAX_NAME_CHARS`."""
    run: RunConfig
    """Resolved. Paths in it are those of the machine that submits: a backend makes them those of its place."""
    code: CodePackage
    environment: Mapping[str, str] = field(default_factory=dict)
    submission: str = field(default_factory=lambda: secrets.token_hex(6))
    """Tells this submission from all others, those of the same name too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What would be sent."""

    request: Mapping[str, Any]
    """The request as JSON, secrets left out; under `manifests` alone those that Kubernetes would be given."""
    notes: tuple[str, ...] = ()
    """What works, and may not be meant: a sentence each."""

    def text(self) -> str:
        """The same for a person, as YAML."""
        documents = self.request.get("manifests", [dict(self.request)])
        dumped = [yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True) for each in documents]
        return "---\n".join(dumped) + "".join(f"# {note}\n" for note in self.notes)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and what is there twice written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _as_block)


class Backend(Protocol):
    """A place that takes jobs. A `reference` is what it needs to find a job again, in strings; its `adapter` is where a
    finished run's adapter lies, s3://… or a path there."""

    def plan(self, job: JobSpec) -> Plan:
        """What `submit` would send. Needs no account, no credentials and no network.

        Raises ConfigError for everything that the place would refuse, or worse accept.
        """
        ...

    def submit(self, job: JobSpec, say: Say, record: Record = ...) -> dict[str, str]:
        """Send it; returns its reference, which `record` is told just before: a job whose sending is interrupted may be
        there. Raises ConfigError as `plan` does, SubmitError when the place refuses."""
        ...

    def status(self, reference: Mapping[str, str]) -> JobStatus:
        """Raises SubmitError when its place does not answer."""
        ...

    def logs(self, reference: Mapping[str, str], *, follow: bool) -> Iterator[str]:
        """What it printed so far, in pieces; with `follow` until it ends, unless nobody answers for minutes."""
        ...

    def stop(self, reference: Mapping[str, str]) -> None:
        """Ask it to save its state and end. A job that has ended already is left as it is."""
        ...

    def dashboard_hint(self, reference: Mapping[str, str]) -> str:
        """How its Ray dashboard is opened, in a sentence or a command."""
        ...


def unrecorded(_reference: Mapping[str, str]) -> None:
    """Tells nobody."""


def check_variables(job: JobSpec, secrets: Mapping[str, str], *, place: str) -> None:
    """Refuse variables that have two values, or that are the job's cluster's own.

    Args:
        job: With its environment.
        secrets: Variables that the place fills in itself.
        place: Its section of the settings.

    Raises:
        ConfigError: Naming the variable.
    """
    for name in (*job.environment, *secrets):
        where = "job.environment" if name in job.environment else f"{place}.secrets"
        if name in job.environment and name in secrets:
            raise ConfigError(f"{name} is in job.environment and in {place}.secrets; leave it out of one of them")
        if name.startswith("RAY_AUTH_"):
            raise ConfigError(f"{where} has {name}, which is made for the job's cluster; leave it out")


def job_name(recipe: str, *, now: time.struct_time | None = None) -> str:
    """`rlvr-gsm8k-20261121-172233-5f0c1a`, from a recipe's name; no other has it."""
    words = "".join(c if c.isascii() and c.isalnum() else "-" for c in recipe.lower()).strip("-")[:19].strip("-")
    return f"rlvr-{words or 'run'}-{time.strftime('%Y%m%d-%H%M%S', now or time.gmtime())}-{secrets.token_hex(3)}"
