"""Runs parts one after the other, each in a process of its own, and says a line of JSON as soon as there is one."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orchestration
from orchestration.bench.gpu.parts import Part

Line = dict[str, Any]

PATIENCE_WITH_CPUS = 3
"""How much longer a part may take without a GPU: an engine alone takes a minute to start."""
_LEAST_S = 10.0
"""With less time left, no part is begun."""
_GRACE_S = 15.0
"""From an interrupt to the end of all processes of a part."""
_LOOK_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """How the parts are run."""

    minutes: int
    cuda: bool
    card: str
    """The machine, in words."""
    folder: Path
    """Each part has a log and scratch there."""


def run_parts(parts: Sequence[Part], bench: Bench, say: Callable[[Line], None]) -> None:
    """Run them all; one that fails, takes too long or cannot run here is a line like any other.

    Args:
        parts: In this order.
        bench: Sizes, time and places.
        say: Told each line when it is there: those of a part's cases, then one with its `status`.

    Raises:
        KeyboardInterrupt: After the part under way was ended, and said so.
    """
    deadline = time.monotonic() + 60 * bench.minutes
    for part in parts:
        begun = time.monotonic()
        reason = _reason_to_skip(part, bench, deadline - begun)
        if reason is not None:
            say({"part": part.name, "status": f"skipped: {reason}"})
            continue
        try:
            limit_s = float(part.limit_s if bench.cuda else PATIENCE_WITH_CPUS * part.limit_s)
            status = _run_part(part, bench, min(limit_s, deadline - begun), say)
        except KeyboardInterrupt:
            say({"part": part.name, "status": "interrupted", "seconds": _since(begun)})
            raise
        say({"part": part.name, "status": status, "seconds": _since(begun), "card": bench.card})


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 1)


def _reason_to_skip(part: Part, bench: Bench, left_s: float) -> str | None:
    if not (bench.cuda or part.on_cpu):
        return "no GPU"
    if lacking := part.lacking():
        return f"not installed here: {', '.join(lacking)}"
    return f"the {bench.minutes} minutes are over" if left_s < _LEAST_S else None


def _run_part(part: Part, bench: Bench, limit_s: float, say: Callable[[Line], None]) -> str:
    """Its status: `ok`, or what went wrong."""
    log, scratch = bench.folder / f"{part.name}.log", bench.folder / part.name
    reading, writing = os.pipe()
    words = {"cuda": bench.cuda, "minutes": bench.minutes, "scratch": str(scratch), "fd": writing}
    path = os.pathsep.join(filter(None, (str(Path(orchestration.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    with log.open("wb") as output, os.fdopen(reading, "rb", buffering=0) as pipe:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestration.bench.gpu.measuring", part.module, part.function, json.dumps(words)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        os.close(writing)
        error = None
        try:
            for line in _lines(pipe.fileno(), process, limit_s):
                error = line.pop("error", error)
                if line:
                    say({"part": part.name, **line})
            in_time = process.poll() is not None
        finally:
            _end(process)
    if not in_time:
        return f"failed: not done within {limit_s:.0f} s; see {log}"
    if process.returncode == 0 and error is None:
        return "ok"
    return f"failed: {error or f'ended by {_how(process.returncode)}'}; see {log}"


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _lines(fd: int, process: subprocess.Popen[bytes], limit_s: float) -> Iterator[Line]:
    """What the part says, until it has ended or its time is over. A grandchild may hold the pipe open longer."""
    os.set_blocking(fd, False)
    deadline, rest = time.monotonic() + limit_s, b""
    while True:
        ended = process.poll() is not None
        ready = select.select([fd], [], [], 0 if ended else _LOOK_S)[0]
        piece = os.read(fd, 1 << 16) if ready else b""
        *whole, rest = (rest + piece).split(b"\n")
        yield from map(json.loads, whole)
        if ended and not piece:
            return
        if ready and not piece:  # closed, and about to end
            time.sleep(_LOOK_S)
        if time.monotonic() > deadline:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part and all that it started: asked first, so that it puts away what it has, then by force."""
    if process.poll() is None:
        _signal(process, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def write_line(line: Mapping[str, Any], file: Path) -> None:
    """One line more in a file that others may read meanwhile."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")
