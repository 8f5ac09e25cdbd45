"""An adapter on its way from the learner to the rollout workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from orchestration.cluster.calls import Pending
from orchestration.concurrency import kept_on
from orchestration.errors import ValueLostError
from rollout_server.types import AdapterPayload, AdapterProbe

Result = TypeVar("Result")


class RayAdapter:
    """An exported adapter in Ray's object store.

    Args:
        exported: The call that gives it.
        probe: Has the learner compute the probe, once somebody asks; while it is still at this version.
        again: Has the learner export it once more, at this version.
        timeout_s: Limit on bringing it here, seconds.
    """

    def __init__(
        self,
        exported: Pending[int, AdapterPayload],
        probe: Callable[[], Coroutine[Any, Any, AdapterProbe]],
        again: Callable[[], Coroutine[Any, Any, Pending[int, AdapterPayload]]],
        timeout_s: float,
    ) -> None:
        self._exported, self._ask, self._again, self._timeout_s = exported, probe, again, timeout_s
        self._probe: asyncio.Task[AdapterProbe] | None = None
        self._renewal: asyncio.Task[Pending[int, AdapterPayload]] | None = None

    @property
    def reference(self) -> Any:
        """Stands for the payload in calls of the workers: their nodes fetch it from the learner's."""
        return self._exported.reference

    async def probe(self) -> AdapterProbe:
        """What the learner says of it: the same for all workers, and for those that come later."""
        if self._probe is None:
            self._probe = asyncio.create_task(self._ask())
        return await kept_on(self._probe)

    async def given(self, use: Callable[[Any], Awaitable[Result]]) -> Result:
        """What `use` gives of the reference; of that of another export where the first is gone with its node.

        Raises:
            ValueLostError: That one is too, or the learner is at a later version by now.
        """
        reference = self.reference
        try:
            return await use(reference)
        except ValueLostError:
            if reference is self.reference:  # nobody else has had it renewed
                self._renewal = self._renewal or asyncio.create_task(self._again())
                self._exported, self._renewal = await kept_on(self._renewal), None
            return await use(self.reference)

    async def fetch(self) -> AdapterPayload:
        """Copied out of Ray's memory, which may go before the caller is done."""
        payload = await self.given(lambda _: self._exported.result(timeout_s=self._timeout_s))
        return replace(payload, files=tuple((name, bytes(content)) for name, content in payload.files))
