"""Calls of actors: by reference to the method, so that a type checker sees arguments and answer, with a limit of time.

    report = await worker.call(RolloutActor.publish, timeout_s=60.0)(payload)

The method is the actor class's own, and its arguments follow in parentheses of their own: Python's types have no place
for a keyword of ours, `timeout_s`, among the parameters of another function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import ray
from ray.exceptions import RayActorError, RayTaskError

from orchestration.errors import RemoteTimeoutError, WorkerDiedError, one_line

Host = TypeVar("Host")
"""The actor's class."""
Params = ParamSpec("Params")
Result = TypeVar("Result")


@dataclass(slots=True)
class RemoteActor(Generic[Host]):
    """An actor's handle with what error messages need to say about it."""

    name: str
    handle: Any
    where: str = "not started yet"

    @overload
    def call(
        self, method: Callable[Concatenate[Host, Params], Coroutine[Any, Any, Result]], *, timeout_s: float
    ) -> Callable[Params, Coroutine[Any, Any, Result]]: ...

    @overload
    def call(
        self, method: Callable[Concatenate[Host, Params], Result], *, timeout_s: float
    ) -> Callable[Params, Coroutine[Any, Any, Result]]: ...

    def call(self, method: Callable[..., Any], *, timeout_s: float) -> Callable[..., Coroutine[Any, Any, Any]]:
        """A method of the actor as an async function here, which waits for the answer at most `timeout_s` seconds.

        Args:
            method: a method of the actor's class, sync or async. A `shared` value stands for any of its arguments.

        Raises (the function that is returned):
            RemoteTimeoutError: the actor did not answer in time.
            WorkerDiedError: the actor's process died.
            Exception: the method's own, as it was raised there.
        """

        async def called(*args: Any, **kwargs: Any) -> Any:
            return await self._begun(method, *args, **kwargs).result(timeout_s=timeout_s)

        return called

    def begin(self, method: Callable[Concatenate[Host, Params], Result]) -> Callable[Params, Pending[Result]]:
        """As `call`, of a sync method; the function does not wait, and returns what can be waited for."""
        return lambda *args, **kwargs: self._begun(method, *args, **kwargs)

    def _begun(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Pending[Any]:
        name = method.__name__
        return Pending(actor=self, method=name, reference=getattr(self.handle, name).remote(*args, **kwargs))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending(Generic[Result]):
    """A call under way; its answer will lie in the object store of the actor's node."""

    actor: RemoteActor[Any]
    method: str
    reference: Any
    """Ray's, which as an argument of another call stands for the answer."""

    async def result(self, *, timeout_s: float) -> Result:
        """Wait for the answer, and bring it here. Raises as `RemoteActor.call` does."""
        answer: Result = await self._translated(self.reference, timeout_s)
        return answer

    async def settled(self, *, timeout_s: float) -> None:
        """Wait until the answer is there, without bringing it here. Raises as `RemoteActor.call` does."""

        async def ready() -> None:
            loop = asyncio.get_running_loop()
            done, _ = await loop.run_in_executor(
                None, lambda: ray.wait([self.reference], timeout=timeout_s, fetch_local=False)
            )
            if not done:
                raise TimeoutError

        await self._translated(ready(), timeout_s)

    async def _translated(self, answer: Awaitable[Any], timeout_s: float) -> Any:
        who = f"{self.actor.name} ({self.actor.where})"
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise RemoteTimeoutError(
                f"{who} did not answer {self.method} within {timeout_s:g} s; its log is in {log_folder()}"
            ) from error
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise WorkerDiedError(
                f"{who} died during {self.method}: {one_line(error, 400)} Its log is in {log_folder()}; "
                f"a process killed by the system usually means too little memory"
            ) from error


def shared(value: Result) -> Result:
    """A value in the object store, for calls of several actors; what is returned stands for it as an argument."""
    reference: Result = ray.put(value)
    return reference


def log_folder() -> str:
    """Where Ray keeps the actors' logs."""
    node = ray._private.worker.global_worker.node
    return str(node.get_logs_dir_path()) if node is not None else "Ray's session folder"
