"""What a long command says on standard error."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys

import pytest

from orchestration.report import progress as module
from orchestration.report.progress import counted, progress_printer
from tests.waiting import until


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.005)
    monkeypatch.setattr(module, "SHORT_S", 0.02)
    monkeypatch.setattr(module, "PACE_S", 0.1)


def test_off_a_terminal_a_line_comes_for_a_phase_and_again_while_it_lasts() -> None:
    stream = io.StringIO()
    with progress_printer(stream) as progress:
        progress("answering, 1 of 10", 0.1)
        until(lambda: stream.getvalue().count("\n") == 1)
        progress("answering, 2 of 10", 0.2)
        until(lambda: stream.getvalue().count("\n") == 3)
        progress("scoring", 0.9)
        until(lambda: "scoring" in stream.getvalue())
    lines = stream.getvalue().splitlines()
    assert lines[0] == "rlvr: answering, 1 of 10 10%, 0.0 s"
    assert [line.partition(" of")[0] for line in lines[1:3]] == ["rlvr: answering, 2"] * 2
    assert lines[-1].startswith("rlvr: scoring 90%")


def test_what_ends_soon_is_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT_S", 60.0)
    stream = io.StringIO()
    with progress_printer(stream) as progress:
        progress("reading", 0.5)
    assert stream.getvalue() == ""


def test_many_short_phases_are_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT_S", 60.0)
    stream = io.StringIO()
    with progress_printer(stream) as progress:
        numbers = itertools.count()

        def said() -> bool:
            progress(f"phase {next(numbers)}", 0.5)
            return "rlvr: phase" in stream.getvalue()

        until(said)


def test_pieces_of_work_are_counted_when_they_begin() -> None:
    told: list[tuple[str, float]] = []
    begin = counted(lambda message, share: told.append((message, share)), 2)
    for message in ("loading", "measuring", "measuring again"):
        begin(message)
    assert told == [("loading", 0.0), ("measuring", 0.5), ("measuring again", 1.0)]


def test_a_terminal_has_one_line_that_is_cleared_at_the_end() -> None:
    stream = Terminal()
    with progress_printer(stream) as progress:
        progress("fetching \x1b[2J a file", 0.25)
    assert "\n" not in stream.getvalue()
    assert "\r\x1b[K━━━━━··············· fetching ␛[2J a file 25%" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


WORK = (
    "import os, time\n"
    "from orchestration.noise import noise_to_file\n"
    "from orchestration.report import progress\n"
    "progress.SHORT_S = progress.TICK_S = 0.01\n"
    "with noise_to_file('test-') as stderr, progress.progress_printer(stderr) as report:\n"
    "    report('working', 0.5)\n"
    "    os.write(1, b'noise')\n"
    "    os.write(2, b'noise')\n"
    "    time.sleep(0.3)\n"
    "print('{}')\n"
)


def test_it_gets_through_where_noise_does_not() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "{}\n"
    assert done.stderr.startswith("rlvr: working 50%")
    assert "noise" not in done.stderr


def test_a_reader_that_went_away_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=writing, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"{}\n")
