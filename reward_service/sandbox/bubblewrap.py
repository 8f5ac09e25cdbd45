"""The command line for bubblewrap: the same sandbox as our own namespaces, made by a well-reviewed program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def arguments(
    program: str, read_only: Iterable[tuple[str, str | None]], command: Sequence[str], *, scratch_bytes: int
) -> list[str]:
    """`bwrap … -- command`: nothing but `read_only`, /dev, /proc and a scratch folder; no network, rights or variables.

    Needs bubblewrap 0.7 or newer (`--size`). To be started by another user than root, whose files under /proc/sys would
    be writable and whose processes are not counted.
    """
    line = [program, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    line += ["--unshare-cgroup-try", "--die-with-parent", "--as-pid-1", "--new-session", "--clearenv"]
    line += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--cap-drop", "ALL"]
    scratch = ["--size", str(scratch_bytes), "--tmpfs"]
    line += [*scratch, "/tmp"]  # first: packages may lie in it
    for path, link in read_only:
        line += ["--symlink", link, path] if link is not None else ["--ro-bind", path, path]
    line += ["--dev", "/dev", "--proc", "/proc", *scratch, "/dev/shm"]
    return [*line, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--", *command]
