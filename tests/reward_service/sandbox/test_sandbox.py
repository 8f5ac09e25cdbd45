"""The sandbox, attacked for real: each trick is tried, and neither pays nor does harm."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import termios
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from reward_service.sandbox import probe
from reward_service.sandbox.bubblewrap import arguments
from reward_service.sandbox.inside import clock, seccomp
from reward_service.sandbox.layout import outermost
from reward_service.sandbox.probe import resolve
from reward_service.sandbox.run import (
    START_S,
    SandboxUnavailableError,
    TestOutcome,
    _outcomes,
    _TimeLimit,
    run_tests,
)
from reward_service.sandbox.settings import SandboxSettings
from tests.waiting import until

# A busy machine must not end an attack before it has failed by itself, so there is time.
SETTINGS = SandboxSettings(mode="strict", wall_s=30, total_s=90, cpu_s=3, memory_mb=256, processes=16, output_kb=64)

REFUSED = probe.try_backend(SETTINGS, "namespaces")
UNWRAPPED = probe.try_backend(SETTINGS, "bubblewrap")
BACKENDS = [
    pytest.param("namespaces", marks=pytest.mark.skipif(REFUSED is not None, reason=f"no namespaces: {REFUSED}")),
    pytest.param("bubblewrap", marks=pytest.mark.skipif(UNWRAPPED is not None, reason=f"no bubblewrap: {UNWRAPPED}")),
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def attack(backend: Any, code: str, *, settings: SandboxSettings = SETTINGS, then: str = "") -> TestOutcome:
    """What came of `f()` of this code; with `then`, of that expression in a second process of the same sandbox."""
    tests = [{"kind": "expression", "setup": "", "expr": expr} for expr in ("f()", then) if expr]
    outcomes = list(run_tests(textwrap.dedent(code), tests, settings, backend))
    return outcomes[-1]


def value(outcome: TestOutcome) -> Any:
    """Strings, booleans and null are themselves in what leaves the sandbox."""
    assert "value" in outcome.stages, outcome
    return json.loads(outcome.stages["value"])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def processes_with(word: str) -> list[int]:
    """Processes of this machine that have given themselves this name."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if word.encode() in (entry / "comm").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_a_solution_is_run_and_its_value_comes_out(backend: Any) -> None:
    outcome = attack(backend, "def f(): return (1, [2.5], {'a'}, {b'x': None})")
    assert value(outcome) == [
        "t",
        [["i", "1"], ["l", [["f", "0x1.4000000000000p+1"]]], ["e", ["a"]], ["d", [[["y", "78"], None]]]],
    ]


def test_a_usual_item_costs_well_under_100_ms_of_processor_time(backend: Any) -> None:
    def once() -> float:
        before = sum(os.times()[:4])  # with children that have ended
        attack(backend, "def f(): return 1")
        return sum(os.times()[:4]) - before

    assert min(once() for _ in range(8)) < 0.1


# What is seen from inside


def test_the_environment_is_empty_and_the_user_is_nobody(backend: Any) -> None:
    outcome = attack(
        backend,
        """
        import os
        def f():
            status = open("/proc/self/status").read() if os.path.exists("/proc/self/status") else ""
            caps = [line.split()[1] for line in status.splitlines() if line.startswith("Cap")]
            flags = [line for line in status.splitlines() if line.startswith(("NoNewPrivs", "Seccomp:"))]
            clean = {k for k in os.environ if k not in ("LC_CTYPE", "PWD")} == set()
            return repr((clean, os.getuid(), os.getgid(), set(caps), flags, os.getcwd()))
        """,
    )
    text = value(outcome)
    assert text.startswith("(True, 65534, 65534, {'0000000000000000'}, "), text
    assert "NoNewPrivs:\\t1" in text
    assert "Seccomp:\\t2" in text or os.uname().machine not in ("x86_64", "aarch64")


def test_files_of_the_machine_are_not_there(backend: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("topsecret")
    here = Path(__file__).resolve()
    outcome = attack(
        backend,
        f"""
        import os
        def f():
            seen = []
            for path in ({str(secret)!r}, {str(here)!r}, {str(Path.home() / ".bashrc")!r}, "/etc/passwd", "/etc/shadow",
                         "/home", "/var", "/proc/1/root/etc/passwd", "/proc/1/cwd/..", "/sys", "/old", "/run"):
                try:
                    os.stat(path)
                    seen.append(path)
                except OSError:
                    pass
            return ",".join(seen)
        """,
    )
    assert value(outcome) in ("", "/proc/1/cwd/..")


def test_nothing_can_be_written_outside_the_scratch_folder(backend: Any) -> None:
    victim = os.__file__
    before = Path(victim).read_bytes()
    outcome = attack(
        backend,
        """
        import os, sys
        def f():
            done = []
            for path in (os.__file__, "/new", "/dev/new", "/usr/lib/new", "/proc/sys/kernel/hostname",
                         "/proc/sys/kernel/core_pattern", sys.executable):
                for flags in (os.O_WRONLY | os.O_CREAT, os.O_RDWR):
                    try:
                        os.close(os.open(path, flags))
                        done.append(path)
                    except OSError:
                        pass
                for act in (os.unlink, lambda p: os.chmod(p, 0o777), lambda p: os.symlink("/", p + "x")):
                    try:
                        act(path)
                        done.append(path)
                    except OSError:
                        pass
            open("/tmp/mine", "w").write("x")
            return ",".join(done)
        """,
    )
    assert value(outcome) == ""
    assert Path(victim).read_bytes() == before
    assert not Path("/tmp/mine").exists()


def test_symbolic_links_and_descriptors_do_not_lead_out(backend: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("topsecret")
    outcome = attack(
        backend,
        f"""
        import os
        def f():
            os.symlink({str(secret)!r}, "/tmp/link")
            os.symlink("/proc/1/root" + {str(secret)!r}, "/tmp/link2")
            got = []
            for path in ("/tmp/link", "/tmp/link2", "/tmp/../../../.." + {str(secret)!r}):
                try:
                    got.append(open(path).read())
                except OSError:
                    pass
            for fd in range(3, 2000):
                try:
                    got.append(os.readlink(f"/proc/self/fd/{{fd}}").partition(":")[0])
                except OSError:
                    pass
            return ",".join(got)
        """,
    )
    assert value(outcome) == "pipe"  # the descriptor of the verdict, and nothing else
    assert secret.read_text() == "topsecret"


def test_there_is_no_network_not_even_loopback(backend: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        outcome = attack(
            backend,
            f"""
            import socket
            def f():
                done = []
                for family, address in ((socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})),
                                        (socket.AF_INET, ("8.8.8.8", 53)), (socket.AF_INET6, ("::1", 80)),
                                        (socket.AF_VSOCK, (2, 1)), (socket.AF_UNIX, "\\0abstract"),
                                        (socket.AF_PACKET, ("lo", 0)), (socket.AF_NETLINK, (0, 0))):
                    try:
                        with socket.socket(family, socket.SOCK_STREAM) as s:
                            s.settimeout(0.3)
                            s.connect(address)
                            done.append(str(address))
                    except OSError:
                        pass
                return ",".join(done)
            """,
        )
        assert value(outcome) == ""
        with pytest.raises(TimeoutError):
            server.accept()


def test_the_parents_environment_and_memory_cannot_be_read(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLVR_SECRET", "topsecret")
    outcome = attack(
        backend,
        f"""
        import ctypes, os
        def f():
            got = []
            libc = ctypes.CDLL(None, use_errno=True)
            for pid in (1, os.getppid(), {os.getpid()}):
                for name in ("environ", "mem", "maps", "cmdline", "cwd", "fd/0", "root"):
                    try:
                        data = open(f"/proc/{{pid}}/{{name}}", "rb").read(100000)
                        if b"topsecret" in data or name in ("mem", "maps", "fd/0"):
                            got.append(f"{{pid}}/{{name}}")
                    except OSError:
                        pass
                if libc.ptrace(16, pid, 0, 0) == 0:
                    got.append(f"ptrace {{pid}}")
                buffer = ctypes.create_string_buffer(8)
                iov = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
                if libc.process_vm_readv(pid, iov, 1, iov, 1, 0) > 0:
                    got.append(f"readv {{pid}}")
                try:
                    fd = os.pidfd_open(pid)
                    if libc.syscall(438, fd, 0, 0) >= 0:
                        got.append(f"pidfd_getfd {{pid}}")
                except OSError:
                    pass
            return ",".join(got)
        """,
    )
    assert value(outcome) == ""


# Processes and signals


def test_killing_the_parent_process_1_and_everybody_changes_nothing(backend: Any) -> None:
    outcome = attack(
        backend,
        f"""
        import os, signal
        def f():
            if os.path.exists("/tmp/again"):
                return "still here"
            open("/tmp/again", "w").close()
            for pid in (os.getppid(), 1, {os.getpid()}, {os.getppid()}):
                for sig in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGSEGV):
                    try:
                        os.kill(pid, sig)
                    except OSError:
                        pass
            os.kill(-1, signal.SIGKILL)
        """,
        then="f()",
    )
    assert value(outcome) == "still here"


def test_a_fork_bomb_is_bounded_and_gone_afterwards(backend: Any) -> None:
    code = """
        import ctypes, os
        def f():
            ctypes.CDLL(None).prctl(15, b"forkbomb", 0, 0, 0)
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
        """
    outcome = attack(backend, code, settings=SETTINGS.model_copy(update={"wall_s": 1.0}))
    assert outcome.broken in ("timeout", "processes", "memory")
    assert processes_with("forkbomb") == []


def test_a_daemon_does_not_outlive_its_test(backend: Any) -> None:
    outcome = attack(
        backend,
        """
        import ctypes, os, signal, time
        def f():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    ctypes.CDLL(None).prctl(15, b"mydaemon", 0, 0, 0)
                    for sig in range(1, 65):
                        try:
                            signal.signal(sig, signal.SIG_IGN)
                        except (OSError, ValueError):
                            pass
                    time.sleep(1000)
                os._exit(0)
            time.sleep(0.1)
            return "started"
        def g():
            return ",".join(p for p in os.listdir("/proc") if p.isdigit() and p not in ("1", str(os.getpid())))
        """,
        then="g()",
    )
    assert value(outcome) == ""
    assert processes_with("mydaemon") == []


def test_ignored_signals_and_zombies_do_not_hold_a_test_up(backend: Any) -> None:
    code = """
        import os, signal
        def f():
            for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU, signal.SIGHUP, signal.SIGALRM):
                signal.signal(sig, signal.SIG_IGN)
            for _ in range(5):
                if os.fork() == 0:
                    os._exit(0)
            while True:
                pass
        """
    start = time.monotonic()
    outcome = attack(backend, code, settings=SETTINGS.model_copy(update={"wall_s": 1.0}))
    assert outcome.broken == "timeout"
    assert time.monotonic() - start < 60


def test_all_of_it_dies_with_the_worker_that_started_it(backend: Any) -> None:
    code = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'orphanbox', 0, 0, 0)\ntime.sleep(100)"
    settings = SETTINGS.model_copy(update={"wall_s": 60, "total_s": 60, "cpu_s": 60}).model_dump_json()
    script = f"""
from reward_service.sandbox.run import run_tests
from reward_service.sandbox.settings import SandboxSettings
test = {{"kind": "expression", "setup": "", "expr": "1"}}
list(run_tests({code!r}, [test], SandboxSettings.model_validate_json({settings!r}), {backend!r}))
"""
    worker = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3])
    try:
        until(lambda: bool(processes_with("orphanbox")))
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    until(lambda: not processes_with("orphanbox"))
    until(lambda: not any(alive(int(pid)) for pid in children))


@pytest.mark.parametrize(
    ("body", "fails"),
    [
        ("import time\n    time.sleep(1000)", "timeout"),
        ("import os\n    os._exit(0)", None),
        ("import sys\n    sys.exit()", None),
        ("raise KeyboardInterrupt", None),
        ("import ctypes\n    ctypes.string_at(0)", None),
        ("import os\n    os.abort()", None),
        ("f2 = lambda x: f2(x)\n    import sys; sys.setrecursionlimit(10**9)\n    f2(1)", "either"),
        ("return bytearray(10**12)", None),
        ("return [0] * 10**9", None),
        ("return 'x' * 10**6", "output"),
        ("import os\n    [os.write(3, b'x' * 65536) for _ in range(100)]", "output"),
        ("import os\n    os.close(3)\n    return 4", None),
    ],
)
def test_what_ends_badly_has_no_value_and_the_sandbox_goes_on(backend: Any, body: str, fails: str | None) -> None:
    code = f"def f():\n    {body}\ndef g():\n    return 'fine'"
    wall_s = {"timeout": 0.5, "either": 2.0}.get(fails or "", 30.0)
    tests = [
        {"kind": "expression", "setup": "", "expr": expr, "wall_s": limit}
        for expr, limit in (("f()", wall_s), ("g()", 30.0))
    ]
    first, second = run_tests(code, tests, SETTINGS, backend)
    assert "value" not in first.stages
    assert fails == "either" or first.broken == fails
    assert value(second) == "fine"


def test_an_endless_loop_runs_out_of_processor_time(backend: Any) -> None:
    settings = SETTINGS.model_copy(update={"cpu_s": 1})
    outcome = attack(backend, "def f():\n    while True: pass", settings=settings)
    assert outcome.status == -signal.SIGXCPU


def test_time_without_a_processor_is_not_the_tests_fault(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One processor, and seven others who want it: more than the second of a test's time for a quarter of one of work.

    They want it as soon as the sandbox is ready: beside others yet, all five might not let it come up in time."""
    before = os.sched_getaffinity(0)
    settings = SETTINGS.model_copy(update={"wall_s": 1.0})
    code = """
        import time
        def f():
            while time.process_time() < 0.25:
                pass
            return "done"
        def g():
            time.sleep(100)
        """
    os.sched_setaffinity(0, {min(before)})
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(7)]
    start_again = _TimeLimit.set

    def when_ready(limit: _TimeLimit, seconds: float) -> None:
        for other in others:
            other.send_signal(signal.SIGSTOP if seconds == START_S else signal.SIGCONT)
        start_again(limit, seconds)

    monkeypatch.setattr(_TimeLimit, "set", when_ready)
    try:
        assert value(attack(backend, code, settings=settings)) == "done"
        assert attack(backend, code, settings=settings, then="g()").broken == "timeout"
    finally:
        for other in others:
            other.kill()
            other.wait()
        os.sched_setaffinity(0, before)


def test_a_test_that_runs_between_two_looks_is_not_charged_for_its_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    ran_s, waited_s = 0.5, 0.0

    def gets_the_processor() -> None:
        nonlocal ran_s, waited_s
        ran_s, waited_s = 0.6, 3.0

    def look_at_waits(pid: int) -> tuple[float, bool]:
        seen = waited_s
        gets_the_processor()
        return seen, True

    def look_at_runs(pids: list[int]) -> float:
        seen = ran_s
        gets_the_processor()
        return seen

    monkeypatch.setattr(clock, "_waited", look_at_waits)
    monkeypatch.setattr(clock, "_ran_s", look_at_runs)
    assert clock.Clock([1], 2.0).left_s(3.5) > 0


@pytest.mark.parametrize(
    ("wall_s", "waited_s", "ran_s", "charged"),
    [
        (5.0, 0.0, 0.0, 5.0),  # slept
        (5.0, 0.0, 5.0, 5.0),  # ran
        (5.0, 4.0, 1.0, 1.0),  # waited for others
        (5.0, 4.0, 9.0, 5.0),  # waited for threads of its own, which had two processors
    ],
)
def test_only_time_that_was_used_or_slept_counts(wall_s: float, waited_s: float, ran_s: float, charged: float) -> None:
    assert clock.charged_s(wall_s, waited_s, ran_s) == charged


def test_memory_of_many_processes_counts_together(backend: Any) -> None:
    outcome = attack(
        backend,
        """
        import os, time
        def f():
            for _ in range(8):
                if os.fork() == 0:
                    hold = bytearray(b"x") * (100 * 2**20)
                    time.sleep(100)
            time.sleep(100)
        """,
    )
    assert outcome.broken == "memory"


# Output and files


@pytest.mark.parametrize("target", ["1", "2", "file"])
def test_ten_gigabytes_of_output_go_nowhere(backend: Any, target: str) -> None:
    code = f"""
import os
fd = os.open("/tmp/big", os.O_WRONLY | os.O_CREAT) if {target!r} == "file" else int({target!r})
block = b"x" * 2**20
for _ in range(10 * 1024):
    os.write(fd, block)
print("done")
"""
    before = shutil.disk_usage("/tmp").free
    tests = [{"kind": "program", "stdin": "", "wall_s": 3.0}]
    (outcome,) = run_tests(code, tests, SETTINGS, backend)
    assert len(outcome.output) <= SETTINGS.output_kb * 1024
    if target == "1":
        assert outcome.broken == "output"
    elif target == "2":
        assert outcome.output in ("", "done\n")  # nobody reads it, and it is not kept
    else:
        assert "done" not in outcome.output
    assert before - shutil.disk_usage("/tmp").free < 2**30


def test_the_scratch_folder_is_small(backend: Any) -> None:
    outcome = attack(
        backend,
        """
        import os
        def f():
            for n in range(1000):
                try:
                    with open(f"/tmp/{n}", "wb") as file:
                        file.write(b"x" * 2**20)
                except OSError:
                    return str(n < 100)
        """,
    )
    assert value(outcome) == "True"


def test_files_and_descriptors_are_as_many_and_as_large_as_the_settings_say(backend: Any) -> None:
    code = """
        def f():
            opened = []
            with open("/tmp/large", "wb") as file:
                try:
                    for _ in range(8):
                        file.write(b"x" * 2**20)
                        file.flush()
                    large = True
                except OSError:
                    large = False
            try:
                for _ in range(40):
                    opened.append(open("/dev/null"))
                many = True
            except OSError:
                many = False
            return f"{large} {many}"
        """
    for changes, expected in (
        ({}, "True True"),
        ({"file_mb": 4}, "False True"),
        ({"scratch_mb": 4}, "False True"),
        ({"open_files": 24}, "True False"),
    ):
        assert value(attack(backend, code, settings=SETTINGS.model_copy(update=changes))) == expected, changes


# Rights


def test_no_rights_can_be_had_again(backend: Any) -> None:
    outcome = attack(
        backend,
        """
        import ctypes, os, subprocess
        def f():
            libc = ctypes.CDLL(None, use_errno=True)
            done = []
            for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x10020000):
                if libc.unshare(flag) == 0:
                    done.append(f"unshare {flag:x}")
                if libc.syscall(56, flag | 17, 0, 0, 0, 0) >= 0:
                    done.append(f"clone {flag:x}")
            if libc.mount(b"none", b"/tmp", b"tmpfs", 0, b"") == 0:
                done.append("mount")
            if libc.umount2(b"/proc", 2) == 0:
                done.append("umount")
            if libc.chroot(b"/tmp") == 0:
                done.append("chroot")
            for act in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.sethostname(b"x") if hasattr(
                        os, "sethostname") else os.setuid(0), lambda: os.mknod("/tmp/sda", 0o60666, os.makedev(8, 0)),
                        lambda: os.chown("/tmp", 0, 0), lambda: os.nice(-5)):
                try:
                    act()
                    done.append("act")
                except OSError:
                    pass
            for root, _, files in os.walk("/usr/lib"):
                for name in files:
                    path = os.path.join(root, name)
                    if os.path.isfile(path) and os.stat(path).st_mode & 0o4000 and not os.statvfs(path).f_flag & 2:
                        done.append(path)
            return ",".join(done)
        """,
    )
    assert value(outcome) == ""


def test_a_forged_verdict_has_no_nonce(backend: Any) -> None:
    outcome = attack(
        backend,
        """
        import os
        def f():
            for fd in range(64):
                for text in (b"value true\\n", b"passed \\n", b"0 passed \\n",
                             b'["test",0,{"stages":{"passed":""}}]\\n'):
                    try:
                        os.write(fd, text)
                    except OSError:
                        pass
            os._exit(0)
        """,
    )
    assert set(outcome.stages) == {"compiled", "ran"}


# Who may start it


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/usr/bin/python3").exists(), reason="takes root, to become nobody")
def test_an_unprivileged_user_gets_the_same_sandbox() -> None:
    """With the system's Python, as nobody may not read where others have theirs."""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    system = shutil.which(f"python{version}", path="/usr/bin")
    if system is None:
        pytest.skip(f"the system has no Python {version}")
    script = f"""
import os, sys
sys.path[:0] = [{str(Path(__file__).parents[3])!r}, {site!r}]
from reward_service.sandbox.probe import resolve
from reward_service.sandbox.run import run_tests
from reward_service.sandbox.settings import SandboxSettings
settings = SandboxSettings(mode="strict")
code = "import os, glob\\ndef f(): return repr((os.getuid(), os.path.exists('/etc/passwd'), os.listdir('/tmp')))"
(outcome,) = run_tests(code, [dict(kind="expression", setup="", expr="f()")], settings, resolve(settings))
print(os.getuid(), outcome.stages["value"])
"""
    done = subprocess.run(
        [system, "-B", "-c", script], capture_output=True, text=True, check=False, user=65534, group=65534,
        extra_groups=[], env={}, cwd="/", timeout=60,
    )  # fmt: skip
    if "PermissionError" in done.stderr or "ModuleNotFoundError" in done.stderr:
        pytest.skip("nobody may not read this checkout")
    assert done.stdout == '65534 "(65534, False, [])"\n', done.stderr


def test_strict_refuses_where_there_are_no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "try_backend", lambda settings, backend: "unshare: Operation not permitted")
    with pytest.raises(SandboxUnavailableError, match=r"unshare: Operation not permitted.*Remedy: install bubblewrap"):
        resolve.__wrapped__(SETTINGS)


def test_auto_falls_back_to_limits_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(probe, "try_backend", lambda settings, backend: None if backend == "limits" else "no")
    assert resolve.__wrapped__(SandboxSettings(mode="auto")) == "limits"
    assert "resource limits alone" in caplog.text


@pytest.fixture
def limits() -> SandboxSettings:
    """Settings for limits alone; nobody, who runs the code when root starts it, needs a Python that he can read."""
    for interpreter in (None, Path("/usr/bin/python3")):
        settings = SETTINGS.model_copy(update={"interpreter": interpreter, "mode": "limits"})
        if probe.try_backend(settings, "limits") is None:
            return settings
    pytest.skip("no Python that nobody can read")


def test_limits_alone_still_limit(limits: SandboxSettings) -> None:
    code = """
import os, time
def f(): return "fine"
def g(): time.sleep(100)
def h(): return bytearray(10**10)
def i():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(100)
        os._exit(0)
    os.wait()
    return "left a daemon"
"""
    tests = [
        {"kind": "expression", "setup": "", "expr": f"{name}()", "wall_s": 1.0 if name == "g" else 30.0}
        for name in "fghif"
    ]
    outcomes = list(run_tests(code, tests, limits, "limits"))
    assert [outcome.broken for outcome in outcomes] == [None, "timeout", None, None, None]
    assert "MemoryError" in outcomes[2].stages["failed"]
    assert value(outcomes[0]) == value(outcomes[4]) == "fine"


# Pure parts


def test_bubblewraps_command_line() -> None:
    line = arguments("bwrap", [("/lib", "usr/lib"), ("/usr/lib", None)], ["python", "-c", "1"], scratch_bytes=1024)
    text = " ".join(line)
    assert line[0] == "bwrap"
    for part in (
        "--unshare-user --unshare-pid --unshare-net --unshare-ipc --unshare-uts",
        "--die-with-parent",
        "--clearenv",
        "--cap-drop ALL",
        "--symlink usr/lib /lib --ro-bind /usr/lib /usr/lib",
        "--size 1024 --tmpfs /tmp --symlink",
        "--proc /proc --size 1024 --tmpfs /dev/shm",
    ):
        assert part in text
    assert text.endswith("--remount-ro /dev --remount-ro / --chdir /tmp -- python -c 1")
    assert "--share-net" not in text
    assert "--bind " not in text.replace("--ro-bind ", "")


def test_paths_inside_others_are_bound_once() -> None:
    assert outermost(["/usr/lib", "/usr/lib/python3", "/usr/lib64", "/a/", "/a"]) == ["/a", "/usr/lib", "/usr/lib64"]


def test_the_filter_is_for_known_machines_only() -> None:
    assert seccomp.program("riscv64") is None
    for machine in ("x86_64", "aarch64"):
        code = seccomp.program(machine)
        assert code is not None
        assert len(code) % 8 == 0
        assert len(code) // 8 < 256  # jumps are of one byte


def test_what_is_said_in_the_same_breath_as_ready_is_heard() -> None:
    """A busy machine reads late, and then everything at once."""
    said = ["ready"], ["test", 0, {"broken": "timeout"}], ["end"]
    script = "import sys; sys.stdout.write(sys.argv[1]); sys.stdout.flush(); sys.stdin.read()"
    lines = "".join(f"{json.dumps(line)}\n" for line in said)
    command = [sys.executable, "-c", script, lines]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as sandbox:
        assert sandbox.stdout is not None
        unread = sandbox.stdout.fileno()
        until(lambda: int.from_bytes(fcntl.ioctl(unread, termios.FIONREAD, bytes(4)), sys.byteorder) == len(lines))
        assert [outcome.broken for outcome in _outcomes(sandbox, SandboxSettings())] == ["timeout"]
        sandbox.kill()
