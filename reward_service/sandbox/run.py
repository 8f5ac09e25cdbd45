"""Starts a sandbox, and reads what it says of each test."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_service.errors import ServiceStartError
from reward_service.sandbox.bubblewrap import arguments
from reward_service.sandbox.layout import Interpreter, describe
from reward_service.sandbox.program import BOOT, framed, message
from reward_service.sandbox.settings import GRACE_S, PATIENCE_S, START_S, Backend, SandboxSettings

_MB = 1024 * 1024
NOBODY = 65534
_READ_BYTES = 1 << 18


class SandboxFaultError(Exception):
    """The sandbox itself failed: nothing is known of the code in it."""


class SandboxUnavailableError(ServiceStartError):
    """The sandbox that the settings ask for cannot be had on this machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TestOutcome:
    """What a sandbox says of one test."""

    __test__ = False

    stages: Mapping[str, str] = field(default_factory=dict)
    """How far it came, with what it said there: compiled, ran, value, passed, failed, ended, no_compile, no_run,
    no_test (the test itself cannot run here)."""
    output: str = ""
    broken: str | None = None
    """The limit that ended it: timeout, total_timeout, memory, processes, output, or sandbox_ended."""
    status: int = 0
    """Exit status; negative: the signal."""


def run_tests(
    code: str,
    tests: Sequence[Mapping[str, Any]],
    settings: SandboxSettings,
    backend: Backend,
    *,
    preload: Sequence[str] = (),
    preamble: str = "",
) -> Iterator[TestOutcome]:
    """Runs tests on code that nobody trusts, one after the other in one sandbox.

    Args:
        code: the solution.
        tests: each has a `kind` and its fields (`reward_service.sandbox.inside.runner`); what is under `judge` goes to
            the process that judges, and to none with the solution in it.
        settings: the limits.
        backend: the kind of sandbox, as `reward_service.sandbox.probe` found it.
        preload: modules that are imported once for all tests.
        preamble: what is run before the solution, in its module.

    Yields:
        What came of each test, in order; fewer than there are tests if the others would fail in the same way. Whatever
        the code does to its sandbox fails the test under way.

    Raises:
        SandboxUnavailableError: the sandbox does not come up.
        SandboxFaultError: it came up, and then failed by itself.
    """
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(_scratch()) if backend == "limits" else "/tmp"
        try:
            interpreter = describe(settings.interpreter, settings.packages)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise SandboxUnavailableError(str(error)) from None
        process = stack.enter_context(_started(interpreter, settings, backend, scratch))
        job = _job(code, tests, settings, backend, interpreter, scratch)
        job |= {"preload": list(preload), "preamble": preamble, "packages": [str(path) for path in settings.packages]}
        try:
            process.stdin.write(message(job, interpreter.magic))  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            raise SandboxUnavailableError(_fault(process)) from None
        yield from _outcomes(process, settings, [test.get("judge") for test in tests])


def _outcomes(
    process: subprocess.Popen[bytes], settings: SandboxSettings, judges: Sequence[Mapping[str, Any] | None] = ()
) -> Iterator[TestOutcome]:
    # One reader for all: what was said in the same breath as "ready" would be lost with the buffer of another.
    time_limit = _TimeLimit(START_S)
    messages = _messages(process, max_bytes=16 * settings.output_kb * 1024 + 65536, time_limit=time_limit)
    kind, *rest = next(messages, ["nothing"])
    if kind != "ready":
        raise SandboxUnavailableError(str(rest[0]) if kind == "fault" else _fault(process))
    time_limit.set(settings.total_s + PATIENCE_S + GRACE_S)
    for kind, *rest in messages:
        if kind == "test":
            yield TestOutcome(**rest[1])
        elif kind == "want":
            if not _send(process, framed((rest[0], dict(judges[rest[0]] or {}))), time_limit):
                break
        elif kind == "fault":
            raise SandboxFaultError(str(rest[0]))
        elif kind == "starved":
            raise SandboxFaultError("the machine was too busy to run it in time")
        elif kind == "late":
            yield TestOutcome(broken="total_timeout")
            return
        else:
            return
    if time_limit.left() <= 0:
        raise SandboxFaultError("the sandbox has not answered in time")
    yield TestOutcome(broken="sandbox_ended")


def _send(process: subprocess.Popen[bytes], data: bytes, time_limit: _TimeLimit) -> bool:
    """Writes to a judge; False if that ended before it had read all of it, so that nothing more can be written."""
    assert process.stdin is not None
    assert process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    rest = memoryview(data)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while rest and time_limit.left() > 0:
            ready = [key.fileobj for key, _ in selector.select(time_limit.left())]
            if process.stdin in ready:
                try:
                    rest = rest[os.write(process.stdin.fileno(), rest) :]
                except BrokenPipeError:
                    return False
            elif ready:
                return False
    return not rest


class _TimeLimit:
    """A moment that may be moved while somebody waits for it."""

    def __init__(self, seconds: float) -> None:
        self.set(seconds)

    def set(self, seconds: float) -> None:
        """So many seconds from now."""
        self._until = time.monotonic() + seconds

    def left(self) -> float:
        return self._until - time.monotonic()


def _messages(process: subprocess.Popen[bytes], *, max_bytes: int, time_limit: _TimeLimit) -> Iterator[Any]:
    """The lines a sandbox says, until it ends or the time is over."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    buffer = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            end = buffer.find(b"\n")
            if end >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    return
                continue
            left = time_limit.left()
            if left <= 0 or len(buffer) > max_bytes or not selector.select(left):
                return
            data = os.read(fd, _READ_BYTES)
            if not data:
                return
            buffer += data


@contextlib.contextmanager
def _started(
    interpreter: Interpreter, settings: SandboxSettings, backend: Backend, scratch: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The interpreter in the sandbox, waiting for its job; killed, with all that it started, at the end."""
    command = [interpreter.executable, "-I", "-S", "-B", "-c", BOOT]
    if backend == "bubblewrap":
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise SandboxUnavailableError("bwrap is not on the PATH")
        command = arguments(bwrap, interpreter.read_only, command, scratch_bytes=settings.scratch_mb * _MB)
    # our own namespaces need root's rights if they are to be had; bubblewrap has to do without (see there)
    as_nobody: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    rights = as_nobody if backend == "bubblewrap" and os.geteuid() == 0 else {}
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env={}, cwd="/", start_new_session=True, bufsize=0, **rights
        )
    except OSError as error:
        raise SandboxUnavailableError(f"{command[0]} does not start: {error}") from None
    with process:
        try:
            yield process
        finally:
            process.kill()


def _job(
    code: str,
    tests: Sequence[Mapping[str, Any]],
    settings: SandboxSettings,
    backend: Backend,
    interpreter: Interpreter,
    scratch: str,
) -> dict[str, Any]:
    limits = {
        "AS": settings.memory_mb * _MB,
        "CPU": settings.cpu_s,
        "NPROC": settings.processes,
        "FSIZE": settings.file_mb * _MB,
        "NOFILE": settings.open_files,
        "STACK": settings.stack_mb * _MB,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
    }
    return {
        "backend": backend,
        "code": code,
        "tests": [{"wall_s": settings.wall_s, **test, "judge": None} for test in tests],
        "limits": limits,
        "total_s": settings.total_s,
        "patience_s": PATIENCE_S,
        "output_bytes": settings.output_kb * 1024,
        "value_parts": settings.value_parts,
        "recursion_limit": settings.recursion_limit,
        "layout": {"read_only": interpreter.read_only, "scratch_bytes": settings.scratch_mb * _MB},
        "scratch": scratch,
    }


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """Without namespaces: a folder that anyone may write to, as the code may run as nobody."""
    with tempfile.TemporaryDirectory(prefix="rlvr-sandbox-", ignore_cleanup_errors=True) as path:
        os.chmod(path, 0o777)
        yield path


def _fault(process: subprocess.Popen[bytes]) -> str:
    """Why it did not come up, as far as it said."""
    process.kill()
    assert process.stderr is not None
    said = process.stderr.read(2000).decode(errors="replace").strip().splitlines()
    process.wait()
    return said[-1] if said else f"the sandbox did not come up within {START_S:g} s, or ended: {process.returncode}"
