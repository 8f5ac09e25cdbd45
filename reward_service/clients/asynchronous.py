"""Our client: asynchronous, bounded in time, in tries and in concurrency, and distrustful of answers."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from reward_service.clients.batching import Batcher
from reward_service.clients.errors import BadAnswerError, RequestRefusedError, RewardServiceUnavailable
from reward_service.clients.wire import ScoreCall, decode_response, error_detail, make_call
from reward_service.retry import GaveUpError, RetryLaterError, retry, retry_after_s
from reward_service.types import ItemResult, RewardItem, RewardSpec

_READY_POLL_S = 0.1
_MAX_RESPONSE_BYTES = 256 * 2**20
_RETRIED_STATUSES = frozenset({408, 425, 429})


class RewardClient:
    """Scores completions through a reward service.

    A call waits for one of `max_concurrency` places, then tries until it has a valid answer or `deadline_s` is over;
    each try is given `timeout_s`. What is tried again, after an exponential back-off with full jitter or the time that
    Retry-After asks for: connections that fail, time-outs, 408, 425, 429, 5xx, and answers that make no sense.

    With `batch_window_s`, calls of the same rewards, run and policy version that come within so many seconds of the
    first are sent together, `batch_items` items a request at most, and each gets its own results. It is off by default:
    a trainer that calls once a group would only wait. It is for callers of single items: 3000 at once are scored at
    12,600 a second with 2 ms and at 700 without (two cores, the service on one of them), but a call on its own takes
    6 ms instead of 2.

    A URL may carry credentials, `https://anyone:KEY@host`; messages never show them.

        async with RewardClient(url) as client:
            results = await client.score(items, [RewardSpec(name="gsm8k_correctness")])
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 30.0,
        deadline_s: float = 300.0,
        max_concurrency: int = 16,
        max_tries: int | None = None,
        api_key: str | None = None,
        ca_file: str | Path | None = None,
        batch_window_s: float = 0.0,
        batch_items: int = 256,
        use_proxy: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """A client that has not connected yet.

        Args:
            url: where the service is, `http://HOST:PORT`.
            timeout_s: time of one try.
            deadline_s: time of a call with all its tries, waiting for a place included.
            max_concurrency: calls that are under way at a time.
            max_tries: of a call; None: as many as the deadline allows.
            api_key: sent as a bearer token.
            ca_file: certificates (PEM) to trust, instead of the public ones.
            batch_window_s: how long a call waits for others to be sent with; 0 sends each by itself.
            batch_items: most items of calls that are sent together.
            use_proxy: go through the proxies that the environment names, with the key, instead of straight.
            transport: replaces the network, for tests.

        Raises:
            ValueError: arguments that cannot work.
        """
        parsed = parse_url(url)
        if not (timeout_s > 0 and deadline_s > 0 and max_concurrency >= 1):
            raise ValueError(
                f"timeout_s={timeout_s}, deadline_s={deadline_s} and max_concurrency={max_concurrency} must be positive"
            )
        if not (0 <= batch_window_s < deadline_s and batch_items >= 1):
            raise ValueError(
                f"batch_window_s={batch_window_s} must be in [0, deadline_s={deadline_s}) and"
                f" batch_items={batch_items} at least 1"
            )
        self._url = url.rstrip("/")
        self._shown_url = shown_url(parsed)
        self._timeout_s = timeout_s
        self._deadline_s, self._max_tries = deadline_s, max_tries
        self.api_key = api_key
        self._places = asyncio.Semaphore(max_concurrency)
        headers = {"accept-encoding": "identity", "content-type": "application/json", **key_header(api_key)}
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=max_concurrency + 1, max_keepalive_connections=max_concurrency + 1),
            transport=transport,
            verify=authorities(ca_file),
            trust_env=use_proxy,
        )
        self._batcher = (
            Batcher(self._send, window_s=batch_window_s, max_items=batch_items) if batch_window_s > 0 else None
        )

    @property
    def address(self) -> str:
        """The service's, as it was given."""
        return self._url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Sends what still waits to be sent together, then closes the connections."""
        if self._batcher is not None:
            await self._batcher.drain()
        await self._http.aclose()

    async def score(
        self,
        items: Sequence[RewardItem],
        rewards: Sequence[RewardSpec],
        run_id: str | None = None,
        policy_version: int | None = None,
    ) -> list[ItemResult]:
        """Scores completions.

        Args:
            items: the completions, each with its reference.
            rewards: what to score them by; every reward scores every item.
            run_id: the training run, for the audit log.
            policy_version: the adapter version that wrote the completions, for the audit log.

        Returns:
            One result an item, in the items' order. A score that is None was not given, and its reason says why.

        Raises:
            RewardServiceUnavailable: no answer before the deadline.
            BadAnswerError: nothing but nonsense before the deadline.
            RequestRefusedError: the service refuses the request; not tried again.
            ValueError: something in the request cannot be put into JSON.
        """
        if not items:
            return []
        deadline = asyncio.get_running_loop().time() + self._deadline_s
        call = make_call(items, rewards, run_id=run_id, policy_version=policy_version, deadline=deadline)
        return await (self._send(call) if self._batcher is None else self._batcher.score(call))

    async def _send(self, call: ScoreCall) -> list[ItemResult]:
        """Tries until the call's deadline."""
        body = call.body

        async def attempt() -> list[ItemResult]:
            try:
                return decode_response(await self._post(body), call.items, call.rewards)
            except BadAnswerError as error:
                raise RetryLaterError(error) from None

        try:
            return await retry(attempt, deadline=call.deadline, max_tries=self._max_tries, holding=self._places)
        except GaveUpError as error:
            num_tries, last = error.num_tries, error.last
        if last is None:
            last = TimeoutError("still waiting for an answer, or for a free place among the concurrent calls")
        kind = BadAnswerError if isinstance(last, BadAnswerError) else RewardServiceUnavailable
        tried = f"{num_tries} {'try' if num_tries == 1 else 'tries'} within {self._deadline_s:g} s"
        raise kind(f"reward service {self._shown_url}: no usable answer in {tried}; the last: {last}")

    async def health(self, timeout_s: float) -> None:
        """Waits until the service says it is ready, however often it has to be asked.

        Args:
            timeout_s: In all.

        Raises:
            RewardServiceUnavailable: It was not ready by then; the message has the last answer.
        """
        last = "no answer"
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        response = await self._http.get(f"{self._url}/readyz", timeout=timeout_s)
                    except httpx.RequestError as error:
                        last = named(error)
                    else:
                        if response.status_code == httpx.codes.OK:
                            return
                        last = f"status {response.status_code}, {error_detail(response.content)}"
                    await asyncio.sleep(min(_READY_POLL_S, timeout_s / 10))
        except TimeoutError:
            message = (
                f"reward service {self._shown_url} was not ready within {timeout_s:g} s: {last}; is it running there?"
            )
            raise RewardServiceUnavailable(message) from None

    async def _post(self, body: bytes) -> bytes:
        """One try. The body of a 200; RetryLaterError if another try may help; RequestRefusedError if not."""
        try:
            async with (
                asyncio.timeout(self._timeout_s),  # httpx's own limits are for each read, which a drip would renew
                self._http.stream("POST", f"{self._url}/v1/score", content=body) as response,
            ):
                answer = bytearray()
                async for part in response.aiter_bytes():
                    answer += part
                    if len(answer) > _MAX_RESPONSE_BYTES:
                        raise BadAnswerError(f"an answer of more than {_MAX_RESPONSE_BYTES} bytes")
        except TimeoutError:
            raise RetryLaterError(RewardServiceUnavailable(f"no answer within {self._timeout_s:g} s")) from None
        except httpx.RequestError as error:
            raise RetryLaterError(RewardServiceUnavailable(named(error))) from None
        status = response.status_code
        if status == httpx.codes.OK:
            return bytes(answer)
        message = f"status {status}, {_elsewhere(response) or error_detail(bytes(answer))}"
        if status in _RETRIED_STATUSES or status >= 500:
            wait_s = retry_after_s(response.headers)
            raise RetryLaterError(RewardServiceUnavailable(message), wait_s=wait_s)
        raise RequestRefusedError(f"reward service {self._shown_url} refused the request: {message}", status)


def key_header(api_key: str | None) -> dict[str, str]:
    """What carries a key. Blanks and line ends around it, which files and secrets have, are no part of it; ValueError,
    which does not show it, if the rest cannot be one."""
    if api_key is None:
        return {}
    key = api_key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("api_key holds no API key, one line of printable ASCII; None is for a service without keys")
    return {"authorization": f"Bearer {key}"}


def authorities(ca_file: str | Path | None) -> ssl.SSLContext | bool:
    """Whose certificates are trusted: those of a file, of SSL_CERT_FILE, or the public ones."""
    named = ca_file or os.environ.get("SSL_CERT_FILE")
    return True if named is None else trusting(named)


def parse_url(url: str) -> httpx.URL:
    """ValueError if it is not one to post to."""
    shown = re.sub("//[^/@]*@", "//…@", url)
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"reward service url {shown!r}: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"reward service url {shown!r} is not of the form http://HOST:PORT")
    if parsed.query or parsed.fragment:
        raise ValueError(f"reward service url {shown!r} has a query or a fragment; it is http://HOST:PORT[/PREFIX]")
    return parsed


def shown_url(url: httpx.URL) -> str:
    """For messages: without credentials."""
    return str(url.copy_with(username=None, password=None)).rstrip("/")


def trusting(ca_file: str | Path) -> ssl.SSLContext:
    """Trusts these certificates alone. ValueError if there are none."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # SSLError is one
        raise ValueError(f"ca_file {str(ca_file)!r} cannot be used: {error}; it must hold certificates (PEM)") from None


def is_distrust(error: BaseException | None) -> bool:
    """Whether the other side's certificate is why."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _elsewhere(response: httpx.Response) -> str:
    """Where a redirect points. It is not followed: completions and keys would go to who knows whom."""
    where = response.headers.get("location")
    return f"it points to {where!r:.200}: give the url that answers itself" if where is not None else ""


def named(error: Exception) -> str:
    """What went wrong on the way, with the remedy where one is known."""
    name = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{name}; ca_file, or SSL_CERT_FILE, names the authorities (PEM) to trust" if is_distrust(error) else name
