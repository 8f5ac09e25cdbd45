"""The runs of a sweep as processes: several at a time, each stopped in order when the sweep is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RLVR: Final = (sys.executable, "-m", "orchestration")


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One `rlvr …` of a sweep."""

    words: Sequence[str]
    log: Path
    done: Callable[[], bool]
    """Whether it need not run, or has run well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is done for one run, one command after the other."""

    name: str
    commands: Sequence[Command]


class Jobs:
    """Runs jobs until all are done, or `stop` is called."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, jobs: Sequence[Job], at_once: int, ended: Callable[[], object] = lambda: None) -> list[str]:
        """Do all jobs, so many at once.

        Args:
            jobs: Begun in this order.
            at_once: How many at a time.
            ended: Called after each of them.

        Returns:
            A sentence for each that failed; the others were done.

        Raises:
            KeyboardInterrupt: After those under way have ended in order; no other was begun.
        """
        with ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(self._run, job) for job in jobs]
            try:
                failed = []
                for future in as_completed(futures):
                    if (sentence := future.result()) is not None:
                        failed.append(sentence)
                    ended()
                return failed
            except KeyboardInterrupt:
                self._tell("stopping: each run finishes its update, saves its state and ends")
                self.stop()
                raise  # the pool's end waits for them

    def stop(self) -> None:
        """Begin nothing more, and have what runs end in order."""
        self._stopping.set()
        with self._lock:
            for process in self._running:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)

    def _run(self, job: Job) -> str | None:
        for command in job.commands:
            if command.done():
                continue
            if self._stopping.is_set():
                return None
            self._tell(f"{job.name}: {command.words[0]}")
            status = self._wait(command)
            if not command.done() and not self._stopping.is_set():
                return f"{job.name}: rlvr {command.words[0]} ended with status {status}; {_last_line(command.log)}"
        if all(command.done() for command in job.commands):
            self._tell(f"{job.name}: done")
        return None

    def _wait(self, command: Command) -> int:
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as log, self._lock:
            process = subprocess.Popen(
                [*RLVR, *command.words],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for the sweep, which tells each run once
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            self._running.add(process)
        try:
            if self._stopping.is_set():  # stopped between the check and the start
                process.send_signal(signal.SIGINT)
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)


def _last_line(log: Path) -> str:
    lines = log.read_bytes().decode("utf-8", "replace").strip().splitlines() if log.is_file() else []
    return f"{lines[-1] if lines else 'it said nothing'} (all of it: {log})"
