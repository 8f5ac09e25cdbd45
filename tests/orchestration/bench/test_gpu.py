"""`rlvr bench gpu`: its runner over parts that work, fail, hang and are interrupted; and what it needs to start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestration.__main__ import main as rlvr
from orchestration.bench.gpu.command import LINES_FILE, SUMMARY_FILE
from orchestration.bench.gpu.parts import PARTS, Part, choose
from orchestration.bench.gpu.runner import Bench, run_parts
from orchestration.bench.gpu.table import summary
from orchestration.bench.gpu.trees import LARGE

ROOT = Path(__file__).parents[3]
BLOCKED = ("ray", "vllm", "deepspeed", "trl", "datasets", "bitsandbytes", "pydantic", "msgspec", "fastapi")
FAKES = """
import os, subprocess, sys, time

def works(measuring):
    print("to the log")
    measuring.say("first", ms=1.5)
    measuring.say("second", ms=2.5, seconds=0.1, note="a|b")

def fails(measuring):
    measuring.say("before", ms=1.0)
    raise ValueError("no such kernel")

def dies(measuring):
    os.kill(os.getpid(), 9)

def hangs(measuring):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    measuring.say("child", pid=child.pid)
    time.sleep(1000)
"""


class FakePart(Part):
    """A part of the module `fake_parts`."""

    __slots__ = ()

    @property
    def module(self) -> str:
        return "fake_parts"


def fake(name: str, **changes: Any) -> FakePart:
    settings = {"name": name, "text": "", "call": f"fakes:{name}", "limit_s": 100, "libraries": ()} | changes
    return FakePart(**settings)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    (tmp_path / "fake_parts.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Bench(minutes=10, cuda=False, card="a test", folder=tmp_path)


def run(bench: Bench, *parts: Part) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    run_parts(parts, bench, lines.append)
    return lines


def test_every_part_is_a_line_whatever_becomes_of_it(bench: Bench) -> None:
    parts = [
        fake("works"),
        fake("fails"),
        fake("dies"),
        fake("lacks", libraries=("os", "no_such_library")),
        fake("needs_gpu", on_cpu=False),
        fake("missing"),
    ]
    lines = run(bench, *parts)
    assert [line for line in lines if line["part"] == "works"][:2] == [
        {"part": "works", "case": "first", "ms": 1.5},
        {"part": "works", "case": "second", "ms": 2.5, "seconds": 0.1, "note": "a|b"},
    ]
    ends = {line["part"]: line["status"].partition("; see ")[0] for line in lines if "status" in line}
    assert ends == {
        "works": "ok",
        "fails": "failed: ValueError: no such kernel",
        "dies": "failed: ended by SIGKILL",
        "lacks": "skipped: not installed here: no_such_library",
        "needs_gpu": "skipped: no GPU",
        "missing": "failed: AttributeError: module 'fake_parts' has no attribute 'missing'",
    }
    assert (bench.folder / "works.log").read_text() == "to the log\n"
    assert "Traceback" in (bench.folder / "fails.log").read_text()
    text = summary(lines, card="a test")
    assert "| needs_gpu | skipped: no GPU |  |" in text
    assert "| second | 2.5 | 0.1 | a\\|b |" in text


def test_a_part_that_hangs_is_ended_with_all_it_started(bench: Bench) -> None:
    lines = run(bench, fake("hangs", limit_s=2), fake("works"))
    child = next(line["pid"] for line in lines if line.get("case") == "child")
    ended = next(line for line in lines if line["part"] == "hangs" and "status" in line)
    assert ended["status"].startswith("failed: not done within 6 s")
    assert not is_alive(child)
    assert lines[-1]["status"] == "ok"


def is_alive(pid: int) -> bool:
    """A process killed a moment ago may still wait for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_parts_are_chosen_by_name_and_plan() -> None:
    assert [part.name for part in choose("kernels, attention", minutes=10)] == ["kernels", "attention"]
    assert set(choose(None, minutes=10)) < set(choose(None, minutes=30)) == set(PARTS)
    first = [part.name for part in choose(None, minutes=30)][:5]
    assert first == ["versions", "attention", "learner", "probe", "tiny"], "what is interrupted has told these"
    with pytest.raises(ValueError, match=r"no part atention; parts are versions, attention"):
        choose("atention", minutes=10)


def test_the_large_tree_has_its_tokens() -> None:
    # 700 + 16 * 60 + 16 * 8 * 149: a completion's last token predicts nothing
    assert LARGE.tree().num_tokens == 20_732


def test_what_ends_before_the_first_line_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(sys, "argv", ["rlvr", "bench", "gpu", "--only", "versions", "--out", str(file)])
    assert rlvr() == 2
    assert capsys.readouterr().err == f"rlvr: --out {file} cannot be made a folder: File exists\n"

    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestration.bench.gpu.command.main", interrupted)
    assert rlvr() == 130
    assert capsys.readouterr().err == "rlvr: interrupted\n"


def test_attention_needs_torch_alone_and_ctrl_c_leaves_its_lines(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {BLOCKED}:\n"
        "            raise ModuleNotFoundError(f'blocked: {name}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    command = ["-m", "orchestration", "bench", "gpu", "--only", "versions,attention,learner", "--out", "out"]
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for text in process.stdout:
            lines.append(json.loads(text))
            if lines[-1].get("case") == "flex 14/2/64, N = 16":  # attention works; the rest would take its time
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
        assert process.wait() == 130
    assert lines[0]["case"] == "libraries"
    assert any(line == {"part": "versions", "status": "ok"} | line for line in lines)
    assert next(line for line in lines if line.get("case") == "blocks 14/2/64, N = 16")["backward_error"] < 1e-5
    assert "| attention | interrupted |" in rest
    written = [json.loads(line) for line in (tmp_path / "out" / LINES_FILE).read_text().splitlines()]
    assert written[: len(lines)] == lines
    assert written[-1]["status"] == "interrupted"
    assert (tmp_path / "out" / SUMMARY_FILE).read_text().strip() in rest
