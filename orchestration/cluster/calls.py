"""Calls of actors: by reference to the method, so that a type checker sees arguments and answer, with a limit of time.

    report = await worker.call(RolloutActor.publish, timeout_s=60.0)(payload)

The method is the actor class's own, and its arguments follow in parentheses of their own: Python's types have no place
for a keyword of ours, `timeout_s`, among the parameters of another function.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import ray
from ray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError

from orchestration.cluster.upkeep.lines import Line, RaisedThereError
from orchestration.cluster.upkeep.whereabouts import Whereabouts
from orchestration.errors import (
    NoRoomError,
    RemoteTimeoutError,
    ValueLostError,
    WorkerDiedError,
    in_a_sentence,
    one_line,
)

Host = TypeVar("Host")
"""The actor's class."""
Params = ParamSpec("Params")
Result = TypeVar("Result")
Receipt = TypeVar("Receipt")

_TOLD: list[str] = []
"""Folders of Ray's logs that messages have named."""


@dataclass(slots=True)
class RemoteActor(Generic[Host]):
    """An actor's handle with what error messages need to say about it."""

    name: str
    handle: Any
    where: str = "not started yet"
    process: Whereabouts | None = None
    """None: not known yet."""
    line: Line | None = None
    """By which some of its methods are called, past Ray; None: none are."""

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
            WorkerDiedError: the actor's process or node died.
            RlvrError: the method met an OSError, such as a full disk there.
            ValueLostError: an argument or the answer is gone with the node that held it.
            LineCutError: the actor's line was cut meanwhile; whether the actor lives, Ray knows.
            Exception: the method's own, as it was raised there.
        """

        async def called(*args: Any, **kwargs: Any) -> Any:
            try:
                answer = self._begun(method, *args, **kwargs)
            except FULL as error:  # large arguments are put there
                raise _no_room(f"{self.name} ({self.where}) could not be asked to {method.__name__}", error) from error
            return await answer.result(timeout_s=timeout_s)

        return called

    def begin(
        self, method: Callable[Concatenate[Host, Params], Coroutine[Any, Any, tuple[Receipt, Result]]]
    ) -> Callable[Params, Pending[Receipt, Result]]:
        """As `call`, of a method that gives a pair: a small receipt, and what may stay where it is. The function does
        not wait, and returns what can be waited for."""

        def begun(*args: Any, **kwargs: Any) -> Any:
            name = method.__name__
            receipt, reference = getattr(self.handle, name).options(num_returns=2).remote(*args, **kwargs)
            return Pending(answer=_Answer(self, name, reference), receipt=_Answer(self, name, receipt))

        return begun

    def _begun(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> _Answer:
        name = method.__name__
        if self.line is not None and self.line.answers(name):
            return _Answer(self, name, self.line.ask(name, *args, **kwargs))
        return _Answer(self, name, getattr(self.handle, name).remote(*args, **kwargs))


@dataclass(frozen=True, slots=True)
class _Answer:
    """To come, of an actor's method."""

    actor: RemoteActor[Any]
    method: str
    reference: Any

    async def result(self, *, timeout_s: float) -> Any:
        """Wait for it, and bring it here. Raises as `RemoteActor.call` does."""
        who = f"{self.actor.name} ({self.actor.where})"
        try:
            async with asyncio.timeout(timeout_s):
                return await self.reference
        except TimeoutError as error:
            raise RemoteTimeoutError(
                f"{who} did not answer {self.method} within {timeout_s:g} s; its log is in {log_folder()}"
            ) from error
        except (RayTaskError, RaisedThereError) as error:
            if isinstance(error.cause, OSError):
                raise in_a_sentence(f"{who} could not {self.method}", error.cause) from error
            if isinstance(error.cause, FULL):
                raise _no_room(f"{who} could not {self.method}", error.cause) from error
            if isinstance(error.cause, ObjectLostError):
                raise _value_lost(f"{who} could not {self.method}", error.cause) from error
            raise error.cause from error
        except FULL as error:
            raise _no_room(f"{who} could not {self.method}", error) from error
        except ObjectLostError as error:
            raise _value_lost(f"the answer of {who} to {self.method} cannot be had", error) from error
        except RayError as error:
            died = f"{who} died during {self.method}: {_detail(error)}. Its log is in {log_folder()}"
            raise WorkerDiedError(died) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending(Generic[Receipt, Result]):
    """A call under way; its answer will lie in the object store of the actor's node, and a receipt comes here."""

    answer: _Answer
    receipt: _Answer

    @property
    def reference(self) -> Any:
        """Ray's, which as an argument of another call stands for the answer."""
        return self.answer.reference

    async def settled(self, *, timeout_s: float) -> Receipt:
        """Wait until the answer is there, without bringing it here; the receipt. Raises as `RemoteActor.call` does."""
        receipt: Receipt = await self.receipt.result(timeout_s=timeout_s)
        return receipt

    async def result(self, *, timeout_s: float) -> Result:
        """Wait for the answer, and bring it here. Raises as `RemoteActor.call` does."""
        answer: Result = await self.answer.result(timeout_s=timeout_s)
        return answer


FULL = (ObjectStoreFullError, OutOfDiskError)
"""Of a node's object store, and of the disk that it spills to."""


def _no_room(what: str, error: BaseException) -> NoRoomError:
    reason = one_line(error).partition(". ")[0].rstrip(".")
    return NoRoomError(f"{what}: Ray's object store is full, and so is the disk it spills to, on its node ({reason})")


def _value_lost(what: str, error: BaseException) -> ValueLostError:
    reason = one_line(error).partition(". ")[0].rstrip(".")
    return ValueLostError(f"{what}: what lay in Ray's object store is gone with the node that held it ({reason})")


_EXIT = re.compile(r"Worker exit type: (\w+) Worker exit detail: (.*)", re.DOTALL)


def _detail(error: RayError) -> str:
    """What Ray knows of an end, without what it says of every one."""
    text = one_line(error, 4000)
    found = _EXIT.search(text)
    detail = found[2] if found else text
    return detail.partition(" Some common causes include")[0].rstrip(". ")


async def shared(value: Result) -> Result:
    """A value in the object store, for calls of several actors; what is returned stands for it as an argument.

    Raises NoRoomError where there is none for it.
    """
    try:
        reference: Result = await asyncio.to_thread(ray.put, value)  # a store that spills lets it wait
    except FULL as error:
        raise _no_room("the driver could not hand out what it had", error) from error
    return reference


def ray_is_encrypted() -> bool:
    """Whether Ray's own connections are, as somebody has set it up."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def log_folder() -> str:
    """Where Ray keeps the actors' logs. Who asks tells somebody, so that they stay there for a day."""
    node = ray._private.worker.global_worker.node
    if node is None:
        return "Ray's session folder"
    _TOLD.append(str(node.get_logs_dir_path()))
    return _TOLD[-1]


def session_folder() -> Path | None:
    """Ray's folder of this process's session; None when Ray runs for others too, or somebody was told to look there."""
    node = ray._private.worker.global_worker.node
    if node is None or not node.is_head() or str(node.get_logs_dir_path()) in _TOLD:
        return None
    return Path(node.get_session_dir_path())
