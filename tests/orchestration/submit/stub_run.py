"""In place of `orchestration/cli.py` in a job's code: a run's folder, lines and exit status without a model.

What hosts do around a run is proven with it in seconds. STUB_WAITS=HOST in the environment lets a run that begins anew
wait after its first step until it is stopped, with an actor on that host, which it still needs then.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from typing import Any

from orchestration.run.ledger.folder import RunFolder
from orchestration.run.ledger.names import METRICS_FILE
from orchestration.settings.config import load_config


class Elsewhere:
    """An actor on another host."""

    def host(self) -> str:
        return socket.gethostname()


def actor_on(host: str) -> Any:
    import ray

    ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
    return ray.remote(Elsewhere).options(num_cpus=0, resources={host: 0.001}).remote()


def answers(actor: Any) -> str:
    import ray

    return str(ray.get(actor.host.remote(), timeout=60))


def main() -> int:
    config = load_config(sys.argv[2])
    folder = RunFolder.create(config)
    begun = len((folder.path / METRICS_FILE).read_text().splitlines())
    waits_with = None if begun else os.environ.get("STUB_WAITS")
    actor = waits_with and actor_on(waits_with)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())  # after Ray, which takes it for itself
    if begun:
        print(f"going on after step {begun}")
    for step in range(begun + 1, config.max_steps + 1):
        folder.append_metrics({"step": step})
        if actor:
            assert answers(actor) == waits_with
        print(f"step {step}/{config.max_steps} ", flush=True)
        if actor:
            stop.wait()
            assert answers(actor) == waits_with
            folder.write_summary({"status": "stopped"})
            return 130
    folder.write_adapter([("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"weights")])
    folder.write_summary({"status": "finished"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
