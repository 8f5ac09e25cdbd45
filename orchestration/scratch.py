"""A command's temporary files: in one folder of its own, which goes with it, or with the next start after a kill.

Libraries leave files that nobody removes: sockets of `multiprocessing` whose process was ended by a signal, vLLM's
meeting places, ports of MCP servers.
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestration.errors import MachineError
from orchestration.storage.cache import cache_root
from rollout_server.forking.leftovers import own_folder, remove_leftovers

_LONGEST_NAME = len("listener-12345678")
_SHARED = "RLVR_SHARED_TMPDIR"
_NAMES = ("TMPDIR", _SHARED, "RAY_TMPDIR", "TORCHINDUCTOR_CACHE_DIR")


def shared_temporary_folder() -> Path:
    """The machine's folder for temporary files, for what may outlive the command."""
    return Path(os.environ.get(_SHARED) or tempfile.gettempdir())


def outliving(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that goes on when the command has ended."""
    shared = environment.get(_SHARED)
    kept = {name: value for name, value in environment.items() if name != _SHARED}
    return kept if shared is None else {**kept, "TMPDIR": shared}


@contextlib.contextmanager
def own_temporary_folder() -> Iterator[Path]:
    """For the length of the block, this process and those that it starts have a folder of their own.

    Not so Ray's sessions, as the paths of their sockets would be too long, and torch's cache of compiled code, which
    later runs use: that lies in ours.

    Raises:
        MachineError: No folder for temporary files can be written to.
    """
    kept = {name: os.environ.get(name) for name in _NAMES}
    settings = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]  # has no public name
    sockets = settings.get("tempdir")
    try:
        shared = str(shared_temporary_folder())
        _set({"TMPDIR": shared})
        remove_leftovers()
        folder = own_folder("tmp", longest_name=_LONGEST_NAME)
    except OSError as error:
        _set(kept)
        raise MachineError(f"temporary files cannot be written: {error}; set TMPDIR to a folder with room") from None
    settings["tempdir"] = str(folder)  # it would make one in the folder, and complain at its end that it is gone
    with contextlib.suppress(OSError):
        compiled = cache_root() / "torchinductor"
        compiled.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    os.environ.setdefault("RAY_TMPDIR", shared)
    _set({"TMPDIR": str(folder), _SHARED: shared})
    try:
        yield folder
    finally:
        _set(kept)
        settings["tempdir"] = sockets
        shutil.rmtree(folder, ignore_errors=True)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    tempfile.tempdir = None  # it is looked up once
