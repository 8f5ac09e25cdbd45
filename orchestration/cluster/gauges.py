"""Numbers of an actor as Ray node metrics, and in its text on the actors page."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

from orchestration.cluster.showing.actor_text import ActorText
from orchestration.monitor.lines import actor_line


class RayGauges:
    """Numbers as Ray node metrics, `rlvr_<name>{worker=…}`. What only grows has a name in `_total`, and is a gauge all
    the same: Ray's counters do not exist before they count, and a panel without data looks like a broken one."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._gauges: dict[str, Gauge] = {}
        self._text = ActorText()

    def __call__(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"rlvr_{name}", description=name.replace("_", " "), tag_keys=("worker",))
            self._gauges[name].set(value, tags={"worker": self._worker})
        self._text.show(actor_line(self._worker, values))
