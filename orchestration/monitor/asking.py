"""Questions to Prometheus on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from orchestration.errors import MachineError
from orchestration.monitor.panels import PANELS

ASK_S: Final = 10.0


def ask(url: str) -> bytes:
    """A GET past all proxies: what answers is on loopback.

    Args:
        url: On loopback.

    Raises:
        OSError: Nobody answers, or with an error.
    """
    with build_opener(ProxyHandler({})).open(url, timeout=ASK_S) as answer:
        return bytes(answer.read())


def query(url: str, expr: str) -> list[dict[str, Any]]:
    """An instant query's series, `{"metric": labels, "value": [seconds, text]}`.

    Args:
        url: Of Prometheus, without a path.
        expr: In PromQL.

    Raises:
        MachineError: Prometheus does not answer, or not in JSON.
    """
    try:
        answer = json.loads(ask(f"{url}/api/v1/query?{urlencode({'query': expr})}"))
    except (OSError, ValueError) as error:
        raise MachineError(f"Prometheus at {url} did not answer: {error}; see `rlvr monitor up`") from error
    return list(answer["data"]["result"])


def values(url: str) -> dict[str, dict[str, float | None]]:
    """By panel and legend of each line: its value now; None where there is no data.

    Args:
        url: Prometheus's.

    Raises:
        MachineError: It does not answer.
    """
    table: dict[str, dict[str, float | None]] = {}
    for panel in PANELS:
        lines: dict[str, float | None] = {}
        for each in panel.queries:
            found = query(url, each.expr)
            lines |= {legend(each.legend, one["metric"]): float(one["value"][1]) for one in found}
            if not found:
                lines[each.legend] = None
        table[panel.title] = lines
    return table


def legend(pattern: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found.group(1), "?"), pattern)
