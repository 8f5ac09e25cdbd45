"""Own namespaces by unshare(2): a process that sees nothing of the machine but a read-only Python and a scratch folder.

Needs no set-user-id helper: a user namespace gives the rights for the others. Started as root, the namespaces are made
with root's rights and then given up for those of nobody, so that they cannot be changed from within at all.

Linux 5.12 or newer (mount_setattr makes whole trees read-only at once).
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from typing import Any, NoReturn

from reward_service.sandbox.inside import seccomp

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_ALL = _NEWNS | _NEWCGROUP | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8
_AT_FDCWD, _AT_RECURSIVE, _SYS_MOUNT_SETATTR = -100, 0x8000, 442
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MNT_DETACH = 2
_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP, _SECUREBITS, _NO_NEW_PRIVS, _CAP_AMBIENT = 1, 4, 24, 28, 38, 47
_NOBODY = 65534
_DEVICES = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


class NoSandboxError(Exception):
    """A step of the set-up was refused; the message says which."""


def _check(result: int, what: str) -> None:
    if result < 0:
        raise NoSandboxError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    args = [None if arg is None else arg.encode() for arg in (source, target, kind)]
    _check(_libc.mount(*args, ctypes.c_ulong(flags), data.encode()), f"mount {source} on {target}")


def _set_attributes(path: str, attributes: int, flags: int = _AT_RECURSIVE) -> None:
    attr = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)  # struct mount_attr: set, clear, propagation, user namespace
    result = _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, ctypes.byref(attr), ctypes.sizeof(attr))
    _check(result, f"mount_setattr {path}")


def die_with_parent() -> None:
    """This process gets SIGKILL when the one that started it ends; lost at every change of rights, so set again."""
    _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def harden() -> bool:
    """No new rights by exec, nobody may look into this process, and the filter of system calls, if there is one."""
    _check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _libc.prctl(_DUMPABLE, 0, 0, 0, 0)
    die_with_parent()
    return seccomp.install(_libc)


def become_nobody() -> None:
    """Root gives up its rights; anyone else has none to give up."""
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        except OSError as error:
            raise NoSandboxError(f"root could not become nobody: {error.strerror}") from None


def _new_user_namespace(flags: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(_NEWUSER | flags), "unshare")
    _libc.prctl(_DUMPABLE, 1, 0, 0, 0)  # after a change of rights /proc/self is root's otherwise
    for name, text in (("setgroups", "deny"), ("uid_map", f"{_NOBODY} {uid} 1"), ("gid_map", f"{_NOBODY} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def enter(layout: dict[str, Any]) -> None:
    """Returns in process 1 of new namespaces, without any rights; the process that called waits for it and exits.

    NoSandboxError names the step that was refused.
    """
    parent = os.getppid()
    os.umask(0o022)
    as_root = os.geteuid() == 0 and _libc.unshare(_ALL) == 0
    if not as_root:
        become_nobody()  # a root without rights (in a container, say) would still be spared the limit on processes
        _new_user_namespace(_ALL)
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    forked = os.fork()
    if forked:
        _wait_for(forked)
    die_with_parent()
    _new_root(layout)
    if as_root:
        become_nobody()
        with suppress(NoSandboxError, OSError):  # where users may make none: nobody has no rights over root's mounts
            _new_user_namespace(0)
    with suppress(OSError), open("/proc/sys/user/max_user_namespaces", "w") as file:  # seccomp refuses new ones too
        file.write("0")
    if layout["proc"] and not as_root:  # root's mounts cannot be changed any more, nor written to by nobody
        _set_attributes("/proc", _ATTR_RDONLY)
    drop_capabilities()


def _wait_for(forked: int) -> NoReturn:
    os.closerange(0, 3)
    _, status = os.waitpid(forked, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _new_root(layout: dict[str, Any]) -> None:
    """Builds the root in memory and moves there; twice, as the first stage covers /tmp, where sources may lie."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/old")
    os.mkdir("/tmp/new")
    _mount("tmpfs", "/tmp/new", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    _pivot("/tmp", "/tmp/old")
    os.chdir("/")
    os.makedirs("/new/tmp")
    scratch = f"size={layout['scratch_bytes']},nr_inodes=4096,mode=1777"
    _mount("tmpfs", "/new/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, scratch)  # first: packages may lie in it
    for path, link in layout["read_only"]:
        _bind(path, link)
    os.makedirs("/new/dev")
    for name in _DEVICES:
        _bind_one(f"/old/dev/{name}", f"/new/dev/{name}", directory=False)
    os.symlink("/tmp", "/new/dev/shm")
    os.symlink("/proc/self/fd", "/new/dev/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"fd/{number}", f"/new/dev/{name}")
    os.makedirs("/new/proc")
    try:
        _mount("proc", "/new/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        layout["proc"] = True
    except NoSandboxError:
        layout["proc"] = False  # in containers that hide parts of theirs; Python does without
    _libc.sethostname(b"sandbox", 7)
    os.chdir("/new")
    _pivot(".", ".")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")
    _set_attributes("/", _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0)
    os.chdir("/tmp")


def _pivot(new: str, old: str) -> None:
    number = _SYS_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise NoSandboxError(f"pivot_root: its number on {os.uname().machine} is not known here")
    _check(_libc.syscall(number, new.encode(), old.encode()), "pivot_root")


def _bind(path: str, link: str | None) -> None:
    """A path of the machine in the new root, at the same place and read-only; a symbolic link stays one."""
    source, target = f"/old{path}", f"/new{path}"
    if link is not None:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(link, target)
        return
    _bind_one(source, target, directory=os.path.isdir(source))
    _set_attributes(target, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)


def _bind_one(source: str, target: str, *, directory: bool) -> None:
    os.makedirs(target if directory else os.path.dirname(target), exist_ok=True)
    if not directory:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, target, None, _MS_BIND | _MS_REC)


def drop_capabilities() -> None:
    """None is left, and none can be had again."""
    capability = 0
    while _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    _libc.prctl(_SECUREBITS, 0x2F, 0, 0, 0)  # uid 0 means nothing, and this cannot be changed
    _libc.prctl(_CAP_AMBIENT, 4, 0, 0, 0)  # clears them all
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")
