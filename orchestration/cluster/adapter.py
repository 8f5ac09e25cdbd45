"""An adapter on its way from the learner to the rollout workers."""

from __future__ import annotations

from typing import Any

from orchestration.cluster.calls import Pending
from rollout_server.types import AdapterPayload


class RayAdapter:
    """An exported adapter in Ray's object store."""

    def __init__(self, exported: Pending[int, AdapterPayload], timeout_s: float) -> None:
        self._exported, self._timeout_s = exported, timeout_s

    @property
    def reference(self) -> Any:
        """Stands for the payload in calls of the workers: their nodes fetch it from the learner's."""
        return self._exported.reference

    async def fetch(self) -> AdapterPayload:
        return await self._exported.result(timeout_s=self._timeout_s)
