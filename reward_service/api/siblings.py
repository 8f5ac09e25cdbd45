"""The metrics of all processes of a service: each asks the others, over Unix sockets in a folder of theirs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

_TIMEOUT_S: Final = 5.0


class Siblings:
    """The processes of one service, seen from one of them."""

    def __init__(self, folder: Path, index: int, number: int) -> None:
        self._path = folder / str(index)
        self._others = [folder / str(other) for other in range(number) if other != index]
        self._server: asyncio.Server | None = None

    async def start(self, text: Callable[[], bytes]) -> None:
        """Answers the others with `text()`."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(text())
            with suppress(ConnectionError):
                await writer.drain()
            writer.close()

        self._path.unlink(missing_ok=True)  # of one that was killed
        self._server = await asyncio.start_unix_server(answer, self._path)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def texts(self) -> list[bytes]:
        """What the others answer; one that is being started again has counted nothing yet."""
        answers = await asyncio.gather(*(_ask(path) for path in self._others))
        return [answer for answer in answers if answer]


async def _ask(path: Path) -> bytes:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError) as error:
        logger.warning("another process of the service does not tell its metrics: %r", error)
        return b""
    return answer


def add_up(texts: Sequence[bytes]) -> bytes:
    """Metrics in Prometheus's text format, added up: counters, histograms and our gauges are all sums."""
    families: dict[str, dict[str, float]] = {}
    for text in texts:
        told, samples = "", dict[str, float]()
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                told = line
            elif line.startswith("# TYPE "):
                samples = families.setdefault(f"{told}\n{line}", {})
            else:
                name, _, value = line.rpartition(" ")
                first = min if "_created" in name.partition("{")[0] else float.__add__  # the first time of any
                samples[name] = first(samples[name], float(value)) if name in samples else float(value)
    lines = (
        f"{head}\n" + "".join(f"{name} {value!r}\n" for name, value in samples.items())
        for head, samples in families.items()
    )
    return "".join(lines).encode()
