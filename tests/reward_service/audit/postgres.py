"""A PostgreSQL server of a test's own, from the binaries of this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import until


def _binaries() -> Path:
    on_path = shutil.which("initdb")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or ([Path(on_path)] if on_path else [])
    if not found:
        pytest.skip("PostgreSQL is not installed")
    return found[-1].parent


@contextmanager
def running_postgres() -> Iterator[str]:
    """The URL of an empty database, on a Unix socket; skips where there is no PostgreSQL. It refuses to run as root."""
    binaries = _binaries()
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else None
    as_user = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="rlvr-pg-"))  # a short path without closed folders above it
    try:
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        data = folder / "data"
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "rlvr", "-A", "trust", "--no-sync", "-E", "UTF8"],
            check=True, capture_output=True, cwd=folder, timeout=60, **as_user,
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
                stdout=log, stderr=log, cwd=folder, start_new_session=True, **as_user,
            )  # fmt: skip
        try:
            _wait(binaries, folder, server)
            yield f"postgresql+psycopg://rlvr@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # its "fast" shutdown
            server.wait(30)
    finally:
        shutil.rmtree(folder)


def _wait(binaries: Path, folder: Path, server: subprocess.Popen[bytes]) -> None:
    ready = [binaries / "pg_isready", "-h", folder, "-U", "rlvr", "-q"]

    def is_ready() -> bool:
        assert server.poll() is None, (folder / "log").read_text()
        return subprocess.run(ready, check=False, timeout=10).returncode == 0

    until(is_ready, poll_s=0.05)
