"""The command line for bubblewrap: the same sandbox as our own namespaces, made by a well-reviewed program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def arguments(
    program: str, read_only: Iterable[tuple[str, str | None]], command: Sequence[str], *, scratch_bytes: int
) -> list[str]:
    """`bwrap … -- command`: nothing but `read_only`, /dev, /proc and a scratch folder; no network, rights or variables.

    Needs bubblewrap 0.5 or newer. The scratch folder has a size from 0.7 on, which `--size` asks for.
    """
    line = [program, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    line += ["--unshare-cgroup-try", "--die-with-parent", "--as-pid-1", "--new-session", "--clearenv"]
    line += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--cap-drop", "ALL"]
    for path, link in read_only:
        line += ["--symlink", link, path] if link is not None else ["--ro-bind", path, path]
    line += ["--dev", "/dev", "--proc", "/proc", "--size", str(scratch_bytes), "--tmpfs", "/tmp"]
    return [*line, "--remount-ro", "/", "--chdir", "/tmp", "--", *command]
