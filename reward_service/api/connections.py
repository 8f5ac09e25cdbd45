"""What one connection may take: bytes and fields of a request's head, time for it, idle time, and how many there are.

uvicorn bounds none of these but the idle time. Its parser puts a long header together piece by piece, in time that
grows with the square of its length: 60 MB of one header held the loop for 22 s.

A head is everything that is neither body nor answer: request line, header fields, trailers, and what surrounds the
chunks of a body. Not covered: TLS handshakes, which have the event loop's 60 s; clients that share an address count
together, which matters behind a proxy.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import struct
from collections import Counter
from typing import Any, ClassVar, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from reward_service.schemas import ErrorBody
from reward_service.settings import ServiceSettings

_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
_LAST_LOOK_S: Final = 0.05
_AT_ONCE: Final = struct.pack("ii", 1, 0)
_V6_PREFIX: Final = 64
"""A host has a whole /64 of addresses."""


class HeadTooLargeError(Exception):
    """Ends the parsing of a head; the client gets 431."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits; `bounded` makes a class of it for a server."""

    limits: ClassVar[ServiceSettings]
    open_by_address: ClassVar[Counter[str]]

    _address: str = ""
    _timer: asyncio.TimerHandle | None = None
    """Runs out unless a whole head arrives before."""
    _flush_timer: asyncio.TimerHandle | None = None
    """Runs out unless the client reads what was written."""
    _running: RequestResponseCycle | None = None
    _in_head = False
    _head_bytes = 0
    _num_fields = 0
    _useless_bytes = 0
    """Received since the parser last handed on a head or a part of a body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = network_of(self.client[0] if self.client else "")
        self.open_by_address[self._address] += 1
        if (most := self.limits.max_connections) < self.open_by_address.total():
            self._refuse(503, "too_many_connections", f"there are max_connections = {most} connections already")
        elif (most := self.limits.max_connections_per_address) < self.open_by_address[self._address]:
            told = f"this address has max_connections_per_address = {most} connections already"
            self._refuse(429, "too_many_connections", told)
        else:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_by_address[self._address] -= 1
        if self.open_by_address[self._address] <= 0:
            del self.open_by_address[self._address]
        self._disarm()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        super().connection_lost(exc)
        self._give_up()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._useless_bytes += len(data)
        super().data_received(_without_upgrade(data) if b"pgrade:" in data and not self._body_goes_on else data)
        if self._useless_bytes > self.limits.max_header_bytes and not self.transport.is_closing():
            self._refuse_head()
        elif self._timer is None and (self._in_head or not self._is_answering):
            self._arm()

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            self._refuse_head()
        else:
            self._refuse(400, "invalid_request", "this is not HTTP")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes, self._num_fields = True, 0, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        self._num_fields += 1
        if self._too_large:
            raise HeadTooLargeError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._useless_bytes = False, 0
        self._disarm()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._useless_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._useless_bytes = 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_unless_read()
        elif self._body_goes_on and self._timer is None:  # answered early
            self._arm()

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(_LAST_LOOK_S, self._end_idle)

    def _end_idle(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_unless_read()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_unless_read()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._flush_timer is not None and not self.transport.is_closing():
            self._flush_timer.cancel()
            self._flush_timer = None

    @property
    def _too_large(self) -> bool:
        return self._num_fields > self.limits.max_headers or self._head_bytes > self.limits.max_header_bytes

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _body_goes_on(self) -> bool:
        return self.cycle is not None and self.cycle.more_body

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_timeout_s, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        """Looks once more: on a busy machine what came in time may not have been read yet when the time is over."""
        self._timer = self.loop.call_later(_LAST_LOOK_S, self._too_late)

    def _too_late(self) -> None:
        if self._is_answering:  # of a request before; its time is bounded elsewhere
            self._arm()
        elif not self.transport.is_closing():
            limit_s = self.limits.header_timeout_s
            self._refuse(408, "header_timeout", f"no request came within header_timeout_s = {limit_s:g} s")

    def _refuse_head(self) -> None:
        limits = self.limits
        told = f"a request's head has at most {limits.max_headers} fields and {limits.max_header_bytes} bytes here"
        self._refuse(431, "header_too_large", told)

    def _refuse(self, status: int, error: str, detail: str) -> None:
        """Says why, unless an answer is under way or was given while the body goes on, and closes."""
        self._disarm()
        if not self._is_answering and not self._body_goes_on:
            body = msgspec.json.encode(ErrorBody(error, detail))
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
        self._abort_unless_read()

    def _abort_unless_read(self) -> None:
        """Ends the connection if what was written is not read in time."""
        if self._flush_timer is None and self.transport.get_write_buffer_size() > 0:
            self._flush_timer = self.loop.call_later(self.limits.idle_timeout_s, self._abort)

    def _abort(self) -> None:
        """With a reset: else the kernel keeps megabytes of answers for a client that never reads."""
        self._give_up()
        if (connection := self.transport.get_extra_info("socket")) is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.transport.abort()

    def _give_up(self) -> None:
        """Tells the request under way that nobody reads its answer: uvicorn tells the newest one of a pipeline only."""
        self.pipeline.clear()
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()


def bounded(limits: ServiceSettings) -> type[BoundedProtocol]:
    """The protocol of a server with these limits; its connections are counted together."""
    attributes: dict[str, Any] = {"limits": limits, "open_by_address": Counter()}
    return type("BoundedProtocol", (BoundedProtocol,), attributes)


def _without_upgrade(data: bytes) -> bytes:
    """The beginning of a request without its offer of another protocol (HTTP/2, by Java's client and curl's --http2),
    which may be passed over; the parser would take a body behind it for that protocol."""
    head, end, body = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"", head) + end + body


def body_is_here(receive: object) -> bool:
    """Whether all of a request's body has come, as it mostly has with the head: a timer for it would cost more."""
    cycle = getattr(receive, "__self__", None)
    return isinstance(cycle, RequestResponseCycle) and not cycle.more_body


def network_of(address: str) -> str:
    """What connections are counted by: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _V6_PREFIX), strict=False))
