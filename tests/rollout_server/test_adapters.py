"""Adapter files on a node and the bookkeeping of who uses them."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_server.errors import AdapterCorruptError
from rollout_server.publishing.adapters import AdapterStore, AdapterTable, remove_leftovers
from rollout_server.types import AdapterPayload, AdapterVersion


def payload(version: int, content: bytes = b"weights") -> AdapterPayload:
    return AdapterPayload(
        version=version, files=(("adapter_config.json", b"{}"), ("adapter_model.safetensors", content))
    )


def adapter(number: int) -> AdapterVersion:
    return AdapterVersion(number=number, path=f"/v{number}", key="c", num_bytes=1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_written_once_for_all_workers_of_a_node(run_root):
    first, second = AdapterStore(str(run_root), "a"), AdapterStore(str(run_root), "a")
    placed, again = first.place(payload(1)), second.place(payload(1))
    assert placed.write_ms > 0
    assert again.write_ms == 0
    assert again.version.path == placed.version.path
    assert again.version.key != placed.version.key
    assert placed.version.num_bytes == len(b"{}") + len(b"weights")
    assert Path(placed.version.path) == run_root / "rlvr-a" / "v1"
    assert names(Path(placed.version.path)) == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_last_worker_to_drop_a_version_deletes_its_files(run_root):
    first, second = AdapterStore(str(run_root), "a"), AdapterStore(str(run_root), "a")
    first.place(payload(1)), second.place(payload(1))
    first.drop(1)
    assert (run_root / "rlvr-a" / "v1").is_dir()
    second.drop(1)
    assert names(run_root / "rlvr-a") == ["guard.lock"]
    first.close()
    assert names(run_root) == ["rlvr-a", "rlvr-a.lock"]
    second.close()
    assert names(run_root) == []


def test_other_content_under_the_same_version_is_refused(run_root):
    first, second = AdapterStore(str(run_root), "a"), AdapterStore(str(run_root), "a")
    first.place(payload(1))
    with pytest.raises(AdapterCorruptError, match=r"version 1 in .*/rlvr-a/v1 is not what the learner sent, by its"):
        second.place(payload(1, b"others"))
    first.drop(1)
    second.place(payload(1, b"others"))


def test_a_full_node_says_which_folder_is_full(run_root):
    store = AdapterStore(str(run_root), "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        with pytest.raises(OSError, match="/rlvr-a/v1'"):
            store.place(payload(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.place(payload(1)).write_ms > 0


def test_a_file_name_cannot_leave_the_folder(run_root):
    store = AdapterStore(str(run_root), "a")
    with pytest.raises(ValueError, match=r"'\.\./x' is not a plain file name"):
        store.place(AdapterPayload(version=1, files=(("../x", b""),)))
    assert names(run_root / "rlvr-a") == ["guard.lock"]


def _hold_a_version(root: str, ready: multiprocessing.synchronize.Event) -> None:
    store = AdapterStore(root, "dead")
    store.place(payload(3))
    ready.set()
    signal.pause()


def test_what_a_killed_run_left_is_cleaned_and_what_lives_is_not(run_root):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold_a_version, args=(str(run_root), ready))
    process.start()
    assert ready.wait(30)
    (run_root / "rlvr-not-ours").mkdir()  # no lock beside it
    alive = AdapterStore(str(run_root), "alive")
    assert (run_root / "rlvr-dead" / "v3").is_dir()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert remove_leftovers(run_root) == ["rlvr-dead"]
    assert names(run_root) == ["rlvr-alive", "rlvr-alive.lock", "rlvr-not-ours"]
    alive.close()


def test_a_lock_removed_by_another_process_is_taken_again(run_root):
    """A worker that starts while the last one of the run ends may have opened the lock that the other removes."""
    first = AdapterStore(str(run_root), "a")
    starting = threading.Thread(target=AdapterStore, args=(str(run_root), "a"))
    first._run_lock.acquire_exclusive()
    starting.start()
    time.sleep(0.05)  # it waits for the lock
    first.close()
    starting.join(10)
    assert not starting.is_alive()
    assert names(run_root) == ["rlvr-a", "rlvr-a.lock"]


def test_a_version_is_idle_when_it_is_neither_current_nor_in_use():
    table = AdapterTable()
    assert table.acquire() == 0
    table.add(adapter(1))
    assert table.current == 0
    assert table.idle() == (adapter(1),)
    table.make_current(1)
    assert [table.acquire(), table.acquire()] == [1, 1]
    table.add(adapter(2))
    table.make_current(2)
    table.release(1)
    assert table.idle() == ()
    table.release(1)
    assert table.idle() == (adapter(1),)
    table.discard(1)
    table.release(0)
    assert table.live == (2,)
    assert table.version(0) is None
    assert table.version(2) == adapter(2)


def test_a_version_in_use_cannot_be_discarded():
    table = AdapterTable()
    table.add(adapter(1))
    table.make_current(1)
    with pytest.raises(ValueError, match="version 1 is in use"):
        table.discard(1)
    with pytest.raises(ValueError, match="version 1 cannot be added"):
        table.add(adapter(1))
    with pytest.raises(ValueError, match="version 0 cannot be added"):
        table.add(adapter(0))
    with pytest.raises(ValueError, match="version 5 is not among"):
        table.make_current(5)


@given(st.lists(st.sampled_from(["acquire", "release", "publish"]), max_size=40))
def test_what_requests_hold_is_never_idle(steps):
    table = AdapterTable()
    held: list[int] = []
    for step in steps:
        if step == "acquire":
            held.append(table.acquire())
        elif step == "release" and held:
            table.release(held.pop(0))
        elif step == "publish":
            table.add(adapter(table.current + 1))
            table.make_current(table.current + 1)
        for version in table.idle():
            table.discard(version.number)
        assert set(table.live) == {number for number in (*held, table.current) if number}
        assert all(table.num_requests(number) == held.count(number) for number in table.live)
