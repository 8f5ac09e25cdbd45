"""Where ranks meet: a store at rank 0 that listens on one address. torch's own listens on all that the host has."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed.rendezvous import register_rendezvous_handler

_SCHEME: Final = "tcp-on"


def at(host: str, port: int) -> str:
    """torch's `init_method` of a meeting there; a rank that is alone may leave the port, as 0, to the system."""
    return f"{_SCHEME}://[{host}]:{port}" if ":" in host else f"{_SCHEME}://{host}:{port}"


def _rendezvous(
    url: str, timeout: timedelta = torch.distributed.default_pg_timeout, **kwargs: Any
) -> Iterator[tuple[TCPStore, int, int]]:
    """torch's interface of a handler: (store, rank, size). Raises OSError at rank 0 when the port is taken."""
    place = urlsplit(url)
    query = dict(pair.split("=") for pair in place.query.split("&"))
    rank, world_size = int(query["rank"]), int(query["world_size"])
    assert place.hostname is not None
    assert place.port is not None
    listener = _listen(place.hostname, place.port) if rank == 0 else None
    store = TCPStore(
        place.hostname,
        place.port if listener is None else listener.getsockname()[1],
        world_size,
        is_master=rank == 0,
        timeout=timeout,
        master_listen_fd=None if listener is None else listener.detach(),  # torch closes it
    )
    yield store, rank, world_size


def _listen(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)


register_rendezvous_handler(_SCHEME, _rendezvous)
