"""Our board as pages, where there is no Grafana: what Ray's dashboard puts into the frames that it has for Grafana.

    python -m orchestration.monitor.board_pages PORT PROMETHEUS_URL

It listens on loopback and answers three addresses, by Grafana's names, since Ray asks for those: `/api/health`, which
says what this is; `/d/rlvr`, all panels; `/d-solo/rlvr?panelId=24`, one of them. Nothing else of Grafana is here: no
editing, no login, no choice of queries. The figures are Prometheus's.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

from orchestration.errors import MachineError
from orchestration.monitor.asking import ask, legend
from orchestration.monitor.files import UID
from orchestration.monitor.panels import PANELS, Panel
from orchestration.page.chart import NUM_COLOURS, Line, Point, chart
from orchestration.sockets import LOOPBACK

HEALTH: Final = {"database": "ok", "version": "no Grafana: the pages of rlvr monitor"}
"""Ray looks at the first."""
_POINTS: Final = 120
_REFRESH_S: Final = 5
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DEFAULT_S: Final = 1800.0
_IN_WORDS: Final = {
    "short": "",
    "s": "seconds",
    "ms": "milliseconds",
    "percentunit": "share",
    "reqps": "requests a second",
}
"""Grafana's names of units; the others are words."""


def span_s(since: str) -> float:
    """Seconds from Grafana's `now-5m` to now; half an hour where it is something else.

    Args:
        since: `now-` and a number of s, m, h or d; at least 10 s come of it.
    """
    found = re.fullmatch(r"now-(\d+)([smhd])", since)
    return float(max(10, int(found.group(1)) * _UNITS[found.group(2)])) if found else _DEFAULT_S


def series(prometheus: str, panel: Panel, since_s: float, now: float) -> list[Line]:
    """A panel's lines over minutes before now. Lines of one name have one colour, as those of a run and the one before
    it; where nothing was recorded, nothing is drawn.

    Args:
        prometheus: Its URL.
        panel: May have several queries.
        since_s: How far back, seconds.
        now: Seconds since 1970; where the lines end.

    Raises:
        MachineError: Prometheus does not answer.
    """
    lines: list[Line] = []
    colours: dict[str, int] = {}
    step_s = max(1.0, since_s / _POINTS)
    for query in panel.queries:
        range_of = {"start": now - since_s, "end": now, "step": step_s}
        url = f"{prometheus}/api/v1/query_range?{urlencode({'query': query.expr, **range_of})}"
        try:
            found = json.loads(ask(url))["data"]["result"]
        except (OSError, ValueError, KeyError) as error:
            raise MachineError(f"Prometheus at {prometheus} did not answer ({error}); `rlvr monitor status`") from error
        for one in found:
            points = [_point(when, value, now) for when, value in one["values"] if value not in ("NaN", "+Inf", "-Inf")]
            name = legend(query.legend, one["metric"])
            colour = colours.setdefault(name, len(colours) % NUM_COLOURS)
            lines.append(Line(name=name, points=points, colour=colour, gap=1.5 * step_s / 60))
    return lines


def _point(when: float, value: str, now: float) -> Point:
    return (when - now) / 60, float(value)


def page(drawn: Sequence[tuple[Panel, Sequence[Line]]], *, since_s: float) -> str:
    """The HTML of some panels; those without data say so.

    Args:
        drawn: Panels, each with its lines.
        since_s: How far back the lines go at most, seconds; said below them.
    """
    figures = "".join(_figure(panel, lines) for panel, lines in drawn)
    style = resources.files("orchestration.page").joinpath("page.css").read_text()
    told = f"at {time.strftime('%H:%M:%S')}; the axis counts minutes back from then, {since_s / 60:g} at most."
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>rlvr</title>'
        f'<meta http-equiv="refresh" content="{_REFRESH_S}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{style}</style></head><body><main><div class="charts">{figures}</div>'
        f"<p><small>rlvr's own panels, from Prometheus, {told}</small></p></main></body></html>"
    )


def _figure(panel: Panel, lines: Sequence[Line]) -> str:
    drawn = chart(panel.title, lines, note=_IN_WORDS.get(panel.unit, panel.unit), x_name="minute")
    return (
        drawn or f'<figure class="chart"><figcaption>{escape(panel.title)}<small>no data</small></figcaption></figure>'
    )


def answer(path: str, prometheus: str) -> tuple[int, str, str]:
    """(status, content type, text) of a GET.

    Args:
        path: Path and query, as in the request.
        prometheus: Its URL.
    """
    parts = urlsplit(path)
    asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    match [part for part in parts.path.split("/") if part]:
        case ["api", "health"]:
            return 200, "application/json", json.dumps(HEALTH)
        case ["d", name, *_] if name == UID:
            return _pages(PANELS, asked, prometheus)
        case ["d-solo", name, *_] if name == UID:
            found = [panel for panel in PANELS if str(panel.number) == asked.get("panelId")]
            if found:
                return _pages(found, asked, prometheus)
    return 404, "text/plain", f"{parts.path} is a page of Grafana's, which is not here; /d/{UID} has rlvr's panels\n"


def _pages(panels: Sequence[Panel], asked: dict[str, str], prometheus: str) -> tuple[int, str, str]:
    since_s, now = span_s(asked.get("from", "")), time.time()
    try:
        with ThreadPoolExecutor(max_workers=4) as pool:
            lines = list(pool.map(lambda panel: series(prometheus, panel, since_s, now), panels))
    except MachineError as error:
        return 502, "text/plain", f"{error}\n"
    return 200, "text/html", page(list(zip(panels, lines, strict=True)), since_s=since_s)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:  # the library's name
        status, kind, text = answer(self.path, self.server.prometheus)
        content = text.encode()
        with suppress(ConnectionError):  # a browser that leaves early is no fault
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """A page that is looked at asks every few seconds."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, prometheus: str) -> None:
        self.prometheus = prometheus
        super().__init__((LOOPBACK, port), _Handler)


if __name__ == "__main__":
    _Server(int(sys.argv[1]), sys.argv[2]).serve_forever()
