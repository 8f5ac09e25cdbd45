"""What ended processes leave is told from what living ones use, and only the former goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rollout_server.forking import leftovers
from rollout_server.forking.leftovers import OWNER, end_orphans, is_gone, mark, own_folder, remove_leftovers
from tests.waiting import until

MAKER = """
import multiprocessing, sys
from multiprocessing.shared_memory import SharedMemory
from rollout_server.forking.leftovers import mark, name_shared_memory, own_folder
name_shared_memory()
memory = SharedMemory(create=True, size=4096)
lock = multiprocessing.get_context("spawn").Lock()
folder = own_folder("ipc", longest_name=36)
print(mark(), memory.name, lock._semlock.name, folder, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_leaves_is_removed_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
        )
        for _ in range(2)
    ]
    try:
        made = []
        for maker in makers:
            assert maker.stdout is not None
            marked, memory, lock, folder = maker.stdout.readline().split()
            assert not is_gone(marked)
            made.append((marked, Path("/dev/shm", memory), Path(f"/dev/shm/sem.{lock[1:]}"), Path(folder)))
            assert all(path.exists() for path in made[-1][1:])
        os.killpg(makers[0].pid, signal.SIGKILL)  # its resource tracker too, as a fork server does
        makers[0].wait(30)
        assert is_gone(made[0][0])
        removed = remove_leftovers()
        assert {str(path) for path in made[0][1:]} <= set(removed)
        assert not any(path.exists() for path in made[0][1:])
        assert all(path.exists() for path in made[1][1:])
    finally:
        for maker in makers:
            maker.communicate()
    assert not any(path.exists() for path in made[1][1:3])


def test_processes_whose_owner_has_ended_are_ended() -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    theirs = subprocess.Popen(sleeper, env={**os.environ, OWNER: mark(owner.pid)})
    ours = subprocess.Popen(sleeper, env={**os.environ, OWNER: mark()})
    try:
        until(lambda: OWNER in Path(f"/proc/{theirs.pid}/environ").read_text())
        assert theirs.pid not in end_orphans()
        owner.communicate()
        assert theirs.pid in end_orphans()
        assert theirs.wait(30) == -signal.SIGKILL
        assert ours.poll() is None
    finally:
        for process in (owner, theirs, ours):
            process.kill()
            process.wait(30)


def test_a_number_that_is_given_again_names_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = mark()
    monkeypatch.setattr(leftovers, "_started", lambda pid: 1)
    assert is_gone(marked)


def test_what_belongs_to_another_container_stays() -> None:
    _, started, space = mark().split("-")
    assert not is_gone(f"pffffff-{started}-{int(space, 16) ^ 1:x}")
    assert is_gone(f"pffffff-{started}-{space}")


def test_the_folder_of_sockets_is_short_where_temporary_files_lie_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "d" * 90)
    folder = own_folder("ipc", longest_name=36)
    assert len(str(folder)) + 1 + 36 <= 107
    folder.rmdir()
