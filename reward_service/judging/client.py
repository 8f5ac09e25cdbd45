"""Calls of an OpenAI-compatible chat endpoint: bounded in time, tries, concurrency and size of the answer."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, Final

import httpx
import msgspec

from reward_service.errors import ServiceStartError
from reward_service.judging.parse import BadVoteError
from reward_service.judging.settings import JudgeSettings
from reward_service.retry import GaveUpError, RetryLaterError, retry, retry_after_s
from reward_service.rewards.base import NotScorableError
from reward_service.types import Reason

logger = logging.getLogger(__name__)

_MAX_ANSWER_BYTES: Final = 4 * 2**20
_RETRIED: Final = frozenset({408, 409, 425, 429})
_OF_THE_ITEM: Final = frozenset({400, 413, 422})
"""Statuses that refuse this call, and not the caller."""
_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class JudgeUnavailableError(NotScorableError):
    """The endpoint gives no answer."""

    reason = Reason.UNAVAILABLE


class JudgeTimeoutError(NotScorableError):
    """The endpoint's answer did not come in time."""

    reason = Reason.TIMEOUT


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


_decode = msgspec.json.Decoder(_Completion).decode


class JudgeClient:
    """Asks the endpoint of the settings. All methods are called on one event loop."""

    def __init__(self, settings: JudgeSettings, *, deadline_s: float) -> None:
        """`deadline_s`: for one `ask` with all its tries. Reads the API key; ServiceStartError if there is none."""
        self._settings, self._deadline_s = settings, deadline_s
        self._places = asyncio.Semaphore(settings.max_concurrency)
        self._key = _read_key(settings)
        self._complained: set[int] = set()
        headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=settings.timeout_s,
            limits=httpx.Limits(
                max_connections=settings.max_concurrency, max_keepalive_connections=settings.max_concurrency
            ),
            trust_env=httpx.URL(settings.base_url).host not in _LOOPBACK_HOSTS,  # a proxy for the outside is none here
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def ask(self, fields: dict[str, Any]) -> str | None:
        """The content of the judge's message; `fields` are those of a chat completion beside model and limits.

        Raises JudgeUnavailableError, JudgeTimeoutError, or BadVoteError for an answer that was cut off or a call that
        is refused for what it holds.
        """
        body = {"model": self._settings.model, "max_tokens": self._settings.max_tokens, **fields}
        body |= self._settings.extra_body
        content = msgspec.json.encode({key: value for key, value in body.items() if value is not None})
        async with self._places:
            deadline = asyncio.get_running_loop().time() + self._deadline_s
            try:
                return await retry(lambda: self._post(content), deadline=deadline, max_tries=self._settings.max_tries)
            except GaveUpError as gave_up:
                if gave_up.timed_out or gave_up.last is None:
                    told = f"the judge did not answer within its {self._deadline_s:g} s"
                    raise JudgeTimeoutError(told) from None
                raise gave_up.last from None

    async def _post(self, content: bytes) -> str | None:
        """One call; RetryLaterError if another may help."""
        timeout_s = self._settings.timeout_s
        try:
            async with (
                asyncio.timeout(timeout_s),  # httpx's own limits are for each read, which a drip would renew
                self._http.stream("POST", f"{self._settings.base_url}/chat/completions", content=content) as response,
            ):
                answer = bytearray()
                async for part in response.aiter_bytes():
                    answer += part
                    if len(answer) > _MAX_ANSWER_BYTES:
                        raise BadVoteError(f"the judge's endpoint sent more than {_MAX_ANSWER_BYTES} bytes")
        except (TimeoutError, httpx.TimeoutException):
            raise RetryLaterError(
                JudgeTimeoutError(f"the judge did not answer a call within {timeout_s:g} s")
            ) from None
        except httpx.RequestError as error:
            told = f"the judge's endpoint cannot be reached: {type(error).__name__}"
            raise RetryLaterError(JudgeUnavailableError(told)) from None
        if response.status_code == httpx.codes.OK:
            return _content(bytes(answer))
        raise self._refusal(response, bytes(answer))

    def _refusal(self, response: httpx.Response, answer: bytes) -> Exception:
        status = response.status_code
        told = f"the judge's endpoint answers with status {status}"
        if status in _RETRIED or status >= 500:
            return RetryLaterError(JudgeUnavailableError(told), wait_s=retry_after_s(response.headers))
        if status in _OF_THE_ITEM:
            # Most often the input is too long; what the endpoint says of it is about what the requester has sent.
            return BadVoteError(f"{told}: {self._excerpt(answer)}")
        if status not in self._complained:  # once, and not for every item
            self._complained.add(status)
            logger.error("%s; are the settings judge.base_url, judge.model and the API key right?", told)
        return JudgeUnavailableError(told)

    def _excerpt(self, answer: bytes) -> str:
        """The beginning of an error, with the API key blotted out, should the endpoint have echoed it."""
        text = " ".join(answer[:2000].decode(errors="replace").split())
        return (text if self._key is None else text.replace(self._key, "…"))[:120]


def _content(answer: bytes) -> str | None:
    try:
        choice = _decode(answer).choices[0]
    except (ValueError, IndexError):
        raise RetryLaterError(JudgeUnavailableError("what the judge's endpoint sends is no chat completion")) from None
    if choice.finish_reason == "length":
        raise BadVoteError("the judge's answer was cut off at judge.max_tokens")
    return choice.message.content


def _read_key(settings: JudgeSettings) -> str | None:
    key = ""
    if settings.api_key_env is not None:
        source = f"judge.api_key_env: the environment variable {settings.api_key_env}"
        key = os.environ.get(settings.api_key_env, "").strip()
    elif settings.api_key_file is not None:
        source = f"judge.api_key_file: {settings.api_key_file}"
        try:
            key = settings.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ServiceStartError(f"{source} cannot be read: {type(error).__name__}") from None
    else:
        return None
    if not key or not key.isascii() or not key.isprintable():
        raise ServiceStartError(f"{source} holds no API key, one line of printable ASCII")
    return key
