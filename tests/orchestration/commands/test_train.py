"""How a run is ended from outside."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.commands import train
from orchestration.data.tasks.copying import Copy
from orchestration.settings.config import load_config
from tests.waiting import until

WAITER = """
import asyncio, sys
from pathlib import Path
from orchestration.commands.train import signals_set

async def main():
    stop = asyncio.Event()
    with signals_set(stop):
        print("ready", flush=True)
        Path(sys.argv[1]).with_suffix(".waits").touch()
        await asyncio.wait_for(stop.wait(), 60)
        print("what is said now is heard by nobody", flush=True)
        Path(sys.argv[1]).write_text("in order")

asyncio.run(main())
"""


def test_a_terminal_that_hangs_up_ends_a_run_in_order(tmp_path: Path) -> None:
    place = tmp_path / "ended"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", WAITER, str(place)])
    until(place.with_suffix(".waits").is_file, 60)
    os.close(terminal)  # as when an ssh session drops: SIGHUP, and nobody reads what is printed
    until(place.is_file, 60)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.fixture
def hangs() -> Iterator[Any]:
    """Somebody asks for an end while it is called, and waits long for it."""
    over = threading.Event()

    def called(*arguments: object, **named: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert over.wait(60), "nobody heard it"

    yield called
    over.set()


@pytest.mark.parametrize(
    ("where", "what"), [(Copy, "load"), (train, "check_rewards"), (train, "resolve_model"), (train.Texts, "of")]
)
def test_ctrl_c_is_heard_while_a_run_is_made_ready(
    where: Any, what: str, hangs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "import_ahead", lambda config: None)  # starts processes
    monkeypatch.setattr(where, what, hangs)
    with pytest.raises(KeyboardInterrupt):
        train.run_training(load_config("tiny", [f"run_dir={tmp_path}/run"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_run_in_order(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITER, str(tmp_path / "ended")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(60) == 0
    assert (tmp_path / "ended").is_file()


def test_who_asks_again_at_the_very_end_sees_no_traceback(tmp_path: Path) -> None:
    """While libraries end with the process."""
    code = f"{WAITER}\nprint('ends', flush=True)\nimport time\ntime.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "ended")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        until(lambda: process.stdout.readline() == "ends\n", 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == ""


def test_nohup_is_respected(tmp_path: Path) -> None:
    command = ["nohup", sys.executable, "-c", WAITER, str(tmp_path / "ended")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)  # comes after it, and is what ends the run
        assert process.wait(60) == 0
