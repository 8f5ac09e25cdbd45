"""What the server and the audit writer say to one another: frames of a 4-byte little-endian length and as many bytes.

The server sends `Start`, then an `AuditBatch` a frame; an empty frame means "commit now". The writer answers with
`Status` frames. All are msgpack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

HEADER: Final = struct.Struct("<I")


class AppliedReward(msgspec.Struct, frozen=True, array_like=True):
    """A reward that a request asked for."""

    name: str
    weight: float
    version: str


class AuditBatch(msgspec.Struct, frozen=True, array_like=True):
    """The decisions of one request: what the server hands to the writer. In columns, an entry an item: of a message of
    thousands of strings nothing has to be made for each item."""

    time_us: int
    caller: str
    run_id: str | None
    policy_version: int | None
    rewards: tuple[AppliedReward, ...]
    ids: list[str]
    groups: list[str | None]
    prompts: list[str]
    completions: list[str]
    results: list[bytes]
    """JSON, as it is answered."""


class ReceivedBatch(msgspec.Struct, frozen=True, array_like=True):
    """An `AuditBatch` at the writer's end, where the columns stay msgpack."""

    time_us: int
    caller: str
    run_id: str | None
    policy_version: int | None
    rewards: tuple[AppliedReward, ...]
    ids: msgspec.Raw
    groups: msgspec.Raw
    prompts: msgspec.Raw
    completions: msgspec.Raw
    results: msgspec.Raw


class Start(msgspec.Struct, frozen=True, array_like=True):
    """What the writer needs to know."""

    settings: str
    """`AuditSettings` as JSON."""
    session: str
    """Names the server's life: a writer that is started again for it goes on counting its messages."""
    service_version: str


class Status(msgspec.Struct, frozen=True, array_like=True):
    """How far the writer is."""

    committed: int
    """Messages of this session that are in the log."""
    seq: int
    hash: str
    failed: str | None = None
    """Why nothing can be committed now; the writer goes on trying."""


class FrameReader:
    """Puts frames together from what a socket gives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """The frames that are complete with `data`."""
        self._buffer += data
        start, end = 0, len(self._buffer)
        while end - start >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, start)
            if end - start - HEADER.size < length:
                break
            start += HEADER.size
            yield bytes(self._buffer[start : start + length])
            start += length
        del self._buffer[:start]


def frame(message: msgspec.Struct) -> bytes:
    """A message with its length before it."""
    data = bytearray(HEADER.size)
    _encoder.encode_into(message, data, HEADER.size)
    HEADER.pack_into(data, 0, len(data) - HEADER.size)
    return bytes(data)


FLUSH: Final = HEADER.pack(0)
_encoder = msgspec.msgpack.Encoder()
