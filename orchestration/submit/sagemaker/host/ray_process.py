"""Ray on a host of a training job: its processes, and the log of the run that is a job there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestration.submit.sagemaker.host.facts import RAY_FOLDER, last_words

_END_RAY_S = 10.0
_TAIL_LINES = 200


class RayProcess:
    """`ray start --block` as a child, in a process group of its own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self) -> str | None:
        """Its last words, if it has ended."""
        code = self._process.poll()
        if code is None:
            return None
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return f"{last_words(lines)} (exit code {code})"

    def stop(self) -> None:
        """End it in order, by force after a while; a second call does nothing."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                return
            os.killpg(self._process.pid, number)
            try:
                self._process.wait(_END_RAY_S)
            except subprocess.TimeoutExpired:
                continue


class JobLog:
    """The log of a Ray job on this host, passed on line by line as it grows."""

    def __init__(self, job: str) -> None:
        self._path = Path(RAY_FOLDER) / "session_latest" / "logs" / f"job-driver-{job}.log"
        self._position, self._partial = 0, b""
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def relay(self, *, all_of_it: bool = False) -> None:
        """Print the lines that are new; with `all_of_it` a last one without its end, too."""
        try:
            with self._path.open("rb") as log:
                log.seek(self._position)
                news = log.read()
        except FileNotFoundError:
            return
        self._position += len(news)
        *lines, self._partial = (self._partial + news).split(b"\n")
        if all_of_it and self._partial:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            text = line.decode(errors="replace")
            self.tail.append(text)
            sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
