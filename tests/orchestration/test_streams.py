"""Standard output and error that are closed, full, or know no umlaut: a command says its sentence, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.cli import main

RLVR = f"{sys.executable} -m orchestration.cli"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("settings >/dev/full", 1, "rlvr: output cannot be written: No space left on device\n"),
        ("settings learner.lora >&-", 0, ""),
        ("settings learner.lora <&-", 0, ""),
        ("settings | head -1 >/dev/null", 0, ""),
        ("plan gsm8k-7b-p4d >/dev/null", 0, ""),
    ],
)
def test_streams(words: str, status: int, said: str) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {**os.environ, **plain}
    done = subprocess.run(
        f"{RLVR} {words}", shell=True, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (status, said)


def test_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["settings", "learner.lora"]) == 2
    assert "the current folder is gone" in capsys.readouterr().err
