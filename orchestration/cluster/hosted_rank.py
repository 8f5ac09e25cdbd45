"""A learner rank in a process forked from the one that has imported everything: how ranks run on CPUs.

A rank's own imports, torch and DeepSpeed, take as long as vLLM's; the fork server that engines are forked from has them
already, and had them before Ray was up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from learner.errors import RankDiedError
from learner.types import ScoredGroup, UpdateMetrics
from rollout_server.forking.client import ADDRESS, ForkedProcess, ForkedProcessEndedError, is_served
from rollout_server.types import AdapterPayload, AdapterProbe

LEARNER_MODULES = ("learner.worker",)
"""What the fork server imports for ranks, beside what engines need."""

Params = ParamSpec("Params")
Result = TypeVar("Result")


def fork_server_here() -> str | None:
    """Where the fork server of this node listens; None when none was started above this process, or it is gone."""
    address = os.environ.get(ADDRESS)
    return address if address is not None and is_served(address) else None


class Rank(Protocol):
    """What `learner.worker.LearnerRank` does, wherever it runs; its methods are described there."""

    def start(self) -> None: ...
    def notes(self) -> tuple[str, ...]: ...
    def update(self, groups: Sequence[ScoredGroup], *, max_staleness: int, step: int) -> UpdateMetrics: ...
    def export_adapter(self) -> AdapterPayload: ...
    def probe_adapter(self) -> AdapterProbe: ...
    def save_checkpoint(self, folder: str, files: Mapping[str, bytes]) -> None: ...
    def load_checkpoint(self, folder: str) -> int: ...
    def shutdown(self) -> None: ...


class HostedRank:
    """`learner.worker.LearnerRank` in a process of its own, with the same methods and errors; calls block.

    Args:
        address: of the fork server.
        on_progress: told how many passes there were.
        settings: the other arguments of `LearnerRank`.
    """

    def __init__(self, address: str, *, on_progress: Callable[[int], None], **settings: Any) -> None:
        self._settings = settings
        self._process = ForkedProcess(address, on_progress)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="hosted-rank", daemon=True).start()

    def start(self) -> None:
        """Fork the process, and load the model there."""
        self._wait(self._process.start("orchestration.cluster.hosted_rank:host_rank", self._settings))

    def notes(self) -> tuple[str, ...]:
        return self._call(Rank.notes)

    def update(self, groups: Sequence[ScoredGroup], *, max_staleness: int, step: int) -> UpdateMetrics:
        return self._call(Rank.update, groups, max_staleness=max_staleness, step=step)

    def export_adapter(self) -> AdapterPayload:
        return self._call(Rank.export_adapter)

    def probe_adapter(self) -> AdapterProbe:
        return self._call(Rank.probe_adapter)

    def save_checkpoint(self, folder: str, files: Mapping[str, bytes]) -> None:
        self._call(Rank.save_checkpoint, folder, files)

    def load_checkpoint(self, folder: str) -> int:
        return self._call(Rank.load_checkpoint, folder)

    def shutdown(self) -> None:
        """End the process."""
        self._wait(self._process.close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _call(
        self, method: Callable[Concatenate[Any, Params], Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        answer: Result = self._wait(self._process.call(method.__name__, *args, **kwargs))
        return answer

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except ForkedProcessEndedError as error:
            raise RankDiedError(f"the learner's process died: {error}") from error


def host_rank(connection: socket.socket, settings: Mapping[str, Any]) -> None:
    """In the forked process: make the rank, and answer calls until the actor leaves.

    It hears neither SIGTERM nor SIGHUP: where those go to all processes of a run, it still has the update to end, and
    state to save.
    """
    from learner.worker import LearnerRank  # imported by the server already
    from rollout_server.forking.hosted import host

    def make(tell: Callable[[Any], None]) -> Rank:
        rank: Rank = LearnerRank(**settings, on_progress=tell)
        rank.start()
        return rank

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    host(connection, make)
