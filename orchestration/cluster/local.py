"""A rollout worker in this process, without Ray: for `rlvr eval` and for measuring."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestration.errors import DataError
from orchestration.run.ports import AdapterHandle
from rollout_server.config import Device, RolloutConfig
from rollout_server.types import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AdapterPayload,
    AdapterProbe,
    Completion,
    Prompt,
    PublishReport,
    SamplingParams,
)
from rollout_server.worker import RolloutWorker


class LocalGenerator:
    """The `Generator` port over one worker."""

    max_sequences = None

    def __init__(self, worker: RolloutWorker) -> None:
        self._worker = worker

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        return await self._worker.generate(prompt, sampling)

    async def publish(self, adapter: AdapterHandle) -> Sequence[PublishReport]:
        assert isinstance(adapter, LocalAdapter)
        return [await self._worker.publish(adapter.payload, adapter.probe)]

    async def drop_prefix_cache(self) -> None:
        """What follows is computed as by an engine that has just been started."""
        await self._worker.drop_prefix_cache()


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalAdapter:
    """An adapter that is already here."""

    payload: AdapterPayload
    probe: AdapterProbe | None = None
    """None: nobody knows what it should say."""

    async def fetch(self) -> AdapterPayload:
        return self.payload


def read_adapter(folder: Path, *, version: int = 1) -> LocalAdapter:
    """A peft folder as an adapter version.

    Raises DataError naming the file that is missing.
    """
    files = []
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        path = folder / name
        if not path.is_file():
            raise DataError(f"adapter folder {str(folder)!r} has no {name}; give a peft folder such as RUN/adapter")
        files.append((name, path.read_bytes()))
    return LocalAdapter(payload=AdapterPayload(version=version, files=tuple(files)))


@asynccontextmanager
async def local_generator(
    *, model_path: Path, config: RolloutConfig, device: Device, seed: int = 0
) -> AsyncIterator[LocalGenerator]:
    """A worker in this process, which ends with the block.

    Args:
        model_path: a folder that the engine loads, as `resolve_model` and `served_model` make it.
        seed: of the engine's sampling.
    """
    worker = RolloutWorker(
        name="rollout-0",
        model_path=str(model_path),
        config=config,
        device=device,
        seed=seed,
        run_id=f"local-{os.getpid()}",
        metrics_sink=lambda values: None,
    )
    try:
        await worker.start()
        yield LocalGenerator(worker)
    finally:
        await worker.shutdown()
