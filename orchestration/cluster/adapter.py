"""An adapter on its way from the learner to the rollout workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from orchestration.cluster.calls import Pending
from orchestration.concurrency import kept_on
from rollout_server.types import AdapterPayload, AdapterProbe


class RayAdapter:
    """An exported adapter in Ray's object store.

    Args:
        exported: The call that gives it.
        probe: Has the learner compute the probe, once somebody asks; while it is still at this version.
        timeout_s: Limit on bringing it here, seconds.
    """

    def __init__(
        self,
        exported: Pending[int, AdapterPayload],
        probe: Callable[[], Coroutine[Any, Any, AdapterProbe]],
        timeout_s: float,
    ) -> None:
        self._exported, self._ask, self._timeout_s = exported, probe, timeout_s
        self._probe: asyncio.Task[AdapterProbe] | None = None

    @property
    def reference(self) -> Any:
        """Stands for the payload in calls of the workers: their nodes fetch it from the learner's."""
        return self._exported.reference

    async def probe(self) -> AdapterProbe:
        """What the learner says of it: the same for all workers, and for those that come later."""
        if self._probe is None:
            self._probe = asyncio.create_task(self._ask())
        return await kept_on(self._probe)

    async def fetch(self) -> AdapterPayload:
        """Copied out of Ray's memory, which may go before the caller is done."""
        payload = await self._exported.result(timeout_s=self._timeout_s)
        return replace(payload, files=tuple((name, bytes(content)) for name, content in payload.files))
