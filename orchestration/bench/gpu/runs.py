"""Whole runs, as a user starts them: `rlvr train` in a process, and what its summary says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from orchestration.bench.gpu.measuring import Measuring
from orchestration.run.ledger.names import METRICS_FILE, SUMMARY_FILE

_STOP_TIMEOUT_S = 120.0
_LOOK_S = 0.2
_COMMON = ("placement=colocated", "rollout.num_workers=1", "learner.num_ranks=1", "dashboard=false")


def tiny(measuring: Measuring) -> None:
    """The tiny model's recipe, whole on a GPU."""
    steps = 10 if measuring.cuda else 3
    _say(measuring, "tiny", _train(measuring, "tiny", f"max_steps={steps}"))


def embedded(measuring: Measuring) -> None:
    """Some steps of the embedded model's recipe."""
    _say(measuring, "embedded", _train(measuring, "arithmetic", "max_steps=8"))


def nf4(measuring: Measuring) -> None:
    """Two steps over a quantised base, whose values the sampler serves."""
    words = ("max_steps=2", "eval_at_ends=false", "learner.quantization=nf4")
    _say(measuring, "NF4", _train(measuring, "tiny", *words))


def zero2(measuring: Measuring) -> None:
    """Two steps at ZeRO 2."""
    _say(measuring, "ZeRO 2", _train(measuring, "tiny", "max_steps=2", "eval_at_ends=false", "learner.zero_stage=2"))


def resume(measuring: Measuring) -> None:
    """A run stopped by Ctrl-C after its second step, and the same command again.

    Raises:
        RuntimeError: It did not stop in order, or did not go on where it was.
    """
    words = ("max_steps=6", "eval_at_ends=false", "save_every=1")
    folder = measuring.folder() / "run"
    process = _start(folder, "tiny", *words)
    while len(_steps(folder)) < 2 and process.poll() is None:
        time.sleep(_LOOK_S)
    if process.poll() is not None:
        raise RuntimeError(f"the run ended with exit status {process.returncode} before its third step")
    process.send_signal(signal.SIGINT)
    code, stopped_at = process.wait(_STOP_TIMEOUT_S), _steps(folder)
    if code != 130:
        raise RuntimeError(f"the run ended with exit status {code} instead of 130 when it was interrupted")
    summary = _train(measuring, "tiny", *words)
    seen = _steps(folder)
    if seen != list(range(1, 7)) or summary["status"] != "finished":
        raise RuntimeError(f"the run stopped after steps {stopped_at} and came to {seen}, {summary['status']}")
    _say(measuring, f"stopped after step {stopped_at[-1]}, went on", summary)


def _start(folder: Path, recipe: str, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "orchestration", "train", recipe, f"run_dir={folder}", *_COMMON, *words]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def _train(measuring: Measuring, recipe: str, *words: str) -> dict[str, Any]:
    """The run's summary. Its output goes to the part's log."""
    folder = measuring.folder() / "run"
    process = _start(folder, recipe, *words)
    try:
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        raise
    if code:
        raise RuntimeError(f"rlvr train {recipe} {' '.join(words)} ended with exit status {code}")
    summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    return summary


def _steps(folder: Path) -> list[int]:
    try:
        lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def _say(measuring: Measuring, case: str, summary: dict[str, Any]) -> None:
    strict = summary["accuracy"].get("strict", {})
    figures = {
        "steps": summary["steps"],
        "start_seconds": None if summary["start_s"] is None else round(summary["start_s"]["total"], 1),
        "run_seconds": round(summary["wall_s"], 1),
        "publish_ms": summary["publish_ms_median"],
        "accuracy_before": strict.get("before"),
        "accuracy_after": strict.get("after"),
        **{f"{name}_seconds": round(seconds, 2) for name, seconds in summary["seconds"].items()},
    }
    measuring.say(case, **{name: value for name, value in figures.items() if value is not None})
