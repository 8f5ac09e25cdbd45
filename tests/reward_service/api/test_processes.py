"""Several processes at one port: together they are one service."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from reward_service.api.processes import share_of
from reward_service.api.siblings import add_up
from reward_service.audit.settings import AuditSettings
from reward_service.audit.store import AuditStore
from reward_service.audit.verify import verify
from reward_service.child import RunningService, start_in_subprocess
from reward_service.commands import main
from reward_service.errors import ServiceStartError
from reward_service.judging.settings import JudgeSettings
from reward_service.keys import add_key, revoke_key
from reward_service.settings import ServiceSettings
from tests.waiting import until

ITEMS = [{"completion": str(n), "reference": {"final_answer": "3"}} for n in range(4)]
BODY = {"rewards": [{"name": "last_number"}], "items": ITEMS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, str]:
    path = folder / "keys.json"
    return {
        name: add_key(path, name, items_per_s=rate)[1] for name, rate in (("a", None), ("slow", 0.1), ("gone", None))
    }


@pytest.fixture(scope="module")
def service(folder: Path, keys: dict[str, str]) -> Iterator[RunningService]:
    settings = ServiceSettings(
        port=0,
        processes=2,
        num_workers=2,
        rewards=("last_number",),
        keys_file=folder / "keys.json",
        audit=AuditSettings(database=str(folder / "audit.sqlite3"), flush_s=0.05),
    )
    with start_in_subprocess(settings, log_path=folder / "log", timeout_s=120) as service:
        yield service


def post(service: RunningService, key: str) -> httpx.Response:
    """Over a connection of its own, which the kernel gives to any of the processes."""
    headers = {"x-api-key": key}
    return httpx.post(f"{service.url}/v1/score", json=BODY, headers=headers, timeout=60, trust_env=False)


def metric(service: RunningService, name: str) -> float:
    text = httpx.get(f"{service.url}/metrics", timeout=60, trust_env=False).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def servers(service: RunningService) -> list[psutil.Process]:
    """The processes that take requests: those with audit writers."""

    def takes_requests(child: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended between two looks
            return any("reward_service.audit.writer" in one.cmdline() for one in child.children())
        return False

    return [child for child in psutil.Process(service.process.pid).children() if takes_requests(child)]


def test_all_take_requests_and_metrics_and_records_add_up(service: RunningService, keys: dict[str, str]) -> None:
    number = 40
    for _ in range(number):
        answer = post(service, keys["a"])
        assert [result["total"] for result in answer.json()["results"]] == [0.0, 0.0, 0.0, 1.0]
    for _ in range(6):  # whichever process is asked
        assert metric(service, "reward_items_total") == 4 * number
        assert metric(service, "reward_workers ") == 2
        assert metric(service, 'reward_requests_total{endpoint="/v1/score",status="200"}') == number
    assert len(servers(service)) == 2
    database = str(Path(service.log_path).parent / "audit.sqlite3")

    def num_decisions() -> int:
        with closing(AuditStore(database)) as store:
            found = verify(store)
        assert found.findings == ()
        return found.num_decisions

    until(lambda: num_decisions() == 4 * number, poll_s=0.2)


def test_a_rate_limit_holds_for_all_together(service: RunningService, keys: dict[str, str]) -> None:
    """A tenth of an item a second, one at once: a request leaves the key in debt, whichever process sees the next."""
    statuses = [post(service, keys["slow"]).status_code for _ in range(10)]
    assert statuses.count(200) == 1
    assert statuses.count(429) == 9


def test_a_revoked_key_is_refused_by_all(service: RunningService, keys: dict[str, str], folder: Path) -> None:
    assert post(service, keys["gone"]).status_code == 200
    revoke_key(folder / "keys.json", "gone")
    until(lambda: {post(service, keys["gone"]).status_code for _ in range(8)} == {401})


def test_one_that_dies_is_started_again(service: RunningService, keys: dict[str, str]) -> None:
    before = {server.pid for server in servers(service)}
    os.kill(min(before), signal.SIGKILL)
    until(lambda: len(servers(service)) == 2 and min(before) not in {one.pid for one in servers(service)}, 60)
    for _ in range(10):
        assert post(service, keys["a"]).status_code == 200


def test_its_port_is_taken(service: RunningService, tmp_path: Path) -> None:
    port = int(service.url.rpartition(":")[2])
    for processes in (1, 2):
        settings = ServiceSettings(port=port, processes=processes, num_workers=2)
        with pytest.raises(ServiceStartError, match=f"cannot listen on 127.0.0.1 port {port}"):
            start_in_subprocess(settings, log_path=tmp_path / "log")


def test_all_end_together(tmp_path: Path) -> None:
    settings = ServiceSettings(port=0, processes=2, num_workers=2, rewards=("last_number",))
    with start_in_subprocess(settings, log_path=tmp_path / "log", timeout_s=120) as service:
        there = psutil.Process(service.process.pid).children(recursive=True)
        assert len(there) >= 2
        service.stop(timeout_s=60)
        until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in there))
    assert "Traceback" not in service.log_path.read_text()


def test_what_one_cannot_do_stops_the_start(tmp_path: Path) -> None:
    audit = AuditSettings(database="/dev/null/audit")
    with pytest.raises(ServiceStartError, match="cannot write the audit log"):
        start_in_subprocess(
            ServiceSettings(port=0, processes=2, num_workers=2, audit=audit), log_path=tmp_path / "log", timeout_s=120
        )


def test_limits_are_shared_out() -> None:
    judge = JudgeSettings(base_url="http://127.0.0.1:1/v1", model="m", max_concurrency=5)
    whole = ServiceSettings(processes=3, num_workers=4, max_workers=10, max_connections=100, judge=judge)
    parts = [share_of(whole, index) for index in range(3)]
    for name in ("num_workers", "max_workers", "max_queued_items", "max_connections", "max_connections_per_address"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name)
    assert [part.judge.max_concurrency for part in parts if part.judge is not None] == [2, 2, 1]
    assert parts[0].max_bodies_bytes >= whole.max_body_bytes


def test_more_processes_than_workers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--processes", "3", "num_workers=2"]) == 2
    assert "processes=3 is more than num_workers=2" in capsys.readouterr().err


def told(created: float, **samples: float) -> bytes:
    lines = [f'a_total{{x="{name}"}} {value}' for name, value in samples.items()]
    head = ["# HELP a_total A.", "# TYPE a_total counter", *lines, "# HELP a_created A.", "# TYPE a_created gauge"]
    return "\n".join([*head, f'a_created{{x="1"}} {created}', ""]).encode()


def test_metrics_add_up() -> None:
    assert add_up([told(9.0, one=2.0), told(7.0, one=3.0, two=1.0)]) == told(7.0, one=5.0, two=1.0)
    assert add_up([told(9.0, one=2.0)]) == told(9.0, one=2.0)
