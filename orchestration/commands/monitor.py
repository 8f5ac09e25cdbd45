"""`rlvr monitor`: Prometheus and Grafana for the runs of this machine, or of a cluster."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestration.commands.arguments import add_json
from orchestration.errors import ConfigError, MachineError
from orchestration.monitor import programs
from orchestration.monitor.asking import values
from orchestration.monitor.files import write_files
from orchestration.monitor.targets import announced, targets_folder
from orchestration.run.ledger.names import METRICS_FILE
from orchestration.storage.atomic import atomic_write


def add_monitor(commands: Any) -> None:
    """Adds `monitor` to the commands of `rlvr`."""
    monitor = commands.add_parser("monitor", help="Prometheus and Grafana for runs: up, down, status, files")
    parts = monitor.add_subparsers(required=True, metavar="COMMAND")
    start = parts.add_parser(
        "up",
        help="start them, and say where to look",
        description="Start Prometheus, and Grafana where there is one, on loopback. Runs of this machine are found by "
        "themselves; a cluster is named by its dashboard's address.",
    )
    start.add_argument("place", metavar="RUN_DIR|ADDRESS", nargs="?", help="a run's folder, or http://HOST:8265")
    start.add_argument(
        "words", metavar="ray.KEY=VALUE", nargs="*", help="how an address is reached: `rlvr settings ray`"
    )
    start.set_defaults(run=_up)
    parts.add_parser("down", help="end them; what they recorded stays").set_defaults(run=_down)
    status = parts.add_parser("status", help="does every panel have data? exit status 1 if not")
    add_json(status)
    status.set_defaults(run=_status)
    files = parts.add_parser("files", help="write board, alert rules and configuration into a folder")
    files.add_argument("folder", metavar="FOLDER", type=Path)
    files.set_defaults(run=_files)


def _up(arguments: argparse.Namespace) -> int:
    place: str | None = arguments.place
    if (
        place is not None
        and not place.startswith(("http://", "https://"))
        and not (Path(place) / METRICS_FILE).exists()
    ):
        raise ConfigError(f"{place!r} is not a run's folder: it has no {METRICS_FILE}; give one, or http://HOST:8265")
    monitor = programs.up()
    if place is not None and place.startswith(("http://", "https://")):
        targets = _cluster(place, arguments.words)
        print(f"cluster     {place}: {', '.join(targets)}")
    runs = announced()
    if place is not None and (name := Path(place).resolve().name) not in runs and not place.startswith("http"):
        print(f"run         {name} is not under way on this machine: nothing of it is recorded now")
    print(f"Prometheus  {monitor.prometheus}")
    print(f"panels      {monitor.board}{'' if monitor.grafana else f'; {programs.GET_GRAFANA}'}")
    print(f"runs        {', '.join(runs) or 'none under way'}")
    return 0


def _cluster(address: str, settings: Sequence[str]) -> list[str]:
    """Has a cluster's nodes of now recorded; those that join later are found by `up` again."""
    from orchestration.submit.ray.local import jobs_of

    targets = jobs_of(address, settings).metric_targets()
    host = "".join(letter if letter.isalnum() else "_" for letter in address)
    content = json.dumps([{"targets": targets, "labels": {"job": "ray"}}], indent=1)
    atomic_write(targets_folder() / f"cluster_{host}.json", content.encode())
    return targets


def _down(arguments: argparse.Namespace) -> int:
    print("ended" if programs.down() else "nothing was running")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    monitor = programs.running()
    if monitor is None:
        raise ConfigError("no Prometheus of ours is running: `rlvr monitor up` starts one")
    table = values(monitor.prometheus)
    empty = [title for title, lines in table.items() if all(value is None for value in lines.values())]
    if arguments.json:
        found = {
            "prometheus": monitor.prometheus,
            "grafana": monitor.grafana,
            "panels_at": monitor.board,
            "runs": announced(),
            "empty": empty,
        }
        finite = {
            t: {k: v if v is None or math.isfinite(v) else str(v) for k, v in s.items()} for t, s in table.items()
        }
        print(json.dumps({**found, "panels": finite}))
    else:
        print(f"Prometheus {monitor.prometheus}, panels {monitor.board}, runs {', '.join(announced())}")
        for title, lines in table.items():
            shown = "  ".join(f"{legend}={value:.5g}" for legend, value in lines.items() if value is not None)
            print(f"{title:48} {shown or 'NO DATA'}")
    return 1 if empty else 0


def _files(arguments: argparse.Namespace) -> int:
    folder = arguments.folder
    try:
        write_files(folder, targets=Path("/tmp/ray"), prometheus_url="http://prometheus:9090", scrape_s=5.0)
    except OSError as error:
        raise MachineError(f"{folder} cannot be written: {error.strerror}; make room or name another folder") from error
    print(arguments.folder)
    return 0
