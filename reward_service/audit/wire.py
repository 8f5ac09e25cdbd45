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
        self._begun = bytearray()
        """A frame of which a part has come."""

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """The frames that are complete with `data`, which may be overwritten once all were taken. Whole ones are copied
        once: they are tens of kilobytes, and copying them is half of the writer's work."""
        rest = memoryview(data)
        while rest:
            if not self._begun and (end := _end_of(rest)) is not None and end <= len(rest):
                yield bytes(rest[HEADER.size : end])
                rest = rest[end:]
                continue
            missing = (_end_of(self._begun) or HEADER.size) - len(self._begun)
            self._begun += rest[:missing]
            rest = rest[missing:]
            if len(self._begun) == _end_of(self._begun):
                message = bytes(memoryview(self._begun)[HEADER.size :])
                self._begun = bytearray()
                yield message


def _end_of(frame: bytearray | memoryview) -> int | None:
    """Length of the frame that begins there; None: its header is not whole yet."""
    return HEADER.size + int(HEADER.unpack_from(frame)[0]) if len(frame) >= HEADER.size else None


def frame(message: msgspec.Struct) -> bytes:
    """A message with its length before it."""
    data = bytearray(HEADER.size)
    _encoder.encode_into(message, data, HEADER.size)
    HEADER.pack_into(data, 0, len(data) - HEADER.size)
    return bytes(data)


FLUSH: Final = HEADER.pack(0)
_encoder = msgspec.msgpack.Encoder()
