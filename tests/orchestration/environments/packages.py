"""Where other people's packages are, for tests: kept in the cache, installed without what they depend on."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestration.environments.foreign.verifiers_process import packages_of
from orchestration.errors import ConfigError
from orchestration.sockets import free_port
from tests.reward_service.clients.callers.installed import installed
from tests.waiting import until

_OPENENV = (
    *("openenv==0.10.0", "fastmcp-slim==3.4.11", "mcp==1.30.0", "httpx-sse==0.4.3", "py-key-value-aio==0.4.6"),
    *("cyclopts==5.5.2", "exceptiongroup==1.3.2", "openapi-pydantic==0.6.0", "Authlib==1.9.10", "beartype==0.23.1"),
    *("uncalled-for==0.6.2", "griffelib==2.4.1"),
)


def use_gymnasium() -> None:
    """Makes it importable here, behind what is installed."""
    folder = str(installed("gymnasium-1.4.0", "gymnasium==1.4.0", "farama-notifications==0.0.6"))
    if folder not in sys.path:
        sys.path.append(folder)


def use_verifiers(patch: pytest.MonkeyPatch) -> None:
    """Its packages, installed as a run installs them, and the environments of this folder."""
    try:
        packages_of(())
    except ConfigError as error:
        pytest.skip(str(error))
    patch.setenv("PYTHONPATH", str(Path(__file__).with_name("verifiers_worlds")))


@contextmanager
def openenv_server(log: Path) -> Iterator[str]:
    """The URL of a server that its own package runs, in a process of its own."""
    folder, port = installed("openenv-0.10.0", *_OPENENV), free_port()
    script = Path(__file__).with_name("openenv_server.py")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(script), str(port)],
            env={**os.environ, "PYTHONPATH": str(folder), "NO_PROXY": "127.0.0.1"},
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: process.poll() is not None or _answers(port), timeout_s=60, poll_s=0.1)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
