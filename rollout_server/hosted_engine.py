"""An engine in a process forked from one that has imported vLLM already: how engines run on CPUs.

vLLM spawns its processes on CPUs, and each would import everything again, one after the other. Here one process
imports, once for any number of engines; it forks an engine's process, which forks vLLM's core, which forks the worker.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from rollout_server.config import Device, RolloutConfig
from rollout_server.counters import Counters, EngineLoad
from rollout_server.engine import VllmEngine
from rollout_server.engine_settings import import_environment
from rollout_server.errors import EngineDeadError, EngineStartError
from rollout_server.forking.client import (
    ADDRESS,
    ForkedProcess,
    ForkedProcessEndedError,
    ForkServerHandle,
    is_served,
)
from rollout_server.forking.client import start_fork_server as start_server
from rollout_server.forking.hosted import host
from rollout_server.types import AdapterVersion, Completion, EngineStep, Prompt, SamplingParams

_TARGET = "rollout_server.hosted_engine:host_engine"
_MODULES = (
    "rollout_server.hosted_engine",
    "rollout_server.vllm_extension",
    "rollout_server.cpu_lora_plugin",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
)

Params = ParamSpec("Params")
Result = TypeVar("Result")

_own_server: ForkServerHandle | None = None


def start_fork_server(further: Sequence[str] = ()) -> str:
    """Have vLLM imported, now, for the engines that this process and those below it will start on CPUs.

    Args:
        further: modules for other processes that are to be forked from the same server.

    Returns at once, with the server's address. One that is there already, of this process or one above it, is used.
    """
    global _own_server  # noqa: PLW0603  # one for a process
    if (address := os.environ.get(ADDRESS)) is not None and is_served(address):
        return address
    if _own_server is None or not _own_server.running:
        environment = {"OPENBLAS_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **import_environment("cpu"), **os.environ}
        _own_server = start_server((*_MODULES, *further), environment)
        atexit.register(_own_server.stop)
        os.environ[ADDRESS] = _own_server.address
    return _own_server.address


@dataclass(slots=True)
class HostedEngine:
    """`VllmEngine` in a process of its own, with the same methods and errors."""

    model_path: str
    config: RolloutConfig
    device: Device
    seed: int
    _process: ForkedProcess | None = None
    _counters: Counters = field(default_factory=Counters)

    async def start(self) -> None:
        """Load the model and start vLLM's processes. Takes some seconds, and tens where vLLM is not imported yet.

        Raises:
            EngineStartError: The model cannot be served, or the start took longer than `start_timeout_s`.
        """
        process = ForkedProcess(start_fork_server(), self._counters.follow)
        try:
            async with asyncio.timeout(self.config.start_timeout_s):
                await process.start(_TARGET, self.model_path, self.config, self.device, self.seed)
                await process.call(VllmEngine.keep_to_cores.__name__)
        except TimeoutError:
            raise EngineStartError.timed_out(self.model_path, self.device, self.config.start_timeout_s) from None
        except ForkedProcessEndedError as error:
            raise EngineStartError(f"vLLM did not start on {self.model_path!r} ({self.device}): {error}") from error
        self._process = process

    async def generate(self, prompt: Prompt, sampling: SamplingParams, lora: AdapterVersion | None) -> list[Completion]:
        return await self._call(VllmEngine.generate, prompt, sampling, lora)

    async def prompt_logprobs(
        self, token_ids: Sequence[int], versions: Sequence[AdapterVersion | None]
    ) -> list[list[float]]:
        return await self._call(VllmEngine.prompt_logprobs, token_ids, versions)

    async def add_lora(self, version: AdapterVersion) -> None:
        await self._call(VllmEngine.add_lora, version)

    async def add_lora_and_probe(
        self,
        version: AdapterVersion,
        token_ids: Sequence[int],
        versions: Sequence[AdapterVersion | None],
        before: AdapterVersion | None,
    ) -> tuple[float, list[list[float]], bool]:
        return await self._call(VllmEngine.add_lora_and_probe, version, token_ids, versions, before)

    async def same_adapters(self, first: AdapterVersion, second: AdapterVersion | None) -> bool:
        return await self._call(VllmEngine.same_adapters, first, second)

    async def remove_lora(self, version: AdapterVersion) -> None:
        await self._call(VllmEngine.remove_lora, version)

    async def check_full_tensors(self, version: AdapterVersion) -> None:
        await self._call(VllmEngine.check_full_tensors, version)

    async def load_full_tensors(self, version: AdapterVersion) -> None:
        await self._call(VllmEngine.load_full_tensors, version)

    async def check(self) -> None:
        await self._call(VllmEngine.check)

    async def drop_prefix_cache(self) -> None:
        await self._call(VllmEngine.drop_prefix_cache)

    def load(self) -> EngineLoad:
        return self._counters.load

    def recent_steps(self) -> tuple[EngineStep, ...]:
        return tuple(self._counters.steps)

    async def shutdown(self) -> None:
        """Stop the engine and its process; harmless when there is none."""
        process, self._process = self._process, None
        if process is not None:
            await process.close()

    async def _call(
        self,
        method: Callable[Concatenate[VllmEngine, Params], Coroutine[Any, Any, Result]],
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> Result:
        if self._process is None:
            raise EngineDeadError(f"the vLLM engine of {self.model_path!r} is not running: call start() first")
        try:
            answer: Result = await self._process.call(method.__name__, *args, **kwargs)
        except ForkedProcessEndedError as error:
            raise EngineDeadError(
                f"the vLLM engine of {self.model_path!r} ({self.device}) died: its process: {error}"
            ) from error
        return answer


def host_engine(connection: socket.socket, model_path: str, config: RolloutConfig, device: Device, seed: int) -> None:
    """What a process forked for an engine does: start it, and answer calls to it until the client leaves.

    Args:
        connection: To the client, a `ForkedProcess`.
        model_path: A folder that vLLM loads.
        config: With more than one GPU an engine, its workers are spawned instead of forked.
        device: `cpu` or `cuda`.
        seed: Of the engine's sampling.
    """

    from rollout_server.vllm_extension import share_gloo_device, wait_asleep

    def make(tell: Callable[[Any], None]) -> VllmEngine:
        # Workers on several NUMA nodes are bound to them by variables that only a new program reads: they are spawned.
        fork = config.tensor_parallel_size == 1
        engine = VllmEngine(model_path=model_path, config=config, device=device, seed=seed, fork=fork)
        wait_asleep()
        share_gloo_device()
        engine.start_here()
        engine._counters.tell = tell
        return engine

    host(connection, make)
