"""The service as a process of its own, over a real socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from reward_service.child import RunningService, start_in_subprocess
from reward_service.clients.asynchronous import RewardClient
from reward_service.clients.errors import RewardServiceUnavailable
from reward_service.commands import main
from reward_service.errors import ServiceStartError
from reward_service.settings import ServiceSettings
from reward_service.types import RewardItem, RewardSpec
from tests.waiting import came_true

ITEMS = [
    RewardItem(id=str(n), completion=f"#### The final answer is {n}", reference={"final_answer": "3"}) for n in range(8)
]
REWARDS = [RewardSpec(name="gsm8k_format"), RewardSpec(name="gsm8k_correctness")]


SETTINGS = ServiceSettings(port=0, rewards=("gsm8k_format", "gsm8k_correctness", "last_number"))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with start_in_subprocess(SETTINGS, log_path=tmp_path / "logs" / "service.log") as service:
        yield service


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_score_over_a_socket_then_kill_it(service: RunningService) -> None:
    assert service.url.startswith("http://127.0.0.1:")
    async with RewardClient(service.url, timeout_s=5, deadline_s=10) as client:
        await client.health(timeout_s=5)
        calls = await asyncio.gather(*(client.score(ITEMS, REWARDS) for _ in range(10)))
        for results in calls:
            assert [result.total for result in results] == [1.5 if n == 3 else 0.5 for n in range(8)]
        service.process.kill()
        service.process.wait(10)
    async with RewardClient(service.url, timeout_s=1, deadline_s=0.5) as client:
        with pytest.raises(RewardServiceUnavailable, match=service.url):
            await client.score(ITEMS, REWARDS)
        with pytest.raises(RewardServiceUnavailable, match="is it running there"):
            await client.health(timeout_s=0.3)


def test_too_large_a_body_is_answered_before_it_is_sent(service: RunningService) -> None:
    response = httpx.post(f"{service.url}/v1/score", content=b"x" * (40 * 2**20), timeout=20, trust_env=False)
    assert response.status_code == 413
    assert "max_body_bytes" in response.json()["detail"]


def test_stop_is_orderly_and_may_be_repeated(service: RunningService) -> None:
    service.stop()
    service.stop()
    assert not is_running(service.process.pid)
    log = service.log_path.read_text()
    assert f"reward service at {service.url}\n" in log
    assert "Traceback" not in log


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import sys, time; from reward_service.child import start_in_subprocess\n"
        "print(start_in_subprocess(log_path=sys.argv[1]).process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
    try:
        assert came_true(lambda: not is_running(child))
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceStartError, match=f"cannot listen on 127.0.0.1 port {port}"):
            start_in_subprocess(ServiceSettings(port=port), log_path=tmp_path / "log")


def test_a_start_that_takes_too_long_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ServiceStartError, match="in time"):
        start_in_subprocess(log_path=tmp_path / "log", timeout_s=0.01)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "8.8.8.8", "example.org"])
def test_anything_else_is_refused(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", host, "--port", "0"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert host in message
    assert "127.0.0.1" in message


def test_bad_settings_are_said_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text('{"prot": 8300}')
    assert main(["--settings", str(settings)]) == 2
    assert capsys.readouterr().err == "reward service: settings: there is no setting 'prot'; is port meant?\n"
    assert main(["--settings", str(tmp_path / "none")]) == 2
    assert main(["--port", "99999"]) == 2


def test_nothing_heavy_is_loaded() -> None:
    modules = "reward_service.serve, reward_service.clients.asynchronous, reward_service.child"
    program = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert not {"torch", "ray", "vllm", "deepspeed", "transformers", "numpy"} & set(loaded.stdout.split())


def test_a_trainer_need_not_load_the_server() -> None:
    program = "import sys, reward_service.clients.asynchronous, reward_service.child; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert not {"fastapi", "uvicorn", "torch", "ray"} & set(loaded.stdout.split())
