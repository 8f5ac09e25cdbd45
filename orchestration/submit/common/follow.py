"""Following a job's log to the job's end, over connections that come and go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from orchestration.errors import UnreachableError

logger = logging.getLogger(__name__)

POLL_S = 3.0
"""Between two looks."""
GIVE_UP_S = 300.0
"""Of no answer at all."""
_TELL_AFTER_S = 15.0


class News(Protocol):
    """What was printed since the last call; `over`: the job has ended, and this is the rest."""

    def __call__(self, *, over: bool) -> Iterator[str]: ...


def follow(
    ended: Callable[[], bool],
    news: News,
    *,
    last_rounds: int = 1,
    poll_s: float = POLL_S,
    give_up_s: float = GIVE_UP_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """What a job prints, until it has ended.

    Args:
        ended: whether it has; asked before each look, so that what was printed before the end is read after it.
        news: raises UnreachableError when it breaks off; what it brought by then is not brought again.
        last_rounds: looks after the end, for logs that come late.
        poll_s: between two looks.
        give_up_s: of UnreachableError alone; then it is raised.
        sleep: waits so many seconds.
    """
    answered, told = time.monotonic(), False
    while last_rounds:
        try:
            over = ended()
            answered, told = time.monotonic(), False
            for piece in news(over=over):
                yield piece
                answered = time.monotonic()
            last_rounds -= over
        except UnreachableError as error:
            if (silent_s := time.monotonic() - answered) > give_up_s:
                raise
            if silent_s > min(_TELL_AFTER_S, give_up_s / 2) and not told:
                told = True
                logger.warning("%s; trying again for %d s", error, give_up_s - silent_s)
        if last_rounds:
            sleep(poll_s)
