"""The process that holds an environment of `verifiers`: its Python, its start and its end.

Its library wants other versions of what vLLM needs, so it runs in packages of its own: those of a Python that is named,
or ones that are installed once into the cache, behind nothing of ours.
"""

from __future__ import annotations

import functools
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
from filelock import FileLock, Timeout

from orchestration.environments.tools.tool import Schema
from orchestration.errors import ConfigError, one_line
from orchestration.storage.cache import cache_root, settings_hash

NEEDS = ("verifiers==0.4.0", "uv>=0.9")
"""uv is what verifiers sets up the programs of other harnesses with."""

_SCRIPT = Path(__file__).parent / "hosted" / "rlvr_host.py"
_INSTALL_S = 1800.0
_START_S = 300.0
_ASKED_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """An environment by name, and what it runs with."""

    environment: str
    config: str
    """Its own settings, as JSON."""
    python: str | None
    packages: tuple[str, ...]


@dataclass(slots=True)
class HostProcess:
    """One that is up."""

    url: str
    tools: list[Schema]
    """What the model may call, as the first task's first request says."""
    _process: subprocess.Popen[str]
    """Its standard input is its life: closed with this process, however that ends."""
    _tasks: list[Mapping[str, Any]] = field(default_factory=list)

    def tasks(self, count: int) -> Sequence[Mapping[str, Any]]:
        """The first so many tasks of the environment, fewer where it has fewer."""
        if len(self._tasks) < count:
            self._tasks = _asked(self.url, "GET", f"/tasks?count={count}")["tasks"]
        return self._tasks[:count]


@functools.cache
def host_process(held: Held) -> HostProcess:
    """The process that holds an environment, started if there is none. Its first task is begun once and let go, so that
    what is wrong with an environment is said before anything else starts.

    Raises:
        ConfigError: there is no such environment, or it does not begin; with what it says.
    """
    name = f"data.environment_id={held.environment!r}"
    with tempfile.TemporaryFile("w+") as errors:
        process = _started(held, errors)
        assert process.stdout is not None
        ready = select.select([process.stdout], [], [], _START_S)[0]
        line = process.stdout.readline() if ready else ""
        if not line:
            process.kill()
            why = _last_words(errors) if ready else f"it took longer than {_START_S:g} s"
            raise ConfigError(f"{name}: verifiers does not start: {why}")
    said = json.loads(line)
    if "error" in said:
        raise ConfigError(f"{name} cannot be loaded by verifiers: {one_line(said['error'])}")
    host = HostProcess(f"http://127.0.0.1:{said['port']}", [], process)
    try:
        host.tools = _tools(host)
    except (httpx.HTTPError, RuntimeError) as error:
        process.kill()
        raise ConfigError(f"{name} does not begin its first task: {one_line(error)}") from error
    return host


def _tools(host: HostProcess) -> list[Schema]:
    if not host.tasks(1):
        raise RuntimeError("it has no tasks")
    first = _asked(host.url, "POST", "/episodes", {"task": 0})
    _asked(host.url, "DELETE", f"/episodes/{first['episode']}")
    if "error" in first:
        raise RuntimeError(first["error"])
    return list(first.get("tools", []))


def _asked(url: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    with httpx.Client(trust_env=False, timeout=_ASKED_S) as client:
        return client.request(method, url + path, json=body).raise_for_status().json()


def _started(held: Held, errors: IO[str]) -> subprocess.Popen[str]:
    python, places = _python(held)
    paths = [*places, os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    bins = os.pathsep.join([*(f"{place}/bin" for place in places), os.environ.get("PATH", "")])
    config: dict[str, Any] = json.loads(held.config)
    config["taskset"] = {**config.get("taskset", {}), "id": held.environment}
    try:
        return subprocess.Popen(
            [python, str(_SCRIPT), json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the run, which ends episodes in order
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PATH": bins} | _no_proxies(),
        )
    except OSError as error:
        raise ConfigError(f"data.python={python!r} cannot be started: {error.strerror}") from error


def _no_proxies() -> dict[str, str]:
    """What it asks of the model stays on this machine."""
    known = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    without = ",".join(filter(None, (known, "127.0.0.1", "localhost")))
    return {"NO_PROXY": without, "no_proxy": without}


def _python(held: Held) -> tuple[str, list[str]]:
    """The interpreter, and folders of packages that go before its own."""
    if held.python is not None:
        return held.python, []
    return sys.executable, [str(packages_of(held.packages))]


def packages_of(packages: Sequence[str]) -> Path:
    """The folder with verifiers and these packages, installed if need be.

    Raises:
        ConfigError: That fails.
    """
    wanted = (*NEEDS, *packages)
    folder = cache_root() / "verifiers" / settings_hash(wanted, sys.version_info[:2])
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", timeout=_INSTALL_S):
            if not folder.exists():
                with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
                    _install(Path(beside) / "made", wanted)
                    (Path(beside) / "made").rename(folder)
    except Timeout:
        raise ConfigError(f"another process has held {folder}.lock for {_INSTALL_S:g} s; end it") from None
    return folder


def _install(folder: Path, wanted: Sequence[str]) -> None:
    print(f"rlvr: installing {', '.join(wanted)} into a folder of their own, once: some minutes", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    try:
        done = subprocess.run(
            [*command, "--target", str(folder), *wanted],
            capture_output=True,
            text=True,
            timeout=_INSTALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        why = f"pip took longer than {_INSTALL_S:g} s"
    else:
        if done.returncode == 0:
            return
        why = next((line for line in done.stderr.splitlines() if line.startswith("ERROR:")), "pip said nothing")
    raise ConfigError(
        f"verifiers cannot be installed: {one_line(why)}; name a Python that has it, and the environment, with "
        f"data.python"
    )


def _last_words(errors: IO[str]) -> str:
    errors.seek(0)
    lines = errors.read().strip().splitlines()
    return one_line(lines[-1]) if lines else "it said nothing"
