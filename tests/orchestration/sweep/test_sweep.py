"""A sweep's grid, its processes, and what is made of what they leave."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from orchestration.cli import main
from orchestration.commands.evaluations.sweep import SweepOptions, room_for, write_outcome
from orchestration.errors import ConfigError
from orchestration.evals.answers import ADAPTER, BASE, GREEDY, HELD_OUT, Answer
from orchestration.evals.store import locked
from orchestration.settings.config import load_config
from orchestration.sweep import jobs as jobs_module
from orchestration.sweep.grid import read_grid, split_values
from orchestration.sweep.jobs import Command, Job, Jobs
from orchestration.sweep.outcome import is_control, rows
from tests.waiting import until

WORDS = ["tiny", "data.num_shots=0,2", "seed=0,1", "max_steps=3", "reward.control=random"]


def test_a_grid_has_every_combination_and_its_control() -> None:
    grid = read_grid(WORDS)
    assert (grid.recipe, grid.fixed, len(grid.points)) == ("tiny", ("max_steps=3",), 8)
    assert grid.points[1].name == "num_shots=0,seed=0,control=random"
    assert grid.points[1].overrides == ["data.num_shots=0", "seed=0", "reward.control=random"]
    assert {point.group for point in grid.points} == {(("data.num_shots", "0"),), (("data.num_shots", "2"),)}
    assert split_values("[1, 2],'a,b',{c: 1, d: 2}") == ["[1, 2]", "'a,b'", "{c: 1, d: 2}"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["tiny", "gsm8k"], "a sweep is of one recipe"),
        (["seed=0,0"], "names a value twice"),
        (["seed=0,"], "has an empty value"),
        (["run_dir=x"], "gives every run its own run_dir"),
        (["a.r=1,2", "b.r=1,2"], "end alike"),
    ],
)
def test_what_is_no_grid(words: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_grid(words)


def test_settings_are_checked_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["sweep", "tiny", "data.num_shotz=1,2", "--out", str(out)]) == 2
    assert "did you mean 'data.num_shots'" in capsys.readouterr().err
    assert not out.exists()


def command(folder: Path, name: str, code: str) -> Command:
    return Command(words=("-c", code), log=folder / f"{name}.log", done=(folder / name).exists)


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "RLVR", (sys.executable,))


@pytest.mark.usefixtures("python")
def test_what_is_done_is_left_alone_and_what_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    never = command(tmp_path, "old", "raise SystemExit(9)")
    good = command(tmp_path, "new", f"open({str(tmp_path / 'new')!r}, 'w')")
    bad = command(tmp_path, "bad", "print('first'); raise SystemExit('no room')")
    told: list[str] = []
    work = [Job(name="good", commands=(never, good)), Job(name="bad", commands=(bad, never))]
    (failed,) = Jobs(told.append).run(work, 2, lambda: told.append("look"))
    assert told.count("look") == 2
    assert failed.startswith("bad: rlvr -c ended with status 1; no room (all of it: ")
    assert "good: done" in told
    assert Jobs(told.append).run(work[:1], 1) == []


@pytest.mark.usefixtures("python")
def test_a_sweep_that_is_stopped_ends_each_run_in_order_and_begins_no_other(tmp_path: Path) -> None:
    code = (
        "import signal, time\n"
        f"def ended(*_): open({str(tmp_path / 'in-order')!r}, 'w'); raise SystemExit(130)\n"
        f"signal.signal(signal.SIGINT, ended); open({str(tmp_path / 'began')!r}, 'w')\n"
        "while True: time.sleep(0.05)\n"
    )
    jobs = Jobs(lambda text: None)
    work = [Job(name=f"{n}", commands=(command(tmp_path, f"never-{n}", code),)) for n in range(2)]
    found: list[list[str]] = []
    thread = threading.Thread(target=lambda: found.append(jobs.run(work, 1)))
    thread.start()
    until((tmp_path / "began").exists, 30, poll_s=0.05)
    jobs.stop()
    thread.join(30)
    assert found == [[]]
    assert (tmp_path / "in-order").exists()
    assert not (tmp_path / "never-1.log").exists()


def answers(right: float, gained: float) -> list[Answer]:
    return [
        Answer(
            side=side,
            part=HELD_OUT,
            draw=GREEDY,
            problem_id=f"p/{n}",
            category="",
            sample=0,
            text="",
            num_tokens=1,
            ended="end",
            scores={"strict": float(n < share * 20)},
        )
        for side, share in ((BASE, right), (ADAPTER, right + gained))
        for n in range(20)
    ]


def test_seeds_are_one_row_and_controls_are_told_apart() -> None:
    points = read_grid(WORDS).points
    known = {point.name: answers(0.1, 0.1 if point.control == "random" else 0.5) for point in points[:6]}
    known[points[2].name] = answers(0.1, 0.7)
    found = rows(points, known)
    assert [(row.settings, is_control(row), list(row.seeds)) for row in found] == [
        ("num_shots=0", False, ["0", "1"]),
        ("num_shots=0", True, ["0", "1"]),
        ("num_shots=2", False, ["0"]),
        ("num_shots=2", True, ["0"]),
    ]
    assert found[0].gain.estimate == pytest.approx(0.6)
    assert found[0].gains == pytest.approx([0.5, 0.7])
    assert found[0].gain.low <= 0.6 <= found[0].gain.high


def test_table_and_chart_are_of_what_is_done(tmp_path: Path) -> None:
    options = SweepOptions(grid=read_grid(WORDS), out=tmp_path, made_by="rlvr sweep")
    for point in options.grid.points[:2]:
        with locked(tmp_path / "evals" / point.name) as store:
            store.begin({})
            store.write("all", answers(0.1, 0.5))
            store.end([], {}, "")
    said = write_outcome(options, lambda text: None)
    assert "6 runs of the sweep are not done" in said
    assert "random rewards (control: uniform draws)" in said
    assert json.loads((tmp_path / "sweep.json").read_bytes())["rows"]["strict"][0]["gain"]["estimate"] == 0.5
    chart = (tmp_path / "sweep-strict.svg").read_bytes()
    assert b"<svg" in chart
    assert (tmp_path / "sweep-strict.png").read_bytes()[1:4] == b"PNG"
    write_outcome(options, lambda text: None)
    assert (tmp_path / "sweep-strict.svg").read_bytes() == chart


def test_another_sweep_is_refused_in_the_same_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_outcome(SweepOptions(grid=read_grid(WORDS), out=tmp_path), lambda text: None)
    assert main(["sweep", "tiny", "max_steps=4", "seed=0", "--out", str(tmp_path)]) == 2
    assert "holds a sweep with fixed=['max_steps=3']" in capsys.readouterr().err


def test_there_is_room_for_one_run_at_least() -> None:
    assert room_for(load_config("arithmetic")) >= 1
