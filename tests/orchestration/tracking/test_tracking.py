"""Runs in trackers: each read back by its own library, and what happens when one fails, hangs or is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestration.commands.train import tracked_reporter
from orchestration.errors import ConfigError
from orchestration.run.ledger.folder import RunFolder
from orchestration.settings.config import load_config
from orchestration.tracking.reporter import TrackingReporter
from orchestration.tracking.sink import Guarded
from orchestration.tracking.trackers import TRACKERS, Tracked, check_trackers, flat_settings, open_trackers
from tests.orchestration.tracking.silent import SilentReporter
from tests.reward_service.clients.callers.installed import ROOT, installed

PACKAGES = (
    "tensorboard==2.21.0",
    "absl-py==2.5.1",
    "Markdown==3.11.3",
    "mlflow-skinny==3.17.2",
    "databricks-sdk==0.162.0",
    "sqlparse==0.6.1",
    "GitPython==3.2.1",
    "gitdb==4.0.12",
    "smmap==5.0.3",
    "wandb==0.31.0",
    "trackio==0.43.0",
    "gradio-client==2.7.2",
    "brotli==1.2.1",
    "orjson==3.13.0",
)
"""The trackers, and of their dependencies those that are not ours."""

REWARD = [[1, 0.5], [2, 1.0], [3, 1.5]]
HELD_OUT = [[0, 0.25], [3, 0.75]]


def test_every_tracker_has_the_run(tmp_path: Path) -> None:
    packages = installed("trackers", *PACKAGES)
    done = subprocess.run(
        [sys.executable, "-m", "tests.orchestration.tracking.read_back", str(packages), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    figures = {"reward_mean": REWARD, "eval_strict_accuracy": HELD_OUT}
    assert found["said"] == []
    assert found["tensorboard"] == figures
    assert found["mlflow"] == {
        "figures": figures,
        "artefacts": ["adapter", "report.html"],
        "settings": ["tiny", True],
        "status": "FINISHED",
    }
    assert found["wandb"] == {"figures": figures, "artefacts": ["adapter", "report"], "model": "tiny"}
    assert found["trackio"] == figures


class Sink:
    """Keeps what it is told, until it fails or hangs."""

    def __init__(self, *, fails_at: int = 10**9, hangs: threading.Event | None = None) -> None:
        self.steps: list[int] = []
        self.kept: list[str] = []
        self.closed: list[bool] = []
        self._fails_at, self._hangs = fails_at, hangs

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        if self._hangs is not None:
            self._hangs.wait()
        if step >= self._fails_at:
            raise ConnectionError("no route\nto host")
        self.steps.append(step)

    def artefact(self, path: Path, name: str) -> None:
        self.kept.append(name)

    def close(self, *, finished: bool) -> None:
        self.closed.append(finished)


def test_one_that_fails_is_said_once_and_the_others_go_on() -> None:
    inner, good, bad = SilentReporter(), Sink(), Sink(fails_at=2)
    reporter = TrackingReporter(inner, {"good": good, "bad": bad}, lambda summary: [Path("page")])
    for step in range(1, 6):
        reporter.step({"step": step, "loss": 1.0})
    reporter.finish({"status": "stopped"})
    reporter.close()
    assert (good.steps, good.closed) == ([1, 2, 3, 4, 5], [False])
    assert (bad.steps, bad.closed) == ([1], [])
    assert inner.notes == ["warning: bad is told nothing more of this run: no route to host"]
    assert inner.calls == ["step"] * 5 + ["finish", "close"]


def test_one_that_hangs_holds_nothing_up() -> None:
    release = threading.Event()
    guarded = Guarded("slow", Sink(hangs=release))
    for step in range(2000):
        guarded.put(lambda sink, step=step: sink.figures(step, {}))  # type: ignore[misc]
    assert list(guarded.said()) == ["slow is told nothing more of this run: it is 1000 calls behind"]
    guarded.close(finished=True)
    release.set()


def test_one_that_hangs_at_the_end_is_left() -> None:
    release = threading.Event()
    guarded = Guarded("slow", Sink(hangs=release))
    guarded.put(lambda sink: sink.figures(1, {}))
    guarded.close(finished=True, timeout_s=0.1)
    assert list(guarded.said()) == [
        "slow is told nothing more of this run: it did not take its last figures within 0.1 s"
    ]
    release.set()


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_one_that_is_not_installed_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.extras.find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=rf"report_to={name} needs the package .*rlvr\[{name}\]"):
        check_trackers((name,))


def test_one_that_cannot_start_stops_the_start_and_closes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Sink()

    def refuse(run: Tracked) -> Sink:
        raise OSError("the server\nsays no")

    monkeypatch.setitem(TRACKERS, "wandb", (lambda run: opened, "json", "json"))  # type: ignore[arg-type]
    monkeypatch.setitem(TRACKERS, "mlflow", (refuse, "json", "json"))  # type: ignore[arg-type]
    run = Tracked(project="p", name="n", folder=tmp_path, settings={})
    with pytest.raises(ConfigError, match="report_to=mlflow cannot start: the server says no"):
        open_trackers(("wandb", "mlflow"), run)
    assert opened.closed == [False]


def test_settings_are_flat_and_without_secrets() -> None:
    config = load_config("tiny", ["reward.api_key=secret-of-mine", "reward.url=http://127.0.0.1:1"])
    flat = flat_settings(config.model_dump(mode="json"))
    assert flat["learner.lora.r"] == config.learner.lora.r
    assert flat["learner.lora.target_modules"] == str(list(config.learner.lora.target_modules))
    assert "secret-of-mine" not in str(flat)


def test_what_reports_to_is_said_by_name() -> None:
    with pytest.raises(ConfigError, match="report_to"):
        load_config("tiny", ["report_to=[comet]"])
    assert "WANDB_SILENT" not in os.environ


@pytest.mark.parametrize("track_adapter", [False, True])
def test_a_run_is_tracked_by_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track_adapter: bool) -> None:
    told: list[Tracked] = []
    sink = Sink()

    def open_it(run: Tracked) -> Sink:
        told.append(run)
        return sink

    monkeypatch.setitem(TRACKERS, "mlflow", (open_it, "json", "json"))  # type: ignore[arg-type]
    words = ["report_to=[mlflow]", "project=ours", "run_name=mine", f"track_adapter={track_adapter}"]
    folder = RunFolder.create(config := load_config("tiny", [*words, f"run_dir={tmp_path}/run"]))
    folder.write_adapter([("adapter_config.json", b"{}")])
    reporter = tracked_reporter(config, folder, inner := SilentReporter())  # type: ignore[arg-type]
    reporter.finish({"status": "finished"})
    reporter.close()
    folder.close()
    assert [(run.project, run.name, run.folder) for run in told] == [("ours", "mine", folder.path)]
    assert sink.kept == ["report.html", *(["adapter"] if track_adapter else [])]
    assert sink.closed == [True]
    assert inner.notes == [f"info: the run's page is {folder.path}/report.html"]
