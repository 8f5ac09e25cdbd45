"""`rlvr bench reward --processes N`: N processes of the reward service beside one, at one item a request by 64 clients.

Clients, servers and workers share the machine's cores. What N processes could reach at most follows from the processor
time that each of them takes for a request: `cores / (client + server + workers)`, over `1 / server`, which one event
loop cannot pass: that is `ratio_possible`, beside the `ratio` that was measured. The clients of real trainers are
elsewhere: `ratio_possible_without_clients` leaves their share out.
"""

from __future__ import annotations

import os
import statistics
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import psutil

from orchestration.bench.machine import machine_line
from orchestration.bench.reward import PAIR, RewardBench, make_bodies, make_items
from orchestration.bench.reward_load import Load, run_load
from orchestration.report.progress import counted
from orchestration.storage.cache import Progress
from reward_service.child import RunningService, start_in_subprocess
from reward_service.settings import ServiceSettings

_CLIENTS: Final = 64


def run(options: RewardBench, num_processes: int, progress: Progress) -> dict[str, Any]:
    """Measure one process and `num_processes` in turn.

    Returns:
        `machine`, `settings` and `figures`: requests per second, and microseconds of processors per request.
    """
    begin = counted(progress, 1 + options.rounds)
    begin("starting the services")
    bodies = make_bodies(make_items(options), 1, PAIR)
    cores = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="rlvr-bench-processes-")))
        services = {
            number: stack.enter_context(
                start_in_subprocess(
                    ServiceSettings(port=0, rewards=PAIR, processes=number, num_workers=max(cores, number)),
                    log_path=folder / f"{number}.log",
                )
            )
            for number in (1, num_processes)
        }
        rounds = []
        for number in range(options.rounds):
            begin(f"measuring, round {number + 1} of {options.rounds}")
            rounds.append({count: _measure(one, bodies, options.seconds) for count, one in services.items()})
    figures = {
        f"{name}_{count}_processes" if count > 1 else f"{name}_1_process": statistics.median(
            one[count][name] for one in rounds
        )
        for count in services
        for name in rounds[0][1]
    }
    figures["ratio"] = statistics.median(
        one[num_processes]["requests_per_s"] / one[1]["requests_per_s"] for one in rounds
    )
    client, server, workers = (figures[f"{name}_us_1_process"] for name in ("client", "server", "workers"))
    figures["ratio_possible"] = min(num_processes, cores * server / (client + server + workers))
    figures["ratio_possible_without_clients"] = min(num_processes, cores * server / (server + workers))
    return {"machine": machine_line(), "settings": asdict(options), "figures": figures}


def _measure(service: RunningService, bodies: tuple[bytes, ...], seconds: float) -> dict[str, float]:
    before = _processor_s(service)
    load = Load(
        host="127.0.0.1",
        port=int(service.url.rpartition(":")[2]),
        path="/v1/score",
        bodies=bodies,
        batch=1,
        num_clients=_CLIENTS,
        seconds=seconds,
    )
    outcome = run_load(load)
    after, number = _processor_s(service), len(outcome.latencies_s)
    return {
        "requests_per_s": outcome.num_items / outcome.seconds,
        "p99_ms": outcome.percentile_ms(0.99),
        "client_us": 1e6 * outcome.processor_s / number,
        "server_us": 1e6 * (after["server"] - before["server"]) / number,
        "workers_us": 1e6 * (after["workers"] - before["workers"]) / number,
    }


def _processor_s(service: RunningService) -> dict[str, float]:
    """Seconds of processors that the service took so far, by the processes that take requests and those that score."""
    totals = {"server": 0.0, "workers": 0.0}
    main = psutil.Process(service.process.pid)
    for process in (main, *main.children(recursive=True)):
        times = process.cpu_times()
        kind = "workers" if "forkserver" in " ".join(process.cmdline()) else "server"
        totals[kind] += times.user + times.system
    return totals
