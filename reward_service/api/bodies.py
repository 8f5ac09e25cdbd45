"""Reading request bodies: bounded in size, in time, and all together in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
from fastapi import Request
from starlette.requests import ClientDisconnect

from reward_service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ClientGoneError,
    InvalidRequestError,
    LimitExceededError,
    QueueFullError,
)
from reward_service.schemas import OpenRlhfRequest, ProgramRequest, ScoreItem, ScoreRequest, SlimeRequest
from reward_service.settings import ServiceSettings

Body = TypeVar("Body", ScoreRequest, OpenRlhfRequest, SlimeRequest, ProgramRequest)

_KINDS = (ScoreRequest, OpenRlhfRequest, SlimeRequest, ProgramRequest)
_DECODERS = {kind: msgspec.json.Decoder(kind).decode for kind in _KINDS}


class Bodies:
    """The bodies that are being read or scored."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self.held_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, if it is small enough and arrives soon enough; it counts as held until the block ends."""
        body = bytearray()
        try:
            declared = request.headers.get("content-length", "")
            if declared.isascii() and declared.isdigit():
                self._admit(int(declared) if len(declared) < 18 else 10**18, 0)
            try:
                async with asyncio.timeout(self._settings.body_timeout_s):
                    async for chunk in request.stream():
                        self._admit(len(body) + len(chunk), len(chunk))
                        self.held_bytes += len(chunk)
                        body += chunk
            except TimeoutError:
                raise BodyTimeoutError(
                    f"the body did not arrive within body_timeout_s = {self._settings.body_timeout_s:g} s"
                ) from None
            except ClientDisconnect:  # who hangs up in the middle is no error of ours
                raise ClientGoneError("the client hung up before its body was whole") from None
            yield bytes(body)
        finally:
            self.held_bytes -= len(body)

    def _admit(self, length: int, more: int) -> None:
        limit, limit_together = self._settings.max_body_bytes, self._settings.max_bodies_bytes
        if length > limit:
            raise BodyTooLargeError(f"the body is larger than max_body_bytes = {limit}; send fewer items in a request")
        if self.held_bytes + (more or length) > limit_together:
            raise QueueFullError(
                f"requests of {self.held_bytes} bytes are being scored, and max_bodies_bytes = {limit_together};"
                " try again soon"
            )


def parse(body: bytes, kind: type[Body]) -> Body:
    """Parses and validates in one pass; InvalidRequestError says what is wrong and where."""
    try:
        return _DECODERS[kind](body)  # type: ignore[return-value]  # the table is by the very type
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(" ".join(str(error).split())[:500]) from None


def check_limits(items: list[ScoreItem], settings: ServiceSettings) -> None:
    """Refuses too many items and texts that are too long, naming the limit."""
    if len(items) > settings.max_items:
        raise LimitExceededError(f"{len(items)} items are more than max_items = {settings.max_items}; send fewer")
    limit = settings.max_text_chars
    if any(len(item.completion) > limit or len(item.prompt) > limit for item in items):
        index, length = next(
            (index, length)
            for index, item in enumerate(items)
            if (length := max(len(item.prompt), len(item.completion))) > limit
        )
        raise LimitExceededError(f"items.{index}: a text of {length} characters is over max_text_chars = {limit}")
