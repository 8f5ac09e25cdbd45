"""What the pool holds: rollout workers, and the places that they come and go in. Nothing here imports ray."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from orchestration.cluster.upkeep.restarts import Restarts
from orchestration.run.ports import AdapterHandle
from rollout_server.errors import RolloutError
from rollout_server.types import Completion, Prompt, PublishReport, SamplingParams


class Member(Protocol):
    """A rollout worker."""

    @property
    def name(self) -> str:
        """For messages: its name, host and process."""
        ...

    async def start(self) -> None: ...

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]: ...

    async def publish(self, adapter: AdapterHandle) -> PublishReport: ...

    async def heartbeat(self) -> int:
        """Grows with every step of the engine. Raises one of the errors above when the worker is lost."""
        ...

    async def end(self) -> None:
        """End all its processes, whatever state they are in. Never raises, and returns in bounded time."""
        ...


Worker = TypeVar("Worker", bound=Member)


@dataclass(slots=True)
class Place(Generic[Worker]):
    """One worker's place, and who has it now."""

    index: int
    restarts: Restarts
    tenant: Worker | None = None
    """None: it never had one."""
    lost: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    report: PublishReport | None = None
    """Of the last publish to it."""
    under_way: int = 0
    """Calls that its engine has to work for."""
    watch: asyncio.Task[None] | None = None
    life: int = 0

    @property
    def member(self) -> Worker:
        """Who has it, or had it last."""
        assert self.tenant is not None
        return self.tenant


def in_turn(prompt: Prompt, among: Collection[int], num_workers: int) -> tuple[Prompt, Collection[int]]:
    """A prompt with its place among those of one worker, and that worker: the same in every start of a run, as long as
    all workers are there.

    Args:
        prompt: Its turn counts over all prompts of a step.
        among: Numbers of the workers that are there.
        num_workers: Of the run, those that are missing included. With some missing any may take the prompt.
    """
    if prompt.turn is None:
        return prompt, among
    if len(among) < num_workers:
        return replace(prompt, turn=None), among
    worker, turn = prompt.turn.among(num_workers)
    return replace(prompt, turn=turn), {worker}


def told(member: Member, error: Exception) -> str:
    """An error with the worker's name: that of an engine does not know it."""
    return f"{member.name}: {error}" if isinstance(error, RolloutError) else str(error)
