"""Running the service in this process."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection

import uvicorn

from reward_service.api.app import create_app
from reward_service.api.connections import bounded
from reward_service.api.processes import Share, run_processes
from reward_service.api.siblings import Siblings
from reward_service.errors import OperatorError, ServiceError, ServiceStartError
from reward_service.keys import binding_refusal, binding_warning
from reward_service.rates import SharedRates
from reward_service.settings import ServiceSettings

logger = logging.getLogger("uvicorn.error")  # where the server says the rest

ANNOUNCEMENT = "reward service at "
_PARENT_POLL_S = 0.5
_OTHER_FILES = 256
"""Descriptors for what is not a connection."""


def serve(settings: ServiceSettings, *, parent_pid: int | None = None) -> None:
    """Runs the service until SIGTERM or Ctrl-C, then answers what it has accepted. After SIGTERM it raises SystemExit:
    the process ends well, and what it has in the folder for temporary files goes.

    When it listens, one line on standard output says `reward service at http://HOST:PORT`.

    Args:
        settings: what to serve, and where.
        parent_pid: the service also ends when this process is no longer its parent.

    Raises:
        ServiceStartError: it may not or cannot listen, or the settings cannot work on this machine.
    """
    keys, tls = settings.keys_file is not None, settings.ssl_certfile is not None
    if (refusal := binding_refusal(settings.host, has_keys=keys)) is not None:
        raise ServiceStartError(refusal)
    if (warning := binding_warning(settings.host, has_keys=keys, has_tls=tls)) is not None:
        logger.warning("%s", warning)
    listener = _bind(settings.host, settings.port)
    port = listener.getsockname()[1]
    url = _url(settings.host, port, tls=tls)

    def announce() -> None:
        print(f"{ANNOUNCEMENT}{url}", flush=True)

    if settings.processes == 1:
        with listener:
            _run(settings, listener, announce, parent_pid=parent_pid)
        return
    listener.close()  # it showed that nobody else has the port, which sockets that may share it would not
    with ExitStack() as stack:
        number = range(settings.processes)
        listeners = [stack.enter_context(_bind(settings.host, port, shared=True)) for _ in number]
        run_processes(settings, listeners, _serve_share, announce, parent_pid=parent_pid)


def _serve_share(share: Share, said: Connection) -> None:
    """One of several processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all, and the supervisor ends this one in order
    siblings = Siblings(share.folder, share.index, share.number)
    rates = SharedRates(memoryview(share.rates.get_obj()).cast("B").cast("d"), share.rates.get_lock())
    try:
        started = partial(said.send, "")
        _run(share.settings, share.listener, started, parent_pid=share.supervisor_pid, siblings=siblings, rates=rates)
    except (OperatorError, ServiceError) as error:
        said.send(str(error))


def _run(
    settings: ServiceSettings,
    listener: socket.socket,
    started: Callable[[], None],
    *,
    parent_pid: int | None,
    siblings: Siblings | None = None,
    rates: SharedRates | None = None,
) -> None:
    app = create_app(settings, siblings=siblings, rates=rates)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, settings.max_connections + _OTHER_FILES)), hard))
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="info",
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_s)),
        loop="uvloop",
        http=bounded(settings),
        timeout_keep_alive=settings.idle_timeout_s,  # type: ignore[arg-type]  # goes to call_later as it is
        ws="none",
        proxy_headers=False,  # nothing here goes by the client's address
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        key = settings.ssl_keyfile or "in the same file, as ssl_keyfile is not given"
        raise ServiceStartError(
            f"cannot use the certificate {settings.ssl_certfile} with the key {key}: {error}"
        ) from None
    hurry_after_s = 0.8 * settings.shutdown_timeout_s
    server = _Server(config, started, hurry=app.state.service.pool.hurry, hurry_after_s=hurry_after_s)
    if parent_pid is not None:
        threading.Thread(
            target=_end_with_parent, args=(server, parent_pid, settings.shutdown_timeout_s), daemon=True
        ).start()
    if threading.current_thread() is threading.main_thread():  # uvicorn sends it again when it has ended in order
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    server.run(sockets=[listener])


def _bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ServiceStartError(f"cannot listen on {host} port {port}: {error.strerror}; another port, or 0?") from None
    return listener


def _url(host: str, port: int, *, tls: bool) -> str:
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _Server(uvicorn.Server):
    """Says so once it accepts connections, and answers what it has accepted before it ends."""

    def __init__(
        self, config: uvicorn.Config, started: Callable[[], None], *, hurry: Callable[[], None], hurry_after_s: float
    ) -> None:
        super().__init__(config)
        self._tell_started, self._hurry, self._hurry_after_s = started, hurry, hurry_after_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What is not done when most of the time is over is answered as it is: after all of it connections are cut."""
        hurry = asyncio.get_running_loop().call_later(self._hurry_after_s, self._hurry)
        try:
            await super().shutdown(sockets)
        finally:
            hurry.cancel()


def _end_with_parent(server: uvicorn.Server, parent_pid: int, shutdown_timeout_s: float) -> None:
    """Polls the parent's id, which changes when it dies; PR_SET_PDEATHSIG would go by the starting thread."""
    nothing = threading.Event()
    while os.getppid() == parent_pid:
        nothing.wait(_PARENT_POLL_S)
    server.should_exit = True
    nothing.wait(shutdown_timeout_s + 2.0)
    os.kill(os.getpid(), signal.SIGKILL)  # only if the orderly end did not come about
