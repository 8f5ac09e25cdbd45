"""Process 1 of the sandbox: runs one test after the other, each in a process of its own, and tells what came of them.

It never holds the solution's code as anything but text, nor the code of tests that are judged in here: the process of
the judge, which never has the solution in it, asks the worker outside for that (`["want", index]`). Lines of JSON go
to the worker: `["ready", facts]` when the sandbox stands, `["test", index, outcome]` for each test, `["done"]`;
`["fault", message]` is the sandbox's own failure, `["starved", index]` that of a machine that gave no processor to a
test. It ends when the worker does: its standard input is a pipe that the worker holds open.

Limits of time are for the time that a test used or slept; while it waited for a processor they stand still.
"""

from __future__ import annotations

import builtins
import fcntl
import os
import select
import signal
import sys
import time
from _sitebuiltins import Quitter  # what `site` does, which is left out
from contextlib import suppress
from typing import Any, NoReturn

from reward_service.sandbox.inside import namespaces, runner
from reward_service.sandbox.inside.clock import WATCH_S, Clock
from reward_service.sandbox.inside.values import encode

_READ_BYTES = 65536
_SUBREAPER = 36
_OF_THE_SOLUTION = ("compiled", "ran", "no_compile", "no_run", "failed")
"""Stages that a process with the solution may tell of where another one judges."""


class Supervisor:
    """Runs the tests of a job."""

    def __init__(self, job: dict[str, Any], control_in: int, control_out: int) -> None:
        self._job = job
        self._in = control_in
        self._out = control_out
        self._stdin = os.memfd_create("stdin")  # a file, as judges of contests have it: programs ask for its size
        self._is_init = os.getpid() == 1
        self._has_proc = self._is_init and os.path.exists("/proc/1/status")
        if not self._is_init:
            namespaces._libc.prctl(_SUBREAPER, 1, 0, 0, 0)

    def tell(self, *parts: str) -> None:
        rest = f"[{','.join(parts)}]\n".encode()
        while rest:
            rest = rest[os.write(self._out, rest) :]

    def run(self) -> None:
        left = self._job["total_s"]
        self._hard_end = time.monotonic() + left + self._job["patience_s"]
        for index, test in enumerate(self._job["tests"]):
            if left <= 0:
                self.tell('"late"', str(index))
                break
            outcome = self._run_test(index, test, min(test["wall_s"], left))
            if outcome.broken == "starved":
                self.tell('"starved"', str(index))
                break
            left -= outcome.took_s
            self.tell('"test"', str(index), outcome.text())
            if outcome.is_final(test["kind"]):
                break
        self.tell('"done"')

    def _run_test(self, index: int, test: dict[str, Any], wall_s: float) -> Outcome:
        is_program, served = test["kind"] == "program", test["kind"] == "served"
        outcome = Outcome(self._job["output_bytes"], served=served)
        out_r, out_w = os.pipe()
        line = [*os.pipe(), *os.pipe()] if served else []  # the solution reads, the judge writes, and the other way
        streams = [self._stdin, out_w] if is_program else [None, None]
        if is_program:
            self._write_stdin(test["stdin"])
        verdict_r, pid = self._start(test, [*streams, None], line[::3], outcome.nonce)
        sinks = {verdict_r: outcome.verdict, out_r: outcome.output}
        pids = [pid]
        if served:
            test = {"kind": "judge", "index": index}
            ends = [line[2], line[1], self._in, self._out]
            judging_r, judge = self._start(test, [None, None, None], ends, outcome.judge_nonce)
            sinks[judging_r] = outcome.judged
            pids.append(judge)
        for fd in (out_w, *line):
            os.close(fd)
        try:
            self._watch(pids, outcome, sinks, wall_s)
        finally:
            outcome.status = self._end_all(pid)
            for fd in sinks:
                os.close(fd)
        return outcome

    def _write_stdin(self, text: str) -> None:
        os.ftruncate(self._stdin, 0)
        os.lseek(self._stdin, 0, os.SEEK_SET)
        rest = memoryview(text.encode("utf-8", "surrogateescape"))
        while rest:
            rest = rest[os.write(self._stdin, rest) :]
        os.lseek(self._stdin, 0, os.SEEK_SET)

    def _start(self, test: dict[str, Any], streams: list[int | None], others: list[int], nonce: str) -> tuple[int, int]:
        """A process for a test, with these descriptors as 0 to 2 and from 4 on; where it is heard, and its number."""
        verdict_r, verdict_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become_child([*streams, verdict_w, *others])
            runner.run(self._job, test, 3, nonce)
        os.close(verdict_w)
        return verdict_r, pid

    def _become_child(self, descriptors: list[int | None]) -> None:
        """The child gets these descriptors from 0 on, /dev/null for None, and no others."""
        namespaces.die_with_parent()
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        high = [_above(null if fd is None else fd) for fd in descriptors]
        for number, fd in enumerate(high):
            os.dup2(fd, number, inheritable=number < 3)
        os.closerange(len(high), 4096)

    def _watch(
        self,
        pids: list[int],
        outcome: Outcome,
        sinks: dict[int, bytearray],
        wall_s: float,
    ) -> None:
        """Reads what the test says until it ends, or breaks a limit."""
        started = time.monotonic()
        clock = Clock(pids, wall_s)
        end = started + wall_s
        next_look = started + WATCH_S
        processes = [os.pidfd_open(pid) for pid in pids]
        poll = select.poll()
        for fd in (*sinks, processes[-1]):
            poll.register(fd, select.POLLIN)
        poll.register(self._in, 0)  # reports nothing but the worker's end
        try:
            while outcome.broken is None:
                now = time.monotonic()
                if now >= end:
                    end = now + clock.left_s(now - started)
                if now >= end or now >= self._hard_end:
                    outcome.broken = "timeout" if now >= end else "starved"
                    return
                if now >= next_look:
                    self._check_use(outcome)
                    next_look = now + WATCH_S
                events = dict(poll.poll(min(end - now, WATCH_S) * 1000 + 1))
                if self._in in events:
                    os._exit(1)
                for fd in sinks.keys() & events.keys():
                    if not _read(fd, sinks[fd], outcome):
                        poll.unregister(fd)
                if processes[-1] in events:
                    for fd, sink in sinks.items():
                        _drain(fd, sink, outcome)
                    return
        finally:
            outcome.took_s = wall_s - clock.left_s(time.monotonic() - started)
            for fd in processes:
                os.close(fd)

    def _check_use(self, outcome: Outcome) -> None:
        """All processes together, where they can be seen: the kernel's limits hold for each alone."""
        if not self._has_proc:
            return
        used = count = 0
        for name in os.listdir("/proc"):
            if not name.isdigit() or name == "1":
                continue
            try:
                with open(f"/proc/{name}/status", "rb") as file:
                    lines = file.read().splitlines()
            except OSError:
                continue
            count += 1
            used += sum(int(line.split()[1]) for line in lines if line.startswith((b"RssAnon:", b"RssShmem:")))
        if used * 1024 > self._job["limits"]["AS"]:
            outcome.broken = "memory"
        elif count > self._job["limits"]["NPROC"]:
            outcome.broken = "processes"

    def _end_all(self, pid: int) -> int:
        """Kills everything that the test has started, however it hid, and waits for it; its exit status."""
        status = None
        with suppress(ChildProcessError):
            ended, how = os.waitpid(pid, os.WNOHANG)
            status = how if ended else None
        while True:
            self._kill_all(pid if status is None else None)
            try:
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    if found[0] == pid:
                        status = found[1]
            except ChildProcessError:
                return os.waitstatus_to_exitcode(status) if status is not None else 0
            time.sleep(0.0005)

    def _kill_all(self, pid: int | None) -> None:
        if self._is_init:
            _kill(-1)
            return
        if pid is not None:
            _kill(-pid)
        with open(f"/proc/self/task/{os.getpid()}/children") as file:  # orphans come to us, the subreaper
            for orphan in file.read().split():
                _kill(int(orphan))


class Outcome:
    """What came of a test."""

    def __init__(self, output_bytes: int, *, served: bool) -> None:
        self.served = served
        self.verdict = bytearray()
        self.judged = bytearray()
        self.output = bytearray()
        self.limit = output_bytes
        self.broken: str | None = None
        self.status = 0
        self.took_s = 0.0
        self.nonce, self.judge_nonce = os.urandom(16).hex(), os.urandom(16).hex()

    def stages(self) -> dict[str, str]:
        """The lines behind the nonces: stage to payload; the first of a stage counts, and the judge's before all."""
        stages = _lines(self.verdict, self.nonce)
        if self.served:
            stages = {stage: said for stage, said in stages.items() if stage in _OF_THE_SOLUTION}
        return stages | _lines(self.judged, self.judge_nonce)

    def is_final(self, kind: str) -> bool:
        """Whether the other tests would fail in the same way: the solution itself could not be loaded."""
        stages = self.stages()
        return "no_compile" in stages or (kind != "program" and "ran" not in stages)

    def text(self) -> str:
        """As JSON. Payloads are text within the text, so that a malformed one spoils its own test only."""
        stages = ",".join(f"{encode(stage)}:{encode(payload)}" for stage, payload in self.stages().items())
        output = encode(bytes(self.output[: self.limit]).decode("utf-8", "replace"))
        broken = encode(self.broken)
        return f'{{"stages":{{{stages}}},"output":{output},"broken":{broken},"status":{self.status}}}'


def _lines(said: bytearray, nonce: str) -> dict[str, str]:
    stages: dict[str, str] = {}
    for line in bytes(said).split(b"\n")[:-1]:
        parts = line.split(b" ", 2)
        if len(parts) == 3 and parts[0] == nonce.encode():
            stages.setdefault(parts[1].decode("ascii", "replace"), parts[2].decode("ascii", "replace"))
    return stages


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):  # gone already
        os.kill(pid, signal.SIGKILL)


def _above(fd: int) -> int:
    """The descriptor under a number that no standard one or the verdict's has."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD, 256)


def _read(fd: int, sink: bytearray, outcome: Outcome) -> bool:
    data = os.read(fd, _READ_BYTES)
    sink += data
    if len(sink) > outcome.limit:
        outcome.broken = "output"
    return bool(data)


def _drain(fd: int, sink: bytearray, outcome: Outcome) -> None:
    """What is left in a pipe; a process that still holds it open is not waited for."""
    os.set_blocking(fd, False)
    try:
        while outcome.broken is None and _read(fd, sink, outcome):
            pass
    except BlockingIOError:
        pass


def main(job: dict[str, Any]) -> NoReturn:
    """Sets the sandbox up, runs the job, exits."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    control_in, control_out = _above(0), _above(1)
    supervisor: Supervisor | None = None
    try:
        builtins.exit, builtins.quit = Quitter("exit", "Ctrl-D (EOF)"), Quitter("quit", "Ctrl-D (EOF)")
        sys.path += job["packages"]
        if job["packages"]:  # NumPy's libraries would start a thread for each core, and run into the limits
            os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        for name in job["preload"]:
            __import__(name)
        layout = job["layout"]
        if job["backend"] == "namespaces":
            namespaces.enter(layout)
        elif job["backend"] == "limits":
            namespaces.become_nobody()
            if not os.access(os.__file__, os.R_OK):
                raise namespaces.NoSandboxError(
                    f"user nobody, who runs the code when root starts it, cannot read {os.path.dirname(os.__file__)};"
                    " name another interpreter in the settings"
                )
            job["limits"]["NPROC"] += _tasks_of_user()
            os.chdir(job["scratch"])
        supervisor = Supervisor(job, control_in, control_out)
        filtered = namespaces.harden()
        supervisor.tell('"ready"', f'{{"seccomp":{"true" if filtered else "false"}}}')
        supervisor.run()
    except BaseException as error:
        fault = f'["fault",{encode(f"{type(error).__name__}: {error}"[:500])}]\n'
        os.write(control_out, fault.encode())
        os._exit(1)
    os._exit(0)


def _tasks_of_user() -> int:
    """Processes and threads that this user has already: without a namespace of its own the limit counts them too."""
    tasks = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                tasks += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return tasks


sys.dont_write_bytecode = True
