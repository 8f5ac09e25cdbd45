"""Our client for callers that block: `RewardClient` on an event loop in a thread of its own, one thread a process.

So that there is one client only, with hard time-outs, and so that calls from many threads are sent together.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from reward_service.clients.asynchronous import RewardClient, parse_url, shown_url
from reward_service.clients.errors import RequestRefusedError, RewardServiceUnavailable
from reward_service.types import ItemResult, RewardItem, RewardSpec

Answer = TypeVar("Answer")

_GRACE_S = 5.0
_STOP_TIMEOUT_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientSettings:
    """How a service is reached; see `RewardClient`."""

    url: str
    api_key: str | None = None
    ca_file: str | Path | None = None
    timeout_s: float = 30.0
    deadline_s: float = 300.0
    max_concurrency: int = 16
    batch_window_s: float = 0.0
    use_proxy: bool = False
    max_items: int = 256
    """Most items of one request: a larger call is sent as several at once, a smaller one may be sent with others."""

    def __repr__(self) -> str:
        return f"ClientSettings(url={shown_url(parse_url(self.url))!r})"  # nothing secret


class BlockingRewardClient:
    """Scores completions through a reward service. Threads may share it; it survives forks and pickling, without its
    connections. Raises what `RewardClient` raises."""

    def __init__(self, settings: ClientSettings) -> None:
        """Raises ValueError for settings that cannot work."""
        self.settings = settings
        self._client = self._make()
        self._thread: _LoopThread | None = None
        """Where the client is in use; None: nowhere yet."""

    def score(
        self,
        items: Sequence[RewardItem],
        rewards: Sequence[RewardSpec],
        run_id: str | None = None,
        policy_version: int | None = None,
    ) -> list[ItemResult]:
        """As `RewardClient.score`, but it blocks, for `deadline_s` of the settings at most.

        Raises:
            RewardServiceUnavailable: no answer before the deadline, or the client's thread is stuck.
            BadAnswerError, RequestRefusedError, ValueError: as there.
        """
        future = self.submit(items, rewards, run_id, policy_version)
        try:
            return future.result(self.settings.deadline_s + _GRACE_S)
        except TimeoutError:  # the loop is held up, as every call on it has a deadline
            message = f"no answer of {self.settings!r} in {self.settings.deadline_s:g} s: the client's thread is stuck"
            raise RewardServiceUnavailable(message) from None
        finally:
            future.cancel()

    def submit(
        self,
        items: Sequence[RewardItem],
        rewards: Sequence[RewardSpec],
        run_id: str | None = None,
        policy_version: int | None = None,
    ) -> Future[list[ItemResult]]:
        """The same without waiting; `asyncio.wrap_future` makes it awaitable on any event loop.

        Args:
            items: Any number; the client cuts them into requests.
            rewards: At least one.
            run_id: Stands in the audit log.
            policy_version: Of the policy that wrote the completions; stands there too.

        Returns:
            A future of the results, in the order of `items`; it raises what `score` raises.
        """
        with _lock:
            thread = _thread_of_this_process()
            if self._thread is not thread:
                if self._thread is not None:  # this is a fork
                    _of_a_parent.append(self._client)
                    self._client = self._make()
                self._thread = thread
                thread.adopt(self._client, self)
            client = self._client
        return thread.submit(
            _score_in_parts(client, list(items), rewards, run_id, policy_version, self.settings.max_items)
        )

    def _make(self) -> RewardClient:
        settings = self.settings
        return RewardClient(
            settings.url,
            timeout_s=settings.timeout_s,
            deadline_s=settings.deadline_s,
            max_concurrency=settings.max_concurrency,
            api_key=settings.api_key,
            ca_file=settings.ca_file,
            batch_window_s=settings.batch_window_s,
            use_proxy=settings.use_proxy,
            batch_items=settings.max_items,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["settings"])  # type: ignore[misc]  # the same object, as if new


async def _score_in_parts(
    client: RewardClient,
    items: list[RewardItem],
    rewards: Sequence[RewardSpec],
    run_id: str | None,
    policy_version: int | None,
    max_items: int,
) -> list[ItemResult]:
    """All parts at once, as far as the client's places reach; one that is too large for the service in halves."""

    async def score(part: list[RewardItem]) -> list[ItemResult]:
        try:
            return await client.score(part, rewards, run_id, policy_version)
        except RequestRefusedError as error:
            if error.status != httpx.codes.REQUEST_ENTITY_TOO_LARGE or len(part) == 1:
                raise
        half = len(part) // 2
        return await score(part[:half]) + await score(part[half:])

    tasks = [asyncio.ensure_future(score(items[at : at + max_items])) for at in range(0, len(items), max_items)]
    try:
        return [result for part in await asyncio.gather(*tasks) for result in part]
    finally:
        for task in tasks:  # the others, if one has failed
            task.cancel()


class _LoopThread:
    """An event loop that runs in a daemon thread of the process that made it, and the clients that live on it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._clients: set[RewardClient] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="reward-client", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def submit(self, coroutine: Coroutine[Any, Any, Answer]) -> Future[Answer]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def adopt(self, client: RewardClient, owner: object) -> None:
        """Closes the client when its owner is gone or the process ends; in a fork never."""
        self._clients.add(client)
        weakref.finalize(owner, self._release, client).atexit = False

    def _release(self, client: RewardClient) -> None:
        if os.getpid() == self._pid and self._loop.is_running():
            self._clients.discard(client)
            self.submit(client.aclose())

    def _stop(self) -> None:
        if os.getpid() == self._pid:
            self.submit(self._close())
            self._thread.join(_STOP_TIMEOUT_S)

    async def _close(self) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        for client in list(self._clients):
            await client.aclose()
        self._loop.stop()


_lock = threading.Lock()
_thread: _LoopThread | None = None
_of_a_parent: list[Any] = []
"""What a fork has copied, kept so that nothing of it is ever finalised here: its sockets and selector are the parent's
as well, and taking them down would reach into the parent."""


def run_beside(work: Coroutine[Any, Any, Answer], timeout_s: float) -> Answer:
    """What `work` gives, run on the clients' event loop; TimeoutError after `timeout_s`, however it goes on."""
    with _lock:
        thread = _thread_of_this_process()
    future = thread.submit(work)
    try:
        return future.result(timeout_s)
    finally:
        future.cancel()


def _thread_of_this_process() -> _LoopThread:
    """To be called under the lock."""
    global _thread  # noqa: PLW0603  # one a process, made when it is first needed
    if _thread is None:
        _thread = _LoopThread()
    return _thread


def _after_fork() -> None:
    """A fork has the thread's objects but not the thread, and the lock as it happened to be."""
    global _lock, _thread
    _of_a_parent.append(_thread)
    _lock, _thread = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)
