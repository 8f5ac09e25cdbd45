"""Running coroutines together."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def gather_or_cancel(coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results in order; the first failure cancels the rest and is raised as it is.

    `asyncio.gather` would leave the others running, `asyncio.TaskGroup` would wrap the failure in a group.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def within(limit_s: float, work: Awaitable[Result]) -> Result:
    """The result of `work`, or TimeoutError after so long. `asyncio.wait_for` of Python 3.11 would forget a
    cancellation that comes together with the result, and a Ctrl-C with it."""
    async with asyncio.timeout(limit_s):
        return await work


async def unless_set(stop: asyncio.Event, work: Coroutine[Any, Any, Result], *, grace_s: float = 0.0) -> Result | None:
    """The result of `work`, or None when `stop` was set so long before; then the work is cancelled.

    Args:
        stop: May be set already.
        work: Begins at once.
        grace_s: How long `work` may go on after `stop`.
    """
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if grace_s:
            await asyncio.wait({task}, timeout=grace_s)
        return task.result() if task.done() else None
    finally:
        for each in (task, stopped):
            each.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


async def before(end: asyncio.Future[Any], work: Awaitable[Result]) -> tuple[Result] | None:
    """The result of `work`, alone in a tuple, or None when `end` came first; then the work is cancelled. What the work
    raises is raised as it is."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task, end], return_when=asyncio.FIRST_COMPLETED)
        return (task.result(),) if task.done() else None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def kept_on(work: asyncio.Future[Result]) -> Result:
    """The result of `work`, which goes on when its waiter is cancelled. Should it fail after that, nobody asks for its
    failure, and asyncio would print it with a traceback: it is taken as seen."""
    work.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(work)


async def in_thread(work: Callable[[], Result]) -> Result:
    """The result of `work`, or what it raises, from a thread of its own. As `asyncio.to_thread`, but that whoever wants
    to wait no longer need not: neither the event loop nor the process waits for the thread at its end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def tell(set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not done.done():
            set_outcome(outcome)

    def run() -> None:
        try:
            news: tuple[Callable[[Any], None], object] = done.set_result, work()
        except (
            StopIteration,
            SystemExit,
        ) as error:  # a future takes none of the former, a thread ends mutely by the other
            news = done.set_exception, RuntimeError(f"{type(error).__name__}: {error}")
        except BaseException as error:
            news = done.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, *news)

    threading.Thread(target=run, name="in-thread", daemon=True).start()
    return await done


async def at_most(timeout_s: float, work: Callable[[], object]) -> None:
    """Run `work` in a thread, and wait for it no longer than so. Errors are passed over, and a thread that hangs does
    not keep the process from ending, as one of the event loop's own would."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        with contextlib.suppress(Exception):
            work()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="at-most", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        await within(timeout_s, done.wait())
