"""The whole service over a socket: keys, TLS, audit, metrics, draining, dying."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from reward_service.audit.settings import AuditSettings
from reward_service.audit.store import AuditStore
from reward_service.audit.verify import verify
from reward_service.child import RunningService, start_in_subprocess
from reward_service.errors import ServiceStartError
from reward_service.keys import add_key, revoke_key
from reward_service.serve import serve
from reward_service.settings import CustomRewardSpec, ServiceSettings
from tests.reward_service.test_serve import is_running
from tests.waiting import came_true, until, until_async

GOOD = "#### The final answer is 72"
PAIR = [{"name": "gsm8k_format"}, {"name": "gsm8k_correctness"}]
BODY = {"rewards": PAIR, "items": [{"completion": GOOD, "reference": {"final_answer": "72"}, "id": "a"}]}


@contextmanager
def serving(tmp_path: Path, *custom: str, **settings: Any) -> Iterator[RunningService]:
    """A service with the pair and rewards of `hostile.py`."""
    given = ServiceSettings(
        port=0,
        rewards=("gsm8k_format", "gsm8k_correctness", *custom),
        custom_rewards=tuple(CustomRewardSpec(name=n, target=f"tests.reward_service.pool.hostile:{n}") for n in custom),
        **settings,
    )
    with start_in_subprocess(given, log_path=tmp_path / "service.log") as service:
        yield service


def post(service: RunningService, body: Any = BODY, path: str = "/v1/score", **options: Any) -> httpx.Response:
    return httpx.post(f"{service.url}{path}", json=body, timeout=30, trust_env=False, **options)


def get(service: RunningService, path: str, **options: Any) -> httpx.Response:
    return httpx.get(f"{service.url}{path}", timeout=30, trust_env=False, **options)


def workers(service: RunningService) -> list[int]:
    """Processes that the service has started, and those that these have."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout.split()[2:]
    parents = {int(pid): int(parent) for pid, parent in zip(listed[::2], listed[1::2], strict=True)}
    found: list[int] = [service.process.pid]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def num_scored(service: RunningService, reward: str) -> int:
    """Items that the reward has scored since the start."""
    found = re.search(rf'reward_item_seconds_count{{reward="{reward}"}} (\d+)', get(service, "/metrics").text)
    return int(found[1]) if found else 0


def test_keys_let_in_and_keep_out(tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.json"
    _, alice = add_key(keys_file, "alice")
    _, bob = add_key(keys_file, "bob", items_per_s=0.01, burst=2)
    with serving(tmp_path, keys_file=keys_file, audit=AuditSettings(database=str(tmp_path / "a.db"))) as service:
        refused = post(service)
        assert (refused.status_code, refused.json()["error"]) == (401, "unauthorized")
        assert "Bearer" in refused.headers["www-authenticate"]
        assert post(service, headers={"authorization": f"Bearer {alice}x"}).status_code == 401
        assert get(service, "/v1/rewards").status_code == 401
        assert get(service, "/v1/audit").status_code == 401
        for open_path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
            assert get(service, open_path).status_code == 200
        for how in (
            {"headers": {"authorization": f"Bearer {alice}"}},
            {"headers": {"x-api-key": alice}},
            {"auth": ("", alice)},
        ):
            assert post(service, **how).json()["results"][0]["total"] == 1.5
        by_bob = {"authorization": f"Bearer {bob}"}
        assert [post(service, headers=by_bob).status_code for _ in range(3)] == [200, 200, 429]
        limited = post(service, headers=by_bob)
        assert limited.json()["error"] == "rate_limited"
        assert int(limited.headers["retry-after"]) >= 1
        # callers see their own decisions only
        assert [r["caller"] for r in get(service, "/v1/audit", headers=by_bob).json()["records"]] == ["bob"] * 2
        revoke_key(keys_file, "alice")
        until(lambda: post(service, headers={"x-api-key": alice}).status_code == 401)
        log = service.log_path.read_text()
        assert alice not in log
        assert bob not in log


def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    command = [sys.executable, "-m", "reward_service", "--port", "0", "rewards=[gsm8k_format,gsm8k_correctness]"]
    command += [f"ssl_certfile={certificate}", f"ssl_keyfile={key}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().rpartition(" ")[2].strip()
            assert url.startswith("https://127.0.0.1:")
            trusted = ssl.create_default_context(cafile=str(certificate))
            with httpx.Client(verify=trusted, trust_env=False, timeout=20) as client:
                until(lambda: client.get(f"{url}/readyz").status_code == 200)
                assert client.post(f"{url}/v1/score", json=BODY).json()["results"][0]["total"] == 1.5
        finally:
            process.terminate()


def test_settings_that_cannot_work_are_said_at_the_start(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"keys_file": tmp_path / "none"}, "cannot read the API keys"),
        ({"ssl_certfile": tmp_path / "none.pem"}, "cannot use the certificate"),
        ({"audit": AuditSettings(database=str(tmp_path / "log" / "a.db"))}, "a.db"),  # log is a file
        ({"audit": AuditSettings(database="mysql://h/d")}, "mysql"),
        ({"rewards": ("gsm8k_fromat",)}, "gsm8k_fromat"),
        ({"host": "0.0.0.0"}, "without API keys"),
    ]
    (tmp_path / "log").touch()
    for settings, said in cases:
        with pytest.raises(ServiceStartError, match=said):
            serve(ServiceSettings(port=0, **settings))


def test_what_a_service_in_a_process_of_its_own_could_not_start_for_is_said_here(tmp_path: Path) -> None:
    with pytest.raises(ServiceStartError, match="cannot read the API keys") as caught:
        start_in_subprocess(ServiceSettings(port=0, keys_file=tmp_path / "none"), log_path=tmp_path / "log")
    assert "Traceback" not in str(caught.value)


def test_decisions_are_recorded_and_explained(tmp_path: Path) -> None:
    database = tmp_path / "audit.db"
    with serving(tmp_path, audit=AuditSettings(database=str(database))) as service:
        post(service, {**BODY, "run_id": "r1", "policy_version": 7})
        [record] = get(service, "/v1/audit", params={"run_id": "r1", "id": "a"}).json()["records"]
        assert (record["caller"], record["policy_version"], record["total"]) == ("anonymous", 7, 1.5)
        assert record["rewards"]["gsm8k_correctness"]["details"] == {"extracted": "72"}
        assert get(service, "/v1/audit", params={"run_id": "other"}).json()["records"] == []
        assert get(service, "/v1/audit", params={"limit": 0}).status_code == 422
        service.process.kill()
        service.process.wait(10)
    store = AuditStore(str(database))
    assert verify(store).findings == ()
    store.close()


def test_without_an_audit_log_there_is_nothing_to_explain(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        answer = get(service, "/v1/audit")
        assert (answer.status_code, answer.json()["error"]) == (404, "no_audit")


def test_nothing_is_answered_that_cannot_be_recorded(tmp_path: Path) -> None:
    audit = AuditSettings(database=str(tmp_path / "audit.db"), room_timeout_s=0.5)
    with serving(tmp_path, audit=audit) as service:
        writer = next(pid for pid in workers(service) if b"audit.writer" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(writer, signal.SIGKILL)
        refused = came_true(lambda: post(service).status_code == 503, timeout_s=1.0)
        until(lambda: post(service).status_code == 200)  # another writer took its place
        assert refused or post(service).status_code == 200


def test_metrics_count_what_happened(tmp_path: Path) -> None:
    with serving(tmp_path, "hangs", deadline_s=1.0) as service:
        post(service)
        rewards = [*PAIR, {"name": "hangs"}]
        post(service, {"rewards": rewards, "items": [{"completion": "sleeps"}, {"completion": GOOD}]})
        post(service, {"rewards": []})
        lines = get(service, "/metrics").text.splitlines()
        figures = dict(line.rsplit(" ", 1) for line in lines if line and line[0] != "#")
        assert figures['reward_requests_total{endpoint="/v1/score",status="200"}'] == "2.0"
        assert figures['reward_requests_total{endpoint="/v1/score",status="422"}'] == "1.0"
        assert figures["reward_items_total"] == "3.0"
        assert figures['reward_workers_restarted_total{reason="timeout"}'] == "1.0"
        assert float(figures['reward_unscored_items_total{reason="invalid_reference",reward="gsm8k_correctness"}']) >= 2
        assert float(figures['reward_item_seconds_count{reward="gsm8k_format"}']) >= 3
        assert figures["reward_queued_items"] == "0.0"


def test_what_was_accepted_is_answered_on_sigterm(tmp_path: Path) -> None:
    async def run(service: RunningService) -> None:
        body = {"rewards": [{"name": "hangs"}], "items": [{"completion": "slow"}] * 4}
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            work = asyncio.create_task(client.post(f"{service.url}/v1/score", json=body))
            await until_async(lambda: asyncio.to_thread(num_scored, service, "hangs"))
            service.process.send_signal(signal.SIGTERM)
            answer = await work
            assert await asyncio.to_thread(service.process.wait, 10) == 0
        assert [result["total"] for result in answer.json()["results"]] == [1.0] * 4

    with serving(tmp_path, "hangs") as service:
        started = workers(service)
        asyncio.run(run(service))
        service.process.wait(10)
        until(lambda: not any(map(is_running, started)))
        assert "Traceback" not in service.log_path.read_text()


def test_what_is_not_done_when_the_time_to_end_is_over_is_answered_as_it_is(tmp_path: Path) -> None:
    with serving(tmp_path, "hangs", deadline_s=60, shutdown_timeout_s=1, chunk_items=1) as service:
        body = {"rewards": [{"name": "hangs"}], "items": [{"completion": "x"}, {"completion": "sleeps"}]}
        with ThreadPoolExecutor() as executor:
            pending = executor.submit(post, service, body)
            until(lambda: num_scored(service, "hangs") == 1)
            service.process.send_signal(signal.SIGTERM)
            done, cut = pending.result(20).json()["results"]
        assert done["total"] == 1.0
        assert cut["rewards"]["hangs"]["reason"] == "unavailable"
        service.process.wait(10)


def test_what_nobody_waits_for_any_more_is_given_up(tmp_path: Path) -> None:
    with serving(tmp_path, "hangs", deadline_s=60) as service:
        body = {"rewards": [{"name": "hangs"}], "items": [{"completion": "sleeps"}] * 3}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{service.url}/v1/score", json=body, timeout=0.5, trust_env=False)
        gone = 'reward_workers_restarted_total{reason="abandoned"}'
        until(lambda: gone in get(service, "/metrics").text)
        assert 'reward_requests_total{endpoint="/v1/score",status="499"} 1.0' in get(service, "/metrics").text
        assert "Traceback" not in service.log_path.read_text()


def test_a_killed_service_leaves_no_process_and_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))  # short, as a socket lies in it
    monkeypatch.setenv("TMPDIR", str(temporary))
    with serving(tmp_path, "hangs", audit=AuditSettings(database=str(tmp_path / "a.db"))) as service:
        body = {"rewards": [{"name": "hangs"}], "items": [{"completion": "spins"}, {"completion": "deaf"}]}
        with ThreadPoolExecutor() as executor:
            pending = executor.submit(post, service, body)
            until(lambda: len(workers(service)) >= 4)  # the server of forks, two that hang, the audit writer
            started = workers(service)
            assert [path.name[:5] for path in temporary.iterdir()] == ["pymp-"]
            service.process.kill()
            assert isinstance(pending.exception(10), httpx.TransportError)
        until(lambda: not any(map(is_running, started)))
        until(lambda: not any(temporary.iterdir()))
    temporary.rmdir()


def test_too_much_at_once_is_refused_with_the_time_to_come_back(tmp_path: Path) -> None:
    with serving(tmp_path, "hangs", max_queued_items=10, num_workers=1, max_workers=1) as service:

        async def run() -> list[httpx.Response]:
            body = {"rewards": [{"name": "hangs"}], "items": [{"completion": "slow"}] * 6}
            async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
                return await asyncio.gather(*(client.post(f"{service.url}/v1/score", json=body) for _ in range(6)))

        answers = asyncio.run(run())
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses[0] == 200
        assert statuses[-1] == 429
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert (refused.json()["error"], refused.headers["retry-after"]) == ("queue_full", "1")
