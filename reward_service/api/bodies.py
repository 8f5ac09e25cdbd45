"""Reading request bodies: bounded in size, in time, and all together in memory."""

from __future__ import annotations

import asyncio
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import jiter
import msgspec
from fastapi import Request

from reward_service.api import reading
from reward_service.api.connections import body_is_here
from reward_service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ClientGoneError,
    ContentEncodingError,
    InvalidRequestError,
    LimitExceededError,
    QueueFullError,
)
from reward_service.schemas import (
    OpenRlhfRequest,
    ProgramRequest,
    ScoreItem,
    ScoreRequest,
    SlimeRequest,
    UnreadableItem,
)
from reward_service.settings import ServiceSettings

Body = TypeVar("Body", ScoreRequest, OpenRlhfRequest, SlimeRequest, ProgramRequest)

_KINDS = (ScoreRequest, OpenRlhfRequest, SlimeRequest, ProgramRequest)
_SMALL_BYTES: Final = 2**18
"""Of a body whose faults are found in 5 ms."""
_LOOK_S: Final = 1.0
"""Between two looks at the requests that are being answered."""
_LOOKS: Final = ThreadPoolExecutor(1, thread_name_prefix="looks-at-bodies")
"""One at a time: together they would take the interpreter from the event loop."""
_DECODERS = {kind: msgspec.json.Decoder(kind).decode for kind in _KINDS}


class Bodies:
    """The bodies that are being read or scored."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self.held_bytes = 0
        self._wanted: set[_Wanted] = set()
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, if it is small enough and arrives soon enough; it counts as held until the block ends.

        A byte order mark before it, which some editors and platforms write, can mean nothing else: it is passed over,
        as RFC 8259 lets parsers do.
        """
        body = bytearray()
        try:
            _admit_encoding(request.headers.get("content-encoding", "identity"))
            declared = request.headers.get("content-length", "")
            if declared.isascii() and declared.isdigit():
                self._admit(int(declared) if len(declared) < 18 else 10**18, 0)
            if body_is_here(request.receive):
                await self._receive(request, body)
            else:
                await self._receive_in_time(request, body)
            self._admit_keys(body)
            yield bytes(body).removeprefix(BOM_UTF8)
        finally:
            self.held_bytes -= len(body)

    async def _receive(self, request: Request, body: bytearray) -> None:
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":  # who hangs up in the middle is no error of ours
                raise ClientGoneError("the client hung up before its body was whole")
            part, more = message.get("body", b""), message.get("more_body", False)
            self._admit(len(body) + len(part), len(part))
            self.held_bytes += len(part)
            body += part

    async def _receive_in_time(self, request: Request, body: bytearray) -> None:
        limit_s = self._settings.body_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._receive(request, body)
        except TimeoutError:
            raise BodyTimeoutError(f"the body did not arrive within body_timeout_s = {limit_s:g} s") from None

    @contextmanager
    def wanted(self, request: Request) -> Iterator[None]:
        """Gives up, with ClientGoneError, what goes on for a while after its client has hung up.

        Most requests are answered before anybody looks; for them a watch, or a timer, would cost more than it saves.
        """
        task = asyncio.current_task()
        assert task is not None
        one = _Wanted(request, task)
        self._wanted.add(one)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)
        try:
            yield
        except asyncio.CancelledError:
            if one.watch is None or not one.watch.done():
                raise
            task.uncancel()
            raise ClientGoneError("the client hung up") from None
        finally:
            self._wanted.remove(one)
            if one.watch is not None:
                one.watch.cancel()

    def _look(self) -> None:
        """Watches over the clients of requests that were there at the last look, too."""
        for one in self._wanted:
            if one.was_seen and one.watch is None:
                one.watch = asyncio.create_task(one.end_when_gone())
            one.was_seen = True
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look) if self._wanted else None

    def _admit(self, length: int, more: int) -> None:
        limit, limit_together = self._settings.max_body_bytes, self._settings.max_bodies_bytes
        if length > limit:
            raise BodyTooLargeError(f"the body is larger than max_body_bytes = {limit}; send fewer items in a request")
        if self.held_bytes + (more or length) > limit_together:
            raise QueueFullError(
                f"requests of {self.held_bytes} bytes are being scored, and max_bodies_bytes = {limit_together};"
                " try again soon"
            )

    def _admit_keys(self, body: bytearray) -> None:
        limit = self._settings.max_body_keys
        if len(body) > min(_SMALL_BYTES, 3 * limit) and (number := body.count(b'":')) > limit:
            raise BodyTooLargeError(
                f"the body has {number} keys, more than max_body_keys = {limit}; send fewer items in a request"
            )


def _admit_encoding(encoding: str) -> None:
    if encoding.strip().lower() not in ("", "identity"):
        raise ContentEncodingError(f"the body's content-encoding is {encoding!r:.100}; send it as plain JSON")


@dataclass(eq=False, slots=True)
class _Wanted:
    """A request that is being answered."""

    request: Request
    task: asyncio.Task[object]
    was_seen: bool = False
    watch: asyncio.Task[None] | None = None

    async def end_when_gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
        self.task.cancel()


async def parse_beside(body: bytes, kind: type[Body]) -> Body:
    """`parse`; where a large body has a fault, the long look for it is in a thread and keeps nobody waiting."""
    if len(body) <= _SMALL_BYTES:
        return parse(body, kind)
    if (sound := _parse_sound(body, kind)) is not None:
        return sound
    return await asyncio.get_running_loop().run_in_executor(_LOOKS, parse, body, kind)


async def parse_openrlhf_beside(body: bytes) -> tuple[OpenRlhfRequest, dict[int, str]]:
    """`parse_openrlhf`, as `parse_beside`."""
    if len(body) <= _SMALL_BYTES:
        return parse_openrlhf(body)
    if (sound := _parse_sound(body, OpenRlhfRequest)) is not None:
        return sound, {}
    return await asyncio.get_running_loop().run_in_executor(_LOOKS, parse_openrlhf, body)


async def parse_slime_beside(body: bytes) -> tuple[SlimeRequest, dict[int, str]]:
    """The request, and what cannot be read in its one item, which has no text then; raises as `parse` does."""
    try:
        return await parse_beside(body, SlimeRequest), {}
    except InvalidRequestError:
        request = await asyncio.get_running_loop().run_in_executor(_LOOKS, _read, body)
        if not isinstance(request, dict) or not (problem := reading.problem_of(request)):
            raise
        return SlimeRequest("", ""), {0: problem}


def _parse_sound(body: bytes, kind: type[Body]) -> Body | None:
    """None where there is a fault, whatever it is."""
    try:
        parsed = _DECODERS[kind](body)
    except (ValueError, RecursionError):
        return None
    return parsed if _has_single_keys(body) else None  # type: ignore[return-value]  # the table is by the very type


def parse(body: bytes, kind: type[Body]) -> Body:
    """Parses and validates.

    Items of a ScoreRequest that hold what cannot be read become `UnreadableItem`.

    Raises:
        InvalidRequestError: it is not JSON, not what the schema asks for, or an object names a key twice, which parsers
            read in different ways.
    """
    try:
        parsed = _DECODERS[kind](body)
        if not _has_single_keys(body):
            reading.read(body)  # says which key
        return parsed  # type: ignore[return-value]  # the table is by the very type
    except (ValueError, RecursionError) as error:
        if kind is ScoreRequest and (rescued := _rescue(body)) is not None:
            return rescued  # type: ignore[return-value]
        raise InvalidRequestError(" ".join(str(error).split())[:500]) from None


def _has_single_keys(body: bytes) -> bool:
    """False: some object may name a key twice."""
    try:
        jiter.from_json(body, catch_duplicate_keys=True, cache_mode="none")
    except ValueError:
        return False
    return True


def parse_openrlhf(body: bytes) -> tuple[OpenRlhfRequest, dict[int, str]]:
    """The request, and what cannot be read in which of its items, which have no text then; raises as `parse` does."""
    try:
        return parse(body, OpenRlhfRequest), {}
    except InvalidRequestError:
        request, nothing = _read(body), {"query": "", "prompts": "", "labels": None}
        given = {name: request[name] for name in nothing if request.get(name)} if isinstance(request, dict) else {}
        lists: list[Any] = list(given.values())
        if not lists or not all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists):
            raise
        told = [reading.problem_of(list(parts)) for parts in zip(*lists, strict=True)]
        problems = {index: problem for index, problem in enumerate(told) if problem}
        if not problems:
            raise
        for name, values in given.items():
            for index in problems:
                values[index] = nothing[name]
        return parse(msgspec.json.encode({**request, **given}), OpenRlhfRequest), problems


def unreadable(items: Sequence[ScoreItem], problems: Mapping[int, str]) -> list[ScoreItem]:
    """The items, with those that could not be read marked as such."""
    return [
        UnreadableItem("", id=item.id, problem=problems[index]) if index in problems else item
        for index, item in enumerate(items)
    ]


def _read(body: bytes) -> Any:
    """Any JSON, None if it is none; InvalidRequestError for a key that is there twice."""
    try:
        return reading.read(body)
    except reading.DuplicateKeyError as error:
        raise InvalidRequestError(str(error)) from None
    except (ValueError, RecursionError):
        return None


def _rescue(body: bytes) -> ScoreRequest | None:
    """The request, if only values of single items cannot be read. None: there is another fault, already named.

    InvalidRequestError for a key that is there twice.
    """
    request = _read(body)
    items = request.get("items") if isinstance(request, dict) else None
    if not isinstance(items, list):
        return None
    problems = [reading.problem_of(item) for item in items]
    if not any(problems):
        return None
    sound = [{"completion": ""} if problem else item for item, problem in zip(items, problems, strict=True)]
    try:
        parsed = _DECODERS[ScoreRequest](msgspec.json.encode({**request, "items": sound}))
    except (TypeError, ValueError, RecursionError):
        return None
    assert isinstance(parsed, ScoreRequest)
    read = [
        UnreadableItem("", id=reading.id_of(raw), problem=problem) if problem else item
        for item, raw, problem in zip(parsed.items, items, problems, strict=True)
    ]
    return msgspec.structs.replace(parsed, items=read)


class Texts(NamedTuple):
    """The texts of a request's items, taken out once: looking at each item again takes as long as half of a reward."""

    prompts: list[str]
    completions: list[str]


def check_limits(texts: Texts, settings: ServiceSettings) -> None:
    """Refuses too many items and texts that are too long, naming the limit."""
    if (number := len(texts.prompts)) > settings.max_items:
        raise LimitExceededError(f"{number} items are more than max_items = {settings.max_items}; send fewer")
    limit = settings.max_text_chars
    if any(max(map(len, column), default=0) > limit for column in texts):
        lengths = [max(len(prompt), len(completion)) for prompt, completion in zip(*texts, strict=True)]
        index, length = next((index, length) for index, length in enumerate(lengths) if length > limit)
        raise LimitExceededError(f"items.{index}: a text of {length} characters is over max_text_chars = {limit}")
