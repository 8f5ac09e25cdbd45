"""Where this user's things are kept that outlive a command."""

from __future__ import annotations

import os
from pathlib import Path


def state_root() -> Path:
    """`$RLVR_STATE`, or `~/.local/state/rlvr`."""
    given = os.environ.get("RLVR_STATE")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(given) if given else Path(base) / "rlvr"
