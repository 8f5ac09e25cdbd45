"""Several hosts on this machine: each a network namespace with an address, a raylet and a fork server of its own.

Engines and ranks are forked from the process that has imported their libraries, as on one host; but in the namespace.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from orchestration.cluster.actors import actor_environment
from orchestration.cluster.environment import NODE_ENVIRONMENT, without_token
from rollout_server.forking.channel import READY, Order, packed, send_order
from rollout_server.forking.client import ADDRESS
from rollout_server.forking.server import ForkServer
from tests.waiting import until

_NETWORK = f"10.77.{os.getpid() % 250}"
_NAME = f"rlvr{os.getpid() % 100_000}"
_CLONE_NEWNET = 0x40000000
_STORE_BYTES = 80 * 2**20
"""Of each node's object store: Ray's least, and a little."""


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30).stdout


def refused() -> str | None:
    """Why this machine lets us have no hosts; None where it does."""
    try:
        with _bridge(f"{_NAME}t", f"{_NETWORK}.1"), _namespace(f"{_NAME}t", f"{_NAME}t", f"{_NETWORK}.2"):
            return None
    except FileNotFoundError:
        return "there is no ip (iproute2)"
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed: {error.stderr.strip()}"


@contextmanager
def _bridge(name: str, address: str) -> Iterator[None]:
    ip("link", "add", name, "type", "bridge")
    try:
        ip("address", "add", f"{address}/24", "dev", name)
        ip("link", "set", name, "up")
        yield
    finally:
        ip("link", "delete", name)


@contextmanager
def _namespace(name: str, bridge: str, address: str) -> Iterator[None]:
    """A namespace whose eth0 is plugged into a bridge, there as `name`."""
    ip("netns", "add", name)
    try:
        ip("link", "add", name + "p", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", name + "p", "master", bridge, "up")
        for device in ("lo", "eth0"):
            ip("-n", name, "link", "set", device, "up")
        ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        yield
    finally:
        ip("netns", "delete", name)


@dataclass
class Node:
    """A host with its raylet."""

    name: str
    address: str
    folder: Path
    ray: subprocess.Popen[bytes]
    server: socket.socket
    """To its fork server, which ends when it is closed."""
    namespace: ExitStack

    def received_bytes(self) -> int:
        """What came over its cable."""
        return int(Path(f"/sys/class/net/{self.name}p/statistics/tx_bytes").read_text())

    def pids(self) -> list[int]:
        return [int(line) for line in ip("netns", "pids", self.name).split()]

    def power_off(self) -> None:
        """The cable is dead before the processes are: nobody is told anything."""
        ip("link", "set", f"{self.name}p", "down")
        self.end()

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Without its cable: what is sent to it and by it is lost, and nobody is told."""
        ip("link", "set", f"{self.name}p", "down")
        try:
            yield
        finally:
            ip("link", "set", f"{self.name}p", "up")

    def end(self) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.ray.wait(30)
        self.server.close()
        self.namespace.close()


@dataclass
class Hosts:
    """A network, this machine as its first host with Ray's head, and the hosts that were added."""

    folder: Path
    port: int
    head: subprocess.Popen[bytes]
    nodes: list[Node] = field(default_factory=list)
    num_added: int = 0

    @property
    def ray_address(self) -> str:
        return f"{_NETWORK}.1:{self.port}"

    def add(self, *, num_cpus: int = 1, resources: Sequence[str] = ()) -> Node:
        """Returns when it has joined."""
        self.num_added += 1
        name, address = f"{_NAME}n{self.num_added}", f"{_NETWORK}.{self.num_added + 1}"
        namespace = ExitStack()
        namespace.enter_context(_namespace(name, _NAME, address))
        folder = self.folder / f"n{self.num_added}"
        folder.mkdir()
        words = (f"--address={self.ray_address}", *_marks(resources))
        inside = ("ip", "netns", "exec", name)
        ray = _ray(words, folder, address, num_cpus=num_cpus, inside=inside, **{ADDRESS: str(folder / "fork")})
        node = Node(name, address, folder, ray, _serve_in(name, folder / "fork"), namespace)
        self.nodes.append(node)
        return node

    def remove(self, node: Node) -> None:
        node.end()
        self.nodes.remove(node)


def _marks(resources: Sequence[str]) -> tuple[str, ...]:
    return (f"--resources={json.dumps(dict.fromkeys(resources, 1))}",) if resources else ()


def _ray(
    words: Sequence[str], folder: Path, address: str, *, num_cpus: int, inside: Sequence[str] = (), **more: str
) -> subprocess.Popen[bytes]:
    watched = {  # Ray's head gives a node up that does not answer for some 12 s, instead of 25 and more
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "5",
        "RAY_health_check_initial_delay_ms": "500",
    }
    with (folder / "ray.log").open("wb") as log:
        return subprocess.Popen(
            [
                *inside,
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
                *(f"--node-ip-address={address}", f"--num-cpus={num_cpus}", "--num-gpus=0", f"--temp-dir={folder}/r"),
                *(f"--object-store-memory={_STORE_BYTES}", "--include-log-monitor=false", *words),
            ],
            env={**os.environ, **NODE_ENVIRONMENT, **without_token(), **actor_environment("cpu"), **watched, **more},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _serve_in(namespace: str, address: Path) -> socket.socket:
    """Fork a fork server into a namespace; it ends with the socket that is returned."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[ADDRESS])
    arguments = (namespace, str(address))
    target = f"{__name__}:serve"
    environment = {**os.environ, ADDRESS: str(address)}
    send_order(
        connection, Order(target=target, arguments=arguments, environment=environment, folder=os.getcwd()), (1, 2)
    )
    assert connection.recv(1), "no fork server in the namespace"
    return connection


def serve(connection: socket.socket, namespace: str, address: str) -> None:
    """In the forked process."""
    with Path("/run/netns", namespace).open() as there:
        assert ctypes.CDLL(None, use_errno=True).setns(there.fileno(), _CLONE_NEWNET) == 0
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(128)
    os.dup2(connection.fileno(), 0)  # when it closes, the server ends
    connection.sendall(packed((READY, True, None)))
    ForkServer(listener).run()


@contextmanager
def hosts(*, num_cpus: int = 1, resources: Sequence[str] = ()) -> Iterator[Hosts]:
    """This machine as a host of a network, with Ray's head."""
    folder = Path(tempfile.mkdtemp(prefix="rh"))
    address = f"{_NETWORK}.1"
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    with _bridge(_NAME, address):
        words = ("--head", f"--port={port}", "--include-dashboard=false", *_marks(resources))
        head = _ray(words, folder, address, num_cpus=num_cpus)
        site = Hosts(folder, port, head)
        try:
            until(lambda: _listens(address, port), 60, told=(folder / "ray.log").read_text)
            yield site
        finally:
            for node in list(site.nodes):
                site.remove(node)
            _end_tree(head)
            shutil.rmtree(folder, ignore_errors=True)


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def _end_tree(process: subprocess.Popen[Any]) -> None:
    with suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
        for one in family:
            with suppress(psutil.Error):
                one.kill()
    process.kill()
    process.wait(30)
