"""Prometheus, and Grafana where there is one, started for this user and ended again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import psutil
from filelock import FileLock

from orchestration.errors import MachineError
from orchestration.monitor.files import UID, write_files
from orchestration.monitor.panels import PANELS
from orchestration.monitor.targets import targets_folder
from orchestration.sockets import LOOPBACK, free_port
from orchestration.storage.atomic import atomic_write
from orchestration.storage.state import state_root

PROMETHEUS_PORT, GRAFANA_PORT = 9090, 3000
GET_PROMETHEUS: Final = (
    "there is no Prometheus here: `apt-get install prometheus`, or a binary from prometheus.io in PATH or as "
    "RLVR_PROMETHEUS"
)
GET_GRAFANA: Final = (
    "there is no Grafana here, whose panels Ray's Metrics tab shows: install it from grafana.com, or name its folder "
    "in GRAFANA_HOME, and run `rlvr monitor up` again"
)
_START_S: Final = 20.0
_ASK_S: Final = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Monitor:
    """What runs."""

    prometheus: str
    """Where it answers."""
    grafana: str | None
    processes: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """Process ids, and when each began: a number alone may be another's by now."""

    def where(self) -> str:
        """Where to look, as the end of a sentence."""
        return f"panels at {self.grafana}/d/{UID}" if self.grafana else "panels by `rlvr monitor status`, no Grafana"

    def ray_environment(self) -> dict[str, str]:
        """For a Ray head that is started from now on: its Metrics tab shows our board."""
        variables = {"RAY_PROMETHEUS_HOST": self.prometheus, "RAY_PROMETHEUS_NAME": "Prometheus"}
        if self.grafana is not None:
            variables |= {"RAY_GRAFANA_HOST": self.grafana, "RAY_GRAFANA_IFRAME_HOST": self.grafana}
            variables |= {"RAY_GRAFANA_DEFAULT_DASHBOARD_UID": UID}
        return variables


def _folder() -> Path:
    return state_root() / "monitor"


def find_prometheus() -> str | None:
    return os.environ.get("RLVR_PROMETHEUS") or shutil.which("prometheus")


def running() -> Monitor | None:
    """What `up` has started, as long as its Prometheus lives."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = Monitor(**json.loads((_folder() / "state.json").read_bytes()))
        if _process(found, "prometheus") is not None:
            return found
    return None


def _process(monitor: Monitor, name: str) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess, KeyError):
        pid, began = monitor.processes[name]
        process = psutil.Process(pid)
        if abs(process.create_time() - began) < 1.0 and process.status() != psutil.STATUS_ZOMBIE:
            return process
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
                write_files(folder, targets=targets_folder(), prometheus_url=monitor.prometheus, scrape_s=scrape_s)
                return monitor
            return _start(folder, scrape_s)
    except OSError as error:
        raise MachineError(f"{folder} cannot be written: {error}; set RLVR_STATE to another folder") from error


def _start(folder: Path, scrape_s: float) -> Monitor:
    program = find_prometheus()
    if program is None:
        raise MachineError(GET_PROMETHEUS)
    port = free_port(PROMETHEUS_PORT)
    url = f"http://{LOOPBACK}:{port}"
    write_files(folder, targets=targets_folder(), prometheus_url=url, scrape_s=scrape_s)
    words = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    words += [f"--web.listen-address={LOOPBACK}:{port}", "--storage.tsdb.retention.time=30d"]
    processes = {"prometheus": _begin("prometheus", words, folder)}
    _until_ready("prometheus", processes["prometheus"], f"{url}/-/ready", folder)
    grafana = None
    if (home := os.environ.get("GRAFANA_HOME") or "/usr/share/grafana") and (
        server := shutil.which("grafana-server", path=f"{os.environ.get('PATH', '')}:{home}/bin")
    ):
        grafana_port = free_port(GRAFANA_PORT)
        grafana = f"http://{LOOPBACK}:{grafana_port}"
        processes["grafana"] = _begin("grafana", [server, f"--homepath={home}"], folder, _grafana(folder, grafana_port))
        _until_ready("grafana", processes["grafana"], f"{grafana}/api/health", folder)
    monitor = Monitor(prometheus=url, grafana=grafana, processes=processes)
    atomic_write(folder / "state.json", json.dumps(asdict(monitor)).encode())
    return monitor


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


def _begin(name: str, words: list[str], folder: Path, variables: Mapping[str, str] | None = None) -> tuple[int, float]:
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            words,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return process.pid, psutil.Process(process.pid).create_time()


def _until_ready(name: str, process: tuple[int, float], url: str, folder: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and psutil.pid_exists(process[0]):
        with suppress(OSError, URLError):
            ask(url)
            return
        time.sleep(0.1)
    end = Monitor(prometheus="", grafana=None, processes={name: process})
    _end(end)
    raise MachineError(f"{name} did not get ready within {_START_S:g} s; its log is {folder}/{name}.log")


def ask(url: str) -> bytes:
    """A GET past all proxies: what answers is on loopback."""
    with build_opener(ProxyHandler({})).open(url, timeout=_ASK_S) as answer:
        return bytes(answer.read())


def down() -> bool:
    """End what runs; whether anything did."""
    monitor = running()
    if monitor is not None:
        _end(monitor)
    (_folder() / "state.json").unlink(missing_ok=True)
    return monitor is not None


def _end(monitor: Monitor) -> None:
    processes = [found for name in monitor.processes if (found := _process(monitor, name)) is not None]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=_ASK_S)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def query(url: str, expr: str) -> list[dict[str, Any]]:
    """An instant query's series, `{"metric": labels, "value": [seconds, text]}`. Raises MachineError."""
    try:
        answer = json.loads(ask(f"{url}/api/v1/query?{urlencode({'query': expr})}"))
    except (OSError, ValueError) as error:
        raise MachineError(f"Prometheus at {url} did not answer: {error}; see `rlvr monitor up`") from error
    return list(answer["data"]["result"])


def values(url: str) -> dict[str, dict[str, float | None]]:
    """By panel and legend of each line: its value now; None where there is no data."""
    table: dict[str, dict[str, float | None]] = {}
    for panel in PANELS:
        lines: dict[str, float | None] = {}
        for each in panel.queries:
            found = query(url, each.expr)
            lines |= {_legend(each.legend, one["metric"]): float(one["value"][1]) for one in found}
            if not found:
                lines[each.legend] = None
        table[panel.title] = lines
    return table


def _legend(pattern: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found.group(1), "?"), pattern)
