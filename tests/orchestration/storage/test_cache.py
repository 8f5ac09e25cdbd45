"""Folders made once: atomic, checked, and never built twice at the same time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestration.errors import DataError
from orchestration.storage import cache
from orchestration.storage.cache import MANIFEST, cache_root, cached_folder
from tests.waiting import until


class Builder:
    """Writes two files and counts its calls."""

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.calls = 0
        self._wait = wait

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        self._wait()
        (folder / "weights").write_bytes(b"0123456789")
        (folder / "sub").mkdir()
        (folder / "sub" / "config").write_text("{}")


def tamper(path: Path, content: bytes, *, keep_time: bool) -> None:
    state = path.stat()
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    else:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))


def test_a_folder_is_built_once_and_then_reused(tmp_path: Path) -> None:
    build = Builder()
    folder = cached_folder(tmp_path / "models" / "m", build)
    assert cached_folder(tmp_path / "models" / "m", build) == folder
    assert build.calls == 1
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "sub", "weights"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [".m.lock", "m"]


@pytest.mark.parametrize("damage", ["missing file", "short file", "other bytes", "no manifest", "broken manifest"])
def test_a_damaged_folder_is_made_again(tmp_path: Path, damage: str) -> None:
    build, said = Builder(), []
    folder = cached_folder(tmp_path / "m", build)
    if damage == "missing file":
        (folder / "sub" / "config").unlink()
    elif damage == "short file":
        tamper(folder / "weights", b"012", keep_time=True)
    elif damage == "other bytes":
        tamper(folder / "weights", b"9876543210", keep_time=False)
    elif damage == "no manifest":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text("[")
    cached_folder(folder, build, progress=lambda message, share: said.append(message))
    assert build.calls == 2
    assert (folder / "weights").read_bytes() == b"0123456789"
    assert any("making it again" in message for message in said)


def test_a_copied_cache_with_new_times_is_read_and_kept(tmp_path: Path) -> None:
    build = Builder()
    folder = cached_folder(tmp_path / "m", build)
    tamper(folder / "weights", b"0123456789", keep_time=False)
    cached_folder(folder, build)
    assert build.calls == 1


def test_a_build_that_dies_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("no more memory")

    with pytest.raises(RuntimeError, match="no more memory"):
        cached_folder(tmp_path / "m", build)
    assert [path.name for path in tmp_path.iterdir()] == [".m.lock"]


def test_two_at_once_build_once(tmp_path: Path) -> None:
    said: list[str] = []
    build = Builder(wait=lambda: until(lambda: said))  # until the other says that it waits
    threads = [
        threading.Thread(
            target=cached_folder, args=(tmp_path / "m", build), kwargs={"progress": lambda m, s: said.append(m)}
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert build.calls == 1
    assert said == ["waiting for another process that prepares the same model"]


def test_a_lock_held_too_long_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LOCK_TIMEOUT_S", 0.3)
    started, finish = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        started.set()
        finish.wait(timeout=20)

    holder = threading.Thread(target=cached_folder, args=(tmp_path / "m", slow))
    holder.start()
    started.wait(timeout=20)
    try:
        with pytest.raises(DataError, match="another process has held"):
            cached_folder(tmp_path / "m", Builder())
    finally:
        finish.set()
        holder.join(timeout=20)


def test_a_place_that_cannot_be_written_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set RLVR_CACHE to a folder with room to write"):
        cached_folder(tmp_path / "file" / "m", Builder())


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLVR_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("RLVR_CACHE")
    assert cache_root() == Path.home() / ".cache" / "rlvr"
