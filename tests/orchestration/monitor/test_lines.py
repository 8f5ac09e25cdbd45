"""An actor and a run in one line, and the file that says where their metrics are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestration.monitor.board_pages import _Handler
from orchestration.monitor.lines import actor_line, run_line
from orchestration.monitor.targets import Announcement, announced, describe, targets_folder


def test_lines() -> None:
    rollout = {"adapter_version": 137.0, "rollout_tokens_per_s": 3410.4, "running_requests": 48.0}
    assert (
        actor_line("rollout-2", {**rollout, "waiting_requests": 0.0})
        == "RolloutWorker 2 · v137 · 3,410 tok/s · 48 running, 0 waiting"
    )
    assert actor_line("learner-0", {"learner_step": 3, "learner_tokens_per_s": 12064.3}) == (
        "LearnerRank 0 · step 3 · 12,064 tok/s"
    )
    row = {"step": 3, "reward_mean": 0.8281, "rollout_tokens_per_s": 1460.87, "alarms": 1}
    assert run_line(row, 16) == "step 3 of 16 · reward 0.83 · 1,461 tok/s · 1 alarm"
    assert run_line({"step": 3, "reward_mean": None}, 16) == "step 3 of 16"


def test_a_run_says_where_its_metrics_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLVR_STATE", str(tmp_path))
    groups = describe("r", ray=["127.0.0.1:4"], reward_url="https://key@host:83/")
    assert groups[1] == {"targets": ["host:83"], "labels": {"job": "reward", "run": "r", "__scheme__": "https"}}
    mine, killed = Announcement(f"mine-{os.getpid()}"), Announcement(f"killed-{2**22 + 1}")
    mine.say(groups)
    killed.say(groups)
    assert announced() == ["mine"]
    (left,) = targets_folder().iterdir()
    assert json.loads(left.read_bytes()) == groups
    mine.take_back()
    assert announced() == []


def test_a_browser_that_leaves_before_its_page_is_no_fault():
    class Gone:
        def write(self, content: bytes) -> int:
            raise BrokenPipeError

    handler = _Handler.__new__(_Handler)
    handler.server, handler.path, handler.wfile = SimpleNamespace(prometheus=""), "/d/another", Gone()
    handler.requestline, handler.request_version = "GET /d/another HTTP/1.1", "HTTP/1.1"
    handler.do_GET()
