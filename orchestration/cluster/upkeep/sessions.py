"""Ray's folder of a session that we started goes with it, unless somebody was told to look there, or RLVR_KEEP_SESSIONS
is set: then a day later."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from rollout_server.forking.leftovers import is_gone, mark

KEPT_S = 24 * 3600.0
KEEP = "RLVR_KEEP_SESSIONS"
_OWNER, _END_S, _POLL_S = "rlvr-owner", 5.0, 0.1


def claim_session(folder: Path) -> None:
    """Write into a session's folder whose it is, and remove those beside it whose owners ended a day ago."""
    (folder / _OWNER).write_text(mark())
    for owner in folder.parent.glob(f"session_*/{_OWNER}"):
        if is_gone(owner.read_text()) and time.time() - owner.stat().st_mtime > KEPT_S:
            shutil.rmtree(owner.parent, ignore_errors=True)


def remove_session(folder: Path) -> None:
    """Remove the folder of a session that has ended; Ray's agents may write to it a moment more. Takes up to 5 s."""
    if os.environ.get(KEEP):
        return
    deadline = time.monotonic() + _END_S
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_POLL_S)
    latest = folder.parent / "session_latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink(missing_ok=True)
