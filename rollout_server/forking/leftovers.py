"""What a killed process leaves on its node, named so that others can tell: `rlvr-KIND-pPID-START-SPACE…`.

START is when the process started, in the kernel's ticks, as a number is given again; SPACE the namespace that the
number counts in: containers that share a folder cannot see each other's processes, and leave each other's things alone.
All three are hexadecimal. Shared memory and semaphores that vLLM makes through `multiprocessing` get such names too,
since their own (`psm_…`) do not say whose they are, and 160 MiB of each engine that crashes would stay for good.
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import re
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
OWNER = "RLVR_OWNER"
"""Names, in a process' environment, the process that it is to outlive by moments only."""

_OWNED = re.compile(r"(?:sem\.)?rlvr-[a-z]+-(p[0-9a-f]+-[0-9a-f]+-[0-9a-f]+)(?:-.*)?")
_SHORT = "/tmp"


def mark(pid: int | None = None) -> str:
    """Names a living process, by default this one, for ever.

    Args:
        pid: Of a process on this node.

    Raises:
        ProcessLookupError: There is none of that number.
    """
    pid = os.getpid() if pid is None else pid
    started = _started(pid)
    if started is None:
        raise ProcessLookupError(f"there is no process {pid}")
    return f"p{pid:x}-{started:x}-{_space():x}"


def is_gone(marked: str) -> bool:
    """Whether the process that `mark` named has ended. One that cannot be seen from here has not."""
    pid, started, space = (int(part, 16) for part in marked.removeprefix("p").split("-"))
    return space == _space() and _started(pid) != started


def owned_prefix(kind: str) -> str:
    """What the name of a file or folder of this process begins with, which it will not need any more when it ends."""
    return f"rlvr-{kind}-{mark()}-"


def own_folder(kind: str, *, longest_name: int) -> Path:
    """A new folder of this process for Unix sockets, whose paths may have 107 bytes.

    Args:
        kind: What it is for, in small letters.
        longest_name: Of a file in it.
    """
    prefix = owned_prefix(kind)
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) + len(prefix) + 8 + longest_name + 2 > 107:
        parent = _SHORT
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def name_shared_memory() -> None:
    """Shared memory and semaphores that this process makes, and those that it forks, are named after their maker."""
    shared_memory._make_filename = lambda: f"/rlvr-shm-{mark()}-{secrets.token_hex(4)}"  # type: ignore[attr-defined]
    multiprocessing.process.current_process()._config["semprefix"] = f"/rlvr-sem-{mark()}"  # type: ignore[attr-defined]


def remove_leftovers() -> list[str]:
    """Remove what ended processes have left on this node in /dev/shm and for temporary files; returns the names."""
    removed = []
    for folder in {SHARED_MEMORY, Path(tempfile.gettempdir()), Path(_SHORT)}:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                owned = _OWNED.fullmatch(entry.name)
                if owned is None or not is_gone(owned[1]):
                    continue
                with contextlib.suppress(OSError):  # another user's, or just removed by another start
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)
                    removed.append(entry.path)
    return removed


def end_orphans() -> list[int]:
    """Kill the processes on this node whose `OWNER` has ended; returns their numbers."""
    ended = []
    for pid, owner in owned_processes():
        if is_gone(owner):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
    return ended


def owned_processes() -> Iterator[tuple[int, str]]:
    """(number, owner) of the other processes that name one, as far as this user may look."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = Path(entry.path, "environ").read_bytes()
        except OSError:
            continue
        for variable in environment.split(b"\0"):
            name, _, value = variable.decode(errors="replace").partition("=")
            if name == OWNER and re.fullmatch(r"p[0-9a-f]+(-[0-9a-f]+){2}", value):
                yield int(entry.name), value


def _started(pid: int) -> int | None:
    """When a living process started, in ticks since the machine did; None when there is none of this number."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(fields[18])


def _space() -> int:
    """A short number of the namespace that this process' number counts in."""
    return int(re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))) & 0xFFFF
