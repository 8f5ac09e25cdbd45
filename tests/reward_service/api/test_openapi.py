"""The service against what its OpenAPI document says of it: generated requests, valid and not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reward_service.child import start_in_subprocess
from reward_service.keys import add_key
from reward_service.settings import ServiceSettings


@pytest.mark.slow
@pytest.mark.parametrize("keys", [False, True], ids=["open", "with keys"])
def test_schemathesis_finds_nothing(tmp_path: Path, keys: bool) -> None:
    headers, settings = [], {}
    if keys:
        _, key = add_key(tmp_path / "keys.json", "fuzz")
        headers, settings = ["--header", f"Authorization: Bearer {key}"], {"keys_file": str(tmp_path / "keys.json")}
    # Deadlines are short so that a generated pattern or program that hangs does not hold the test up.
    given = ServiceSettings(port=0, deadline_s=1, audit={"database": str(tmp_path / "audit.db")}, **settings)
    with start_in_subprocess(given, log_path=tmp_path / "service.log", timeout_s=60) as service:
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{service.url}/openapi.json"]
        command += ["--max-examples", "30", "--generation-deterministic", "--request-timeout", "30", *headers]
        run = subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env=os.environ | {"NO_PROXY": "127.0.0.1"},
        )
        assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
        assert "12 selected / 12 total" in run.stdout
    assert "Traceback" not in service.log_path.read_text()
