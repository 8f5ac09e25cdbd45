"""Running the service: in this process, or as a child that dies with its parent.

`python -m reward_service [--host H] [--port P] [--settings FILE]` runs `main`.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from pydantic import ValidationError

from reward_service.app import create_app
from reward_service.errors import ServiceStartError
from reward_service.scoring import describe
from reward_service.settings import ServiceSettings

ANNOUNCEMENT = "reward service at "
_PARENT_POLL_S = 0.5


def serve(settings: ServiceSettings, *, parent_pid: int | None = None) -> None:
    """Runs the service until SIGTERM or Ctrl-C, then answers what it has accepted and returns.

    When it listens, one line on standard output says `reward service at http://HOST:PORT`. With `parent_pid` it also
    ends when that process is no longer its parent. Raises ServiceStartError if it may not or cannot listen.
    """
    require_loopback(settings.host)
    listener = _bind(settings.host, settings.port)
    url = _url(settings.host, listener.getsockname()[1])
    config = uvicorn.Config(
        create_app(settings),
        access_log=False,
        log_level="info",
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_s)),
        loop="uvloop",
        http="httptools",
        ws="none",
    )
    server = _AnnouncingServer(config, url)
    if parent_pid is not None:
        threading.Thread(
            target=_end_with_parent, args=(server, parent_pid, settings.shutdown_timeout_s), daemon=True
        ).start()
    with listener:
        server.run(sockets=[listener])


def require_loopback(host: str) -> None:
    """Refuses any address that other machines could reach: there are no keys yet by which to tell who may."""
    if host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ServiceStartError(f"host {host!r} is not an IP address; use 127.0.0.1") from None
    if not loopback:
        raise ServiceStartError(
            f"refusing to listen on {host}: without API keys anybody who reaches it could use it; use host 127.0.0.1"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m reward_service", description="Scores completions over HTTP.")
    parser.add_argument("--host", help="address to listen on (loopback only)")
    parser.add_argument("--port", type=int, help="port to listen on; 0: a free one")
    parser.add_argument("--settings", metavar="FILE", help="JSON file of all settings; - reads standard input")
    parser.add_argument("--parent-pid", type=int, help="end when the process of this id is no longer the parent")
    options = parser.parse_args(arguments)
    try:
        serve(_read_settings(options), parent_pid=options.parent_pid)
    except ServiceStartError as error:
        print(f"reward service: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _read_settings(options: argparse.Namespace) -> ServiceSettings:
    overrides = {name: value for name in ("host", "port") if (value := getattr(options, name)) is not None}
    try:
        if options.settings is None:
            return ServiceSettings(**overrides)
        text = sys.stdin.read() if options.settings == "-" else Path(options.settings).read_text(encoding="utf-8")
        settings = ServiceSettings.model_validate_json(text)
        return ServiceSettings(**{**settings.model_dump(), **overrides})
    except ValidationError as error:
        raise ServiceStartError(f"settings: {describe(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceStartError(f"cannot read the settings: {error}") from None


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ServiceStartError(f"cannot listen on {host} port {port}: {error.strerror}; another port, or 0?") from None
    return listener


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _AnnouncingServer(uvicorn.Server):
    """Says where it is once it accepts connections."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"{ANNOUNCEMENT}{self._url}", flush=True)


def _end_with_parent(server: uvicorn.Server, parent_pid: int, shutdown_timeout_s: float) -> None:
    """Polls the parent's id, which changes when it dies; PR_SET_PDEATHSIG would go by the starting thread."""
    nothing = threading.Event()
    while os.getppid() == parent_pid:
        nothing.wait(_PARENT_POLL_S)
    server.should_exit = True
    nothing.wait(shutdown_timeout_s + 2.0)
    os.kill(os.getpid(), signal.SIGKILL)  # only if the orderly end did not come about
