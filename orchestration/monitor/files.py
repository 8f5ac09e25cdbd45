"""The files that Prometheus and Grafana read, made of `panels`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml

from orchestration.monitor.panels import PANELS, RULES, Panel
from orchestration.storage.atomic import atomic_write

UID: Final = "rlvr"
"""Of the board. Ray's Metrics tab is told to show the board of this name."""
_SOURCE: Final = {"type": "prometheus", "uid": "prometheus"}


def dashboard() -> dict[str, Any]:
    """The board, as Grafana's JSON model."""
    return {
        "uid": UID,
        "title": "rlvr",
        "schemaVersion": 41,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "panels": [_panel(place, panel) for place, panel in enumerate(PANELS)],
    }


def _panel(place: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": panel.number or place + 101,
        "title": panel.title,
        "type": "timeseries",
        "datasource": _SOURCE,
        "gridPos": {"x": 8 * (place % 3), "y": 8 * (place // 3), "w": 8, "h": 8},
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": {"fillOpacity": 8, "showPoints": "never"}}},
        "options": {"tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query.expr, "legendFormat": query.legend}
            for number, query in enumerate(panel.queries)
        ],
    }


def prometheus(targets: Path, *, rules: Path, scrape_s: float) -> dict[str, Any]:
    """Prometheus's configuration: it scrapes what the files in a folder name.

    Args:
        targets: A folder of files as `rlvr`'s runs write them, read again every few seconds.
        rules: The alert rules' file.
        scrape_s: Seconds between two scrapes of a target.
    """
    every = f"{1000 * scrape_s:.0f}ms"
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": "5s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {"job_name": "runs", "file_sd_configs": [{"files": [f"{targets}/*.json"], "refresh_interval": "5s"}]}
        ],
    }


def alerts() -> dict[str, Any]:
    """Prometheus's alert rules."""
    rules = [
        {"alert": name, "expr": expr, "for": "30s", "annotations": {"summary": summary}}
        for name, (expr, summary) in RULES.items()
    ]
    return {"groups": [{"name": "rlvr", "rules": rules}]}


def write_files(folder: Path, *, targets: Path, prometheus_url: str, scrape_s: float) -> None:
    """Everything into a folder: `prometheus.yml`, `rules.yml`, `dashboards/rlvr.json`, `grafana/`.

    Args:
        folder: Is made.
        targets: The folder whose files name what is scraped.
        prometheus_url: As Grafana reaches it.
        scrape_s: Between two looks.

    Raises:
        OSError: One of them cannot be written.
    """
    source = {**_SOURCE, "name": "Prometheus", "access": "proxy", "url": prometheus_url, "isDefault": True}
    provider = {"name": "rlvr", "type": "file", "options": {"path": str(folder / "dashboards")}}
    texts = {
        "prometheus.yml": yaml.safe_dump(prometheus(targets, rules=folder / "rules.yml", scrape_s=scrape_s)),
        "rules.yml": yaml.safe_dump(alerts()),
        "dashboards/rlvr.json": json.dumps(dashboard(), indent=1),
        "grafana/datasources/prometheus.yaml": yaml.safe_dump({"apiVersion": 1, "datasources": [source]}),
        "grafana/dashboards/rlvr.yaml": yaml.safe_dump({"apiVersion": 1, "providers": [provider]}),
    }
    targets.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / name, text.encode())
