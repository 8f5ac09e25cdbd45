"""Prometheus, and Grafana where there is one, started for this user and ended again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final
from urllib.error import URLError

import psutil
from filelock import FileLock

from orchestration.errors import MachineError
from orchestration.monitor.asking import ASK_S, ask
from orchestration.monitor.files import UID, write_files
from orchestration.monitor.targets import targets_folder
from orchestration.scratch import outliving
from orchestration.sockets import LOOPBACK, free_port
from orchestration.storage.atomic import atomic_write
from orchestration.storage.state import state_root
from rollout_server.forking.leftovers import mark

PROMETHEUS_PORT, GRAFANA_PORT, PAGES_PORT = 9090, 3000, 3001
GET_PROMETHEUS: Final = (
    "there is no Prometheus here: `apt-get install prometheus`, or a binary from prometheus.io in PATH or as "
    "RLVR_PROMETHEUS"
)
GET_GRAFANA: Final = (
    "there is no Grafana here; for its panels in place of our plainer ones install it from grafana.com, or name its "
    "folder in GRAFANA_HOME, and run `rlvr monitor down` and `up`"
)
_START_S: Final = 20.0


Processes = Mapping[str, tuple[int, str]]
"""By name the ids, and each's `mark`: a number alone may be another's by now, and a time of day may be set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Monitor:
    """What runs."""

    prometheus: str
    """Where it answers."""
    grafana: str | None
    pages: str | None = None
    """Where our own panels are, without a Grafana."""
    processes: Processes = field(default_factory=dict)

    @property
    def board(self) -> str:
        """Where the panels are."""
        return f"{self.grafana or self.pages}/d/{UID}"

    def where(self) -> str:
        """Where to look, as the end of a sentence."""
        return f"panels at {self.board}{'' if self.grafana else ', no Grafana'}"

    def ray_environment(self) -> dict[str, str]:
        """For a Ray head that is started from now on: its Metrics tab shows our board."""
        host = self.grafana or self.pages or ""
        return {
            "RAY_PROMETHEUS_HOST": self.prometheus,
            "RAY_PROMETHEUS_NAME": "Prometheus",
            "RAY_GRAFANA_HOST": host,
            "RAY_GRAFANA_IFRAME_HOST": host,
            "RAY_GRAFANA_DEFAULT_DASHBOARD_UID": UID,
        }


def _folder() -> Path:
    return state_root() / "monitor"


def find_prometheus() -> str | None:
    return os.environ.get("RLVR_PROMETHEUS") or shutil.which("prometheus")


def running() -> Monitor | None:
    """What `up` has started, as long as its Prometheus lives."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = Monitor(**json.loads((_folder() / "state.json").read_bytes()))
        if _process(found.processes, "prometheus") is not None:
            return found
    return None


def _process(processes: Processes, name: str) -> psutil.Process | None:
    """None where it has ended."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError, KeyError):
        pid, began = processes[name]
        if mark(pid) == began:
            return psutil.Process(pid)
    return None


def up(*, scrape_s: float = 5.0) -> Monitor:
    """Write the files and start what is not running yet; it goes on after this process, on loopback alone.

    Raises MachineError: there is no Prometheus, it does not start, or the state folder cannot be written.
    """
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock", timeout=_START_S):
            if (monitor := running()) is not None:
                if all(_process(monitor.processes, name) for name in monitor.processes):
                    write_files(folder, targets=targets_folder(), prometheus_url=monitor.prometheus, scrape_s=scrape_s)
                    return monitor
                _end(monitor.processes)  # a Prometheus alone shows nobody its panels
            return _start(folder, scrape_s)
    except OSError as error:
        raise MachineError(
            f"{folder} cannot be written: {error.strerror or error}; set RLVR_STATE to another folder"
        ) from error


def _start(folder: Path, scrape_s: float) -> Monitor:
    processes: dict[str, tuple[int, str]] = {}
    try:
        monitor = _started(folder, scrape_s, processes)
        atomic_write(folder / "state.json", json.dumps(asdict(monitor)).encode())
        return monitor
    except BaseException:  # Ctrl-C too: nobody would find again what has no state file
        _end(processes)
        raise


def _started(folder: Path, scrape_s: float, processes: dict[str, tuple[int, str]]) -> Monitor:
    """Begin what is needed, and put it into `processes` at once."""
    program = find_prometheus()
    if program is None:
        raise MachineError(GET_PROMETHEUS)
    port = free_port(PROMETHEUS_PORT)
    url = f"http://{LOOPBACK}:{port}"
    write_files(folder, targets=targets_folder(), prometheus_url=url, scrape_s=scrape_s)
    words = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    words += [f"--web.listen-address={LOOPBACK}:{port}", "--storage.tsdb.retention.time=30d"]
    processes["prometheus"] = _begin("prometheus", words, folder)
    _until_ready("prometheus", processes, f"{url}/-/ready", folder)
    server, home = _find_grafana()
    port = free_port(PAGES_PORT if server is None else GRAFANA_PORT)
    board = f"http://{LOOPBACK}:{port}"
    if server is None:
        words = [sys.executable, "-m", "orchestration.monitor.board_pages", str(port), url]
        name, variables = "pages", {}
    else:
        words, name, variables = [server, f"--homepath={home}"], "grafana", _grafana(folder, port)
    processes[name] = _begin(name, words, folder, variables)
    _until_ready(name, processes, f"{board}/api/health", folder)
    grafana, pages = (None, board) if server is None else (board, None)
    return Monitor(prometheus=url, grafana=grafana, pages=pages, processes=processes)


def _find_grafana() -> tuple[str | None, str]:
    """The program and its folder."""
    home = os.environ.get("GRAFANA_HOME") or "/usr/share/grafana"
    return shutil.which("grafana-server", path=f"{os.environ.get('PATH', '')}:{home}/bin"), home


def _grafana(folder: Path, port: int) -> dict[str, str]:
    """Grafana's settings as variables: on loopback, without a login to look, and in frames of Ray's dashboard."""
    return {
        "GF_SERVER_HTTP_ADDR": LOOPBACK,
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_PATHS_DATA": f"{folder}/grafana-data",
        "GF_PATHS_PROVISIONING": f"{folder}/grafana",
        "GF_SECURITY_ALLOW_EMBEDDING": "true",
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": f"{folder}/dashboards/rlvr.json",
    }


def _begin(name: str, words: list[str], folder: Path, variables: Mapping[str, str] | None = None) -> tuple[int, str]:
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            words,
            env={**outliving(os.environ), **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return process.pid, mark(process.pid)


def _until_ready(name: str, processes: Processes, url: str, folder: Path) -> None:
    """Raises MachineError when it does not answer."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and _process(processes, name) is not None:
        with suppress(OSError, URLError):
            ask(url)
            return
        time.sleep(0.1)
    raise MachineError(f"{name} ended or did not get ready within {_START_S:g} s; its log is {folder}/{name}.log")


def down() -> bool:
    """End what runs; whether anything did.

    Returns:
        False where nothing ran.
    """
    monitor = running()
    if monitor is not None:
        _end(monitor.processes)
    (_folder() / "state.json").unlink(missing_ok=True)
    return monitor is not None


def _end(processes: Processes) -> None:
    living = [found for name in processes if (found := _process(processes, name)) is not None]
    for process in living:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(living, timeout=ASK_S)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
