"""Numbers of an actor as Ray node metrics."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge


class RayGauges:
    """Numbers as Ray node metrics, `rlvr_<name>{worker=…}`."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"rlvr_{name}", description=name.replace("_", " "), tag_keys=("worker",))
            self._gauges[name].set(value, tags={"worker": self._worker})
