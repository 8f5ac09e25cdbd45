"""Ray's folders that our sessions leave: one of a living process stays, one that ended a day ago goes."""

from __future__ import annotations

import atexit
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestration.cluster.upkeep.garbage import collect_seldom
from orchestration.cluster.upkeep.sessions import KEPT_S, claim_session, remove_session

CLAIMED = "import sys; from pathlib import Path; from orchestration.cluster.upkeep.sessions import claim_session as c; "


def test_what_is_old_and_nobodys_goes(tmp_path: Path) -> None:
    ours, old, young, foreign = (tmp_path / f"session_{name}" for name in ("ours", "old", "young", "foreign"))
    for folder in (ours, old, young, foreign):
        folder.mkdir()
    claim_session(ours)
    claims = f"{CLAIMED}[c(Path(folder)) for folder in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", claims, str(old), str(young)], check=True, timeout=60)
    long_ago = time.time() - KEPT_S - 60
    for folder in (ours, old):
        os.utime(folder / "rlvr-owner", (long_ago, long_ago))
    claim_session(young)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["session_foreign", "session_ours", "session_young"]
    (tmp_path / "session_latest").symlink_to(ours)
    remove_session(ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["session_foreign", "session_young"]


def test_what_is_not_looked_at_for_garbage_is_let_go_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    at_end: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", at_end.append)
    before = gc.get_threshold()
    try:
        collect_seldom()
        assert gc.get_freeze_count() > 0
        (end,) = at_end
        end()
        assert gc.get_freeze_count() == 0
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
