"""Processes forked by a server that has imported once: what they are given, how they end, and that nothing is left."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rollout_server.forking.channel import packed, read_message
from rollout_server.forking.client import (
    ForkedProcess,
    ForkedProcessEndedError,
    ForkServerHandle,
    is_served,
    start_fork_server,
)
from rollout_server.forking.server import GRACE_S
from rollout_server.types import AdapterPayload
from tests.waiting import until_async

HOSTED = """
import os, subprocess, sys, asyncio
from rollout_server.forking.hosted import host

imports = []  # of the process that imported this

class Hosted:
    def __init__(self, tell, word):
        if word == "refuse":
            raise ValueError("no such model")
        if word == "hang":
            subprocess.run(["sleep", "600"])
        self.tell, self.word, self.child = tell, word, subprocess.Popen(["sleep", "600"])

    def facts(self):
        return {"word": self.word, "imported_by": imports[0], "pid": os.getpid(), "child": self.child.pid,
                "folder": os.getcwd(), "variable": os.environ.get("RLVR_TEST_VARIABLE")}

    async def wait(self, seconds):
        try:
            await asyncio.sleep(seconds)
            return seconds
        except asyncio.CancelledError:
            self.word = "cancelled"
            raise

    def reverse(self, content):
        return content[::-1]

    def fail(self):
        raise KeyError("of the hosted object")

    def say(self, news):
        self.tell(news)
        print("said", news, flush=True)

    def shutdown(self):
        pass

imports.append(os.getpid())

def begin(connection, word):
    host(connection, lambda tell: Hosted(tell, word))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServerHandle]:
    server = new_server(tmp_path_factory.mktemp("modules"))
    yield server
    server.stop()


def new_server(folder: Path) -> ForkServerHandle:
    (folder / "hosted_for_tests.py").write_text(HOSTED)
    paths = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return start_fork_server(["hosted_for_tests"], {**os.environ, "PYTHONPATH": paths})


async def started(server: ForkServerHandle, word: str = "tree", news: list[object] | None = None) -> ForkedProcess:
    process = ForkedProcess(server.address, ([] if news is None else news).append)
    await process.start("hosted_for_tests:begin", word)
    return process


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until_gone(*pids: int) -> None:
    await until_async(lambda: all(map(gone, pids)), 20)


async def test_it_has_what_the_server_imported_and_what_the_client_is(server, monkeypatch, tmp_path):
    monkeypatch.setenv("RLVR_TEST_VARIABLE", "ours")
    monkeypatch.chdir(tmp_path)
    facts = await (first := await started(server)).call("facts")
    os.kill(facts["imported_by"], signal.SIGTERM)  # that goes to all processes of a run is no word to the server
    others = await (second := await started(server, "other")).call("facts")
    assert facts["imported_by"] == others["imported_by"] != facts["pid"] != others["pid"]
    assert (facts["folder"], facts["variable"]) == (str(tmp_path), "ours")
    assert (facts["word"], others["word"]) == ("tree", "other")
    for process in (first, second):
        await process.close()


async def test_closing_waits_for_its_end_and_what_it_left_behind_is_killed(server):
    process = await started(server)
    facts = await process.call("facts")
    await process.close()
    assert gone(facts["pid"])
    await until_gone(facts["child"])


async def test_calls_overlap_and_a_cancelled_one_is_cancelled_there(server):
    process = await started(server)
    long = asyncio.create_task(process.call("wait", 600))
    assert await process.call("wait", 0) == 0
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long

    async def is_told() -> bool:
        return (await process.call("facts"))["word"] == "cancelled"

    await until_async(is_told, 20)
    await process.close()


@pytest.mark.parametrize("exchange", ["there", "full or gone"])
async def test_large_messages_go_as_files_and_leave_none(server, exchange):
    """Both ways, as many at once as there are; without a place for files they go like small ones."""
    process = await started(server)
    if exchange != "there":
        process._exchange = "/nowhere"
    contents = [os.urandom(3 << 20) for _ in range(4)]
    reversed_contents = await asyncio.gather(*(process.call("reverse", content) for content in contents))
    assert reversed_contents == [content[::-1] for content in contents]
    assert list(Path(server.address).parent.glob("message-*")) == []
    await process.close()


@pytest.mark.parametrize("exchange", ["there", "full or gone"])
async def test_an_adapter_is_a_view_of_the_file_it_came_in(tmp_path, exchange):
    weights = os.urandom(3 << 20)
    files = (("adapter_config.json", b"{}"), ("adapter_model.safetensors", weights))
    sent = AdapterPayload(version=3, files=files, tied=(("a", "b"),), probe_token_ids=(1, 2))
    reader = asyncio.StreamReader()
    reader.feed_data(packed((1, True, sent), str(tmp_path if exchange == "there" else tmp_path / "gone")))
    number, well, received = await read_message(reader)
    assert (number, well, received) == (1, True, sent)
    assert [type(content) for _, content in received.files] == [bytes, memoryview if exchange == "there" else bytes]
    assert list(tmp_path.iterdir()) == []
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(received, protocol)) == sent


async def test_errors_and_news_arrive(server):
    news: list[object] = []
    process = await started(server, news=news)
    with pytest.raises(KeyError, match="of the hosted object"):
        await process.call("fail")
    await process.call("say", {"tokens": 3})
    assert news == [{"tokens": 3}]
    await process.close()


async def test_what_goes_wrong_at_the_start_is_raised_by_it(server):
    with pytest.raises(ValueError, match="no such model"):
        await started(server, "refuse")


async def test_a_start_that_hangs_can_be_given_up(server):
    before = set(psutil.Process(server._process.pid).children(recursive=True))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await started(server, "hang")
    assert set(psutil.Process(server._process.pid).children(recursive=True)) == before


async def test_a_process_that_is_killed_fails_the_calls_under_way_and_leaves_nothing(server):
    process = await started(server)
    facts = await process.call("facts")
    call = asyncio.create_task(process.call("wait", 600))
    await process.call("wait", 0)
    os.kill(facts["pid"], signal.SIGKILL)
    with pytest.raises(ForkedProcessEndedError, match="killed by SIGKILL"):
        await call
    with pytest.raises(ForkedProcessEndedError, match="killed by SIGKILL"):
        await process.call("facts")
    await until_gone(facts["child"])
    await process.close()


async def test_its_output_is_its_clients(server, capfd):
    process = await started(server)
    await process.call("say", "something")
    await process.close()
    assert "said something" in capfd.readouterr().out


CLIENT = """
import asyncio, os, sys
from rollout_server.forking.client import ForkedProcess, start_fork_server

async def main():
    address = sys.argv[1] if len(sys.argv) > 1 else start_fork_server(["hosted_for_tests"], os.environ).address
    process = ForkedProcess(address, print)
    await process.start("hosted_for_tests:begin", "word")
    facts = await process.call("facts")
    print(facts["pid"], facts["child"], facts["imported_by"], flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("own_server", [False, True])
async def test_a_client_that_is_killed_takes_its_processes_along(server, tmp_path, own_server):
    (tmp_path / "hosted_for_tests.py").write_text(HOSTED)
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-c", CLIENT, *([] if own_server else [server.address])]
    client = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    )
    assert client.stdout is not None
    pid, child, importer = map(int, (await client.stdout.readline()).split())
    client.kill()
    await client.wait()
    await until_gone(pid, child, *([importer] if own_server else []))
    assert gone(importer) == own_server


def test_a_server_that_still_imports_is_stopped_at_once(tmp_path: Path):
    (tmp_path / "imports_forever.py").write_text("import time\ntime.sleep(600)")
    server = start_fork_server(
        ["imports_forever"], {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    )
    assert is_served(server.address)
    began = time.monotonic()
    server.stop()
    assert not server.running
    assert time.monotonic() - began < 60
    assert not Path(server.address).parent.exists()


async def test_one_that_hangs_does_not_hold_up_the_end_of_its_server(tmp_path: Path):
    server = new_server(tmp_path)
    facts = await (await started(server)).call("facts")
    os.kill(facts["pid"], signal.SIGSTOP)
    began = time.monotonic()
    await asyncio.to_thread(server.stop)
    assert time.monotonic() - began < GRACE_S
    await until_gone(facts["pid"], facts["child"])


async def test_a_server_that_cannot_import_says_why(tmp_path: Path):
    server = start_fork_server(["no_such_module_at_all"], os.environ)
    try:
        with pytest.raises(ForkedProcessEndedError, match="No module named 'no_such_module_at_all'"):
            await started(server)
        await until_async(lambda: not server.running, 20)
        assert Path(server.address).exists()
        assert not is_served(server.address)
        with pytest.raises(ForkedProcessEndedError, match="no fork server answers"):
            await started(server)
    finally:
        server.stop()
