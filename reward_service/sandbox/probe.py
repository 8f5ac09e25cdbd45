"""Which sandbox this machine gives: found by starting one."""

from __future__ import annotations

import logging
import shutil
from functools import lru_cache

from reward_service.sandbox.run import SandboxFaultError, SandboxUnavailableError, run_tests
from reward_service.sandbox.settings import Backend, SandboxSettings

logger = logging.getLogger(__name__)

_REMEDY = (
    "install bubblewrap, or allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone,"
    " kernel.apparmor_restrict_unprivileged_userns; in a container a seccomp profile with unshare and mount)"
)
_CANDIDATES: dict[str, tuple[Backend, ...]] = {
    "auto": ("bubblewrap", "namespaces", "limits"),
    "strict": ("bubblewrap", "namespaces"),
    "bubblewrap": ("bubblewrap",),
    "namespaces": ("namespaces",),
    "limits": ("limits",),
}


def try_backend(settings: SandboxSettings, backend: Backend) -> str | None:
    """None if code runs in this sandbox, else why not."""
    if backend == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not on the PATH"
    test = {"kind": "expression", "setup": "", "expr": "int(Fraction(3, 3))"}
    try:
        for outcome in run_tests("from fractions import Fraction", [test], settings, backend):
            if outcome.stages.get("value") == '["i","1"]':
                return None
            return f"a trial ended with {outcome}"
    except (SandboxFaultError, SandboxUnavailableError) as error:
        return str(error)
    return "a trial gave nothing"


@lru_cache
def resolve(settings: SandboxSettings) -> Backend:
    """The sandbox these settings come to on this machine, by trial; SandboxUnavailableError names why there is none.

    Found once in each process. With `auto` a machine that gives no namespaces is warned of.
    """
    refusals: list[str] = []
    for backend in _CANDIDATES[settings.mode]:
        why = try_backend(settings, backend)
        if why is None:
            if refusals and backend == "limits":
                logger.warning(
                    "code runs with resource limits alone, it can read files and use the network (%s); %s",
                    "; ".join(refusals),
                    _REMEDY,
                )
            return backend
        refusals.append(f"{backend}: {why}")
    raise SandboxUnavailableError(f"no sandbox of mode {settings.mode!r}: {'; '.join(refusals)}. Remedy: {_REMEDY}")


def backend_of(settings: SandboxSettings) -> Backend:
    """The sandbox to use: the one that is named, untried, or the one that is found."""
    if settings.mode == "auto" or settings.mode == "strict":
        return resolve(settings)
    return settings.mode
