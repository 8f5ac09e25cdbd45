"""An OpenEnv server out of an image: a container of this process's own, on loopback, which ends with it."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Final, NamedTuple

import httpx

from orchestration.errors import ConfigError, one_line
from orchestration.sockets import LOOPBACK, free_port

IMAGE: Final = "image:"
"""In front of a name in `data.url`."""

_PORT = 8000  # OpenEnv's images serve there
_START_S, _END_S, _POLL_S = 120.0, 20.0, 0.2
_TIED = 'exec 3<&0; "$@" </dev/null & run=$!; (cat <&3 >/dev/null; kill $run 2>/dev/null) & wait $run'
"""Runs a command that ends when who started it closes its input, by being killed too."""


class _Container(NamedTuple):
    process: subprocess.Popen[bytes]
    address: str


_containers: dict[str, _Container] = {}
_lock = threading.Lock()


def address_of(url: str) -> str:
    """Where a server is: `url`, or the container of the image that it names, started unless one of this process's runs.

    Raises:
        ConfigError: There is neither docker nor podman, no such image here, or its server does not answer.
    """
    if not url.startswith(IMAGE):
        return url
    with _lock:
        found = _containers.get(url)
        if found is None or found.process.poll() is not None:
            found = _containers[url] = _started(url)
        return found.address


def _started(url: str) -> _Container:
    image = url.removeprefix(IMAGE)
    program = shutil.which("docker") or shutil.which("podman")
    if program is None:
        raise ConfigError(
            f"data.url={url!r}: neither docker nor podman is here; install one, or start the server elsewhere and name "
            f"its address, http://HOST:PORT"
        )
    asked = [program, "image", "inspect", "--format", "{{.Id}}", "--", image]
    inspected = subprocess.run(asked, capture_output=True, timeout=_START_S, check=False)
    if inspected.returncode:
        why = one_line(inspected.stderr.decode(errors="replace"))
        pull = f"{Path(program).name} pull {image}"
        raise ConfigError(f"data.url={url!r}: no image that can be run here ({why}); `{pull}` gets one")
    port = free_port()
    command = [program, "run", "--rm", "--init", "--publish", f"{LOOPBACK}:{port}:{_PORT}", image]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            ["sh", "-c", _TIED, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the run, which ends it in its turn
        )
        atexit.register(_end, process)
        address = f"http://{LOOPBACK}:{port}"
        try:
            _wait_for(address, process, url, output)
        except BaseException:
            _end(process)
            raise
    return _Container(process, address)


def _wait_for(address: str, process: subprocess.Popen[bytes], url: str, output: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{address}/health", timeout=5, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass  # not yet
        time.sleep(_POLL_S)
    output.seek(0)
    said = one_line(output.read().decode(errors="replace")[-500:]) or "it said nothing"
    how = "ended" if process.poll() is not None else f"does not answer on port {_PORT} within {_START_S:g} s"
    raise ConfigError(f"data.url={url!r}: its container {how}: {said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
