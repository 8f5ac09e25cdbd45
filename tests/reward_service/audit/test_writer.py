"""The writer process: nothing blocks, nothing is lost but what a kill -9 of the server had not handed over."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from reward_service.audit.decisions import decisions
from reward_service.audit.handle import AuditHandle
from reward_service.audit.records import Head
from reward_service.audit.settings import AuditSettings
from reward_service.audit.store import AuditStore
from reward_service.audit.verify import Verification, verify
from reward_service.audit.wire import FLUSH, FrameReader, Start, Status, frame
from reward_service.audit.writer import Writer
from reward_service.child import start_in_subprocess
from reward_service.errors import AuditError, AuditUnavailableError
from reward_service.settings import ServiceSettings
from tests.reward_service.audit.audit_cases import batch
from tests.waiting import others_run, until, until_async

ROOT = Path(__file__).parents[3]


@pytest.fixture
def database(tmp_path: Path) -> str:
    return str(tmp_path / "audit.sqlite3")


@asynccontextmanager
async def running(database: str, **settings: object) -> AsyncIterator[AuditHandle]:
    given = AuditSettings.model_validate({"database": database, "flush_s": 0.05, **settings})
    handle = await AuditHandle.start(given, service_version="1.0")
    try:
        yield handle
    finally:
        await handle.close()


def verified(database: str) -> Verification:
    store = AuditStore(database)
    try:
        found = verify(store)
    finally:
        store.close()
    assert found.findings == ()
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_frames_come_in_any_pieces() -> None:
    messages = [frame(Status(1, 2, "x")), FLUSH, frame(Status(3, 4, "y" * 300, "why"))]
    stream = b"".join(messages)
    for size in (1, 3, 7, len(stream)):
        reader = FrameReader()
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert [found for piece in pieces for found in reader.feed(piece)] == [message[4:] for message in messages]


async def test_what_is_offered_is_in_the_log(database: str) -> None:
    async with running(database, flush_s=60) as handle:
        assert handle.failed is None
        for number in range(50):
            async with handle.room(1000):
                handle.offer(batch(number, num_items=4))
        assert handle.bytes_in_flight > 0
        await handle.flush(10)
        assert handle.bytes_in_flight == 0
        found = verified(database)
        assert (found.num_records, found.num_decisions, found.head) == (50, 200, handle.head)
        handle.offer(batch(50))
        pid = handle.writer_pid
    assert verified(database).num_decisions == 202, "closing commits"
    assert pid is not None
    assert is_gone(pid)
    with pytest.raises(AuditUnavailableError, match="closed"):
        handle.offer(batch(51))


async def test_it_commits_by_time_and_by_number(database: str) -> None:
    async with running(database, flush_s=0.1) as handle:
        handle.offer(batch(0))
        await until_async(lambda: handle.bytes_in_flight == 0, 5)
    async with running(database, flush_s=60, flush_records=5) as handle:
        for number in range(5):
            handle.offer(batch(number))
        await until_async(lambda: handle.bytes_in_flight == 0, 5)


async def test_texts_are_kept_only_if_asked_for(database: str, tmp_path: Path) -> None:
    for keep in (False, True):
        async with running(database, keep_text=keep) as handle:
            handle.offer(batch(0, completion="the words of a model"))
        assert (b"the words of a model" in (tmp_path / "audit.sqlite3").read_bytes()) is keep


async def test_a_killed_writer_is_started_again_and_nothing_is_lost_or_doubled(database: str) -> None:
    async with running(database) as handle:
        offered = 0
        for kill in range(3):
            for _ in range(20):
                handle.offer(batch(offered))
                offered += 1
                await asyncio.sleep(0.002)
            assert handle.writer_pid is not None
            os.kill(handle.writer_pid, signal.SIGKILL)
            await until_async(lambda: handle.failed is not None)
            assert handle.failed is not None
            assert "died" in handle.failed, kill
            with pytest.raises(AuditUnavailableError, match="cannot be recorded"):
                handle.offer(batch(offered))
            with pytest.raises(AuditUnavailableError):
                await handle.flush(1)
            await until_async(lambda: handle.failed is None)
        await handle.flush(10)
    store = AuditStore(database)
    with store.snapshot() as snapshot:
        ids = [one.item_id for row in snapshot.records() for one in decisions(row)]
    store.close()
    assert ids == [f"{number}/{n}" for number in range(offered) for n in range(2)]
    verified(database)


@pytest.mark.parametrize("pause_s", [0.0, 0.3, 2.0])
async def test_nothing_is_lost_when_the_end_comes_while_the_writer_is_dead(database: str, pause_s: float) -> None:
    handle = await AuditHandle.start(AuditSettings(database=database, flush_s=60), service_version="1")
    for number in range(4):
        handle.offer(batch(number, num_items=20))
    assert handle.writer_pid is not None
    os.kill(handle.writer_pid, signal.SIGKILL)
    await asyncio.sleep(pause_s)
    await handle.close(timeout_s=60)
    assert verified(database).num_decisions == 80


async def test_a_writer_that_hangs_at_the_end_is_replaced(database: str) -> None:
    handle = await AuditHandle.start(AuditSettings(database=database, flush_s=60), service_version="1")
    handle.offer(batch(0, num_items=20))
    assert handle.writer_pid is not None
    os.kill(handle.writer_pid, signal.SIGSTOP)
    await handle.close(timeout_s=20)
    assert verified(database).num_decisions == 20


def test_a_service_that_ends_after_its_writer_was_killed_has_recorded_what_it_answered(tmp_path: Path) -> None:
    database = str(tmp_path / "audit.sqlite3")
    settings = ServiceSettings(
        port=0, rewards=("last_number",), num_workers=1, audit=AuditSettings(database=database, flush_s=60)
    )
    items = [{"completion": str(n), "reference": {"final_answer": str(n)}} for n in range(20)]
    with start_in_subprocess(settings, log_path=tmp_path / "log") as service:
        for _ in range(4):
            body = {"rewards": [{"name": "last_number"}], "items": items}
            httpx.post(f"{service.url}/v1/score", json=body, timeout=60, trust_env=False).raise_for_status()
        children = psutil.Process(service.process.pid).children()
        (writer,) = [child for child in children if "reward_service.audit.writer" in child.cmdline()]
        writer.kill()
        service.stop(timeout_s=60)
    assert verified(database).num_decisions == 80


SERVER = """
import asyncio, sys
from reward_service.audit.handle import AuditHandle
from reward_service.audit.settings import AuditSettings
from tests.reward_service.audit.audit_cases import batch

async def main():
    settings = AuditSettings(database=sys.argv[1], flush_s=0.05)
    handle = await AuditHandle.start(settings, service_version="1")
    for number in range(10**6):
        handle.offer(batch(number))
        if number % 100 == 0:
            await handle.flush(10)
            print(handle.writer_pid, handle.head, flush=True)

asyncio.run(main())
"""


def test_a_killed_server_leaves_an_unbroken_log(database: str) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER, database], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert server.stdout is not None
    lines = [server.stdout.readline() for _ in range(10)]
    server.kill()
    lines += server.stdout.read().splitlines(keepends=True)
    server.wait(10)
    server.stdout.close()
    pid, head = next(line for line in reversed(lines) if line.endswith("\n")).split()
    until(lambda: is_gone(int(pid)))
    seq, _, digest = head.partition(":")
    store = AuditStore(database)
    found = verify(store, expected=Head(int(seq), digest))
    store.close()
    assert found.findings == ()
    assert found.num_records >= int(seq) >= 500


async def test_two_servers_share_a_log(database: str) -> None:
    async def serve(first: int) -> None:
        async with running(database, flush_records=1) as handle:
            for number in range(first, first + 50):
                handle.offer(batch(number))
                await others_run()

    await asyncio.gather(serve(0), serve(1000))
    assert verified(database).num_decisions == 200


async def test_a_full_disk_is_said_and_survived(database: str) -> None:
    """A limit on the size of files does for the writer what a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with running(database) as handle:
        pid = handle.writer_pid
        assert pid is not None
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (400_000, hard))
        offered = 0

        def has_failed() -> bool:
            nonlocal offered
            if handle.failed is None:
                handle.offer(batch(offered, num_items=20))
                offered += 1
            return handle.failed is not None

        await until_async(has_failed, 20)
        assert "audit log" in handle.failed
        with pytest.raises(AuditUnavailableError, match="audit log"):
            handle.offer(batch(offered))
        with pytest.raises(AuditUnavailableError):
            async with handle.room(1):
                pass
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
        await until_async(lambda: handle.failed is None)
        await handle.flush(10)
        assert handle.writer_pid == pid
    assert verified(database).num_decisions == offered * 20


async def test_what_a_full_disk_leaves_out_at_the_end_is_an_error(database: str) -> None:
    handle = await AuditHandle.start(AuditSettings(database=database, flush_s=0.05), service_version="1")
    pid = handle.writer_pid
    assert pid is not None
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    handle.offer(batch(0))
    await until_async(lambda: handle.failed is not None)
    with pytest.raises(AuditError, match="the decisions of 1 requests are not in the audit log"):
        await handle.close(0.2)
    assert is_gone(pid)


@pytest.mark.parametrize(("drain_timeout_s", "attempts"), [(1.5, 3), (10.0, 11)])
def test_what_a_server_that_is_gone_left_is_tried_for_so_long(
    database: str, monkeypatch: pytest.MonkeyPatch, drain_timeout_s: float, attempts: int
) -> None:
    """A scripted clock: the writer tries once a second."""
    now, tried = [100.0], []

    class FullDisk:
        def append(self, *_: object, **__: object) -> Head:
            tried.append(now[0])
            raise AuditError("the disk is full")

    monkeypatch.setattr("reward_service.audit.writer.time.monotonic", lambda: now[0])
    monkeypatch.setattr("reward_service.audit.writer.time.sleep", lambda s: now.__setitem__(0, now[0] + s))
    settings = AuditSettings(database=database, drain_timeout_s=drain_timeout_s)
    ours, theirs = socket.socketpair()
    start = Start(settings.model_dump_json(), "session", "1.0")
    with ours, theirs:
        writer = Writer(ours, FrameReader(), start, parent_pid=-1)  # nobody's: its server is gone
        monkeypatch.setattr(writer, "_store", FullDisk())
        with pytest.raises(AuditError, match="the service has ended, 0 records are lost"):
            writer._commit()
    assert len(tried) == attempts


async def test_a_writer_that_is_behind_is_not_waited_for(database: str) -> None:
    settings = {"max_bytes_in_flight": 2**16, "room_timeout_s": 0.1, "flush_records": 1}
    async with running(database, **settings) as handle:
        assert handle.writer_pid is not None
        os.kill(handle.writer_pid, signal.SIGSTOP)
        try:
            size, accepted = len(frame(batch(0))), 0
            async with handle.room(2**15):  # kept free for what is under way, though nothing is in flight yet
                while handle.bytes_in_flight + size <= 2**15:
                    async with handle.room(size):
                        handle.offer(batch(0))
                    accepted += 1
                began = time.monotonic()
                with pytest.raises(AuditUnavailableError, match="bytes behind"):
                    async with handle.room(size):
                        pass
                assert time.monotonic() - began < 60
            with pytest.raises(AuditUnavailableError):
                await handle.flush(0.1)
        finally:
            os.kill(handle.writer_pid, signal.SIGCONT)
        await handle.flush(10)
        async with handle.room(10**6):  # more than the bound, and nothing else is under way
            handle.offer(batch(0, completion="x" * 10**6))
    assert verified(database).num_decisions == 2 * accepted + 2


async def test_a_terminal_does_not_end_the_writer(database: str) -> None:
    async with running(database) as handle:
        assert handle.writer_pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(handle.writer_pid, number)
        handle.offer(batch(0))
        await handle.flush(10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"database": "mysql://u:secret@h/d"}, "mysql is no audit database"),
        ({"database": "/dev/null/audit"}, "cannot write the audit log"),
        ({"hmac_key_file": "/dev/null"}, "hmac_key_file: /dev/null holds 0 bytes"),
    ],
)
async def test_a_log_that_cannot_be_stops_the_start(database: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(AuditError, match=message):
        await AuditHandle.start(AuditSettings.model_validate({"database": database, **settings}), service_version="1")


def test_settings_do_not_show_a_password() -> None:
    assert "secret" not in repr(AuditSettings(database="postgresql+psycopg://u:secret@h/d"))
