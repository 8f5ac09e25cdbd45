"""A filter of system calls: what no solution needs, and what has given kernels trouble, is refused with EPERM.

x86-64 and arm64 only; elsewhere there is none, and namespaces and capabilities must do. Sockets are left for local and
internet addresses, which have nowhere to go; other families, and above all vsock, which namespaces do not cover, are
refused. Calls of another instruction set (32 bit, x32) end the process.
"""

from __future__ import annotations

import ctypes
import os
import struct

# name: (x86-64, arm64); None where it does not exist
_REFUSED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "personality": (135, 92),
    "fanotify_init": (300, 262), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "vmsplice": (278, 75), "modify_ldt": (154, None),
    "iopl": (172, None), "ioperm": (173, None), "uselib": (134, None),
}  # fmt: skip
_ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE, _CLONE3, _SOCKET = (56, 220), 435, (41, 198)
_NEW_NAMESPACES = 0x7E020080
"""The CLONE_NEW* flags together."""
_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6."""

_LOAD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NR, _ARCH, _ARG0 = 0, 4, 16


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("HBBI", code, jt, jf, k)


def program(machine: str) -> bytes | None:
    """The filter as BPF; None for a machine whose numbers are not known here."""
    if machine not in _ARCHES:
        return None
    column, audit_arch = _ARCHES[machine]
    refuse, allow = _op(_RET, _ERRNO | _EPERM), _op(_RET, _ALLOW)
    code = [_op(_LOAD, _ARCH), _op(_JEQ, audit_arch, 1, 0), _op(_RET, _KILL), _op(_LOAD, _NR)]
    if machine == "x86_64":
        code += [_op(_JGE, 0x40000000, 0, 1), _op(_RET, _KILL)]
    for numbers in _REFUSED.values():
        if (number := numbers[column]) is not None:
            code += [_op(_JEQ, number, 0, 1), refuse]
    code += [_op(_JEQ, _CLONE3, 0, 1), _op(_RET, _ERRNO | _ENOSYS)]  # its flags lie in memory; libc then uses clone
    code += [_op(_JEQ, _CLONE[column], 0, 4), _op(_LOAD, _ARG0), _op(_JSET, _NEW_NAMESPACES, 0, 1), refuse, allow]
    code += [_op(_JEQ, _SOCKET[column], 0, 2 + len(_FAMILIES)), _op(_LOAD, _ARG0)]
    code += [_op(_JEQ, family, len(_FAMILIES) - at, 0) for at, family in enumerate(_FAMILIES)]
    code += [refuse, allow]
    return b"".join(code)


def install(libc: ctypes.CDLL) -> bool:
    """Puts the filter on this process and all it will start; False if there is none for this machine or kernel."""
    code = program(os.uname().machine)
    if code is None:
        return False
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
    pr_set_seccomp, mode_filter = 22, 2
    return bool(libc.prctl(pr_set_seccomp, mode_filter, fprog, 0, 0) == 0)
