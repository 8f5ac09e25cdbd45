from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from orchestration.sockets import LOOPBACK, free_port

ASK = "from orchestration.sockets import may_use_dashboard_port as ask; print(ask(), flush=True); input()"


def test_the_usual_port_of_the_dashboard_is_one_process_until_it_ends(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def asks() -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", ASK],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    first, answer = asks()
    assert answer == "True"
    second, answer = asks()
    assert answer == "False"
    first.kill()
    first.communicate()
    third, answer = asks()
    assert answer == "True"
    for process in (second, third):
        process.communicate("\n")


def test_a_free_port_is_none_that_connections_are_given() -> None:
    assert free_port() < 32_768
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        assert free_port(taken.getsockname()[1]) != taken.getsockname()[1]
