"""A command leaves no temporary files behind, and takes away those of one that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from orchestration.errors import MachineError
from orchestration.scratch import outliving, own_temporary_folder, shared_temporary_folder

KILLED = """
import multiprocessing.util, os, signal, tempfile
from orchestration.scratch import own_temporary_folder
with own_temporary_folder() as folder:
    made = multiprocessing.util.get_temp_dir(), tempfile.mkdtemp()
    assert all(path.startswith(str(folder)) for path in made), made
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_all_goes_at_the_end_and_what_a_killed_one_left_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=60, check=False)
    left = Path(killed.stdout.strip())
    assert left.is_dir(), killed.stderr
    before = dict(os.environ)
    with own_temporary_folder() as outer:
        assert not left.exists()
        Path(tempfile.gettempdir(), "left").mkdir()
        assert shared_temporary_folder() == tmp_path
        assert outliving(os.environ)["TMPDIR"] == str(tmp_path)
        with own_temporary_folder() as inner:  # a command that a command starts
            assert inner.parent == outer.parent
            assert outer.exists()
    assert list(tmp_path.glob("rlvr-*")) == []
    assert not outer.exists()
    assert dict(os.environ) == before


def test_a_folder_that_cannot_be_written_to_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**words: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    said = r"No space left on device; set TMPDIR to a folder with room"
    with pytest.raises(MachineError, match=said), own_temporary_folder():
        pass
    assert tempfile.gettempdir() == str(shared_temporary_folder())
