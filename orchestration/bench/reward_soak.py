"""`rlvr bench reward --soak SECONDS`: minutes of load with items that hang, die, eat memory or are hostile text.

Looked at: every accepted item is answered, in order, with a score or a reason; harmless items have the right score
whatever they arrive with; the memory of the service does not grow; nothing is left behind.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import msgspec
import psutil

from orchestration.bench.machine import machine_line
from orchestration.bench.reward_servers import SLEEPS, SPINS
from orchestration.errors import RlvrError
from orchestration.storage.cache import Progress
from reward_service.audit.settings import AuditSettings
from reward_service.audit.store import AuditStore
from reward_service.audit.verify import verify
from reward_service.child import RunningService, start_in_subprocess
from reward_service.settings import CustomRewardSpec, ServiceSettings
from reward_service.types import ANSWER_PREFIX

NUM_CLIENTS: Final = 8
DEADLINE_S: Final = 0.5
SEGFAULTS, EXITS, EATS = "(segfaults)", "(exits)", "(eats)"
_REWARDS: Final = ("gsm8k_format", "gsm8k_correctness", "misbehaves")
_SAMPLE_S: Final = 2.0
_TROUBLE: Final = (SLEEPS, SPINS, SEGFAULTS, EXITS, EATS)
_HOSTILE: Final = (
    "}" * 100_000,
    "(" * 50_000 + "1" + ")" * 50_000,
    "#" * 200_000,
    f"{ANSWER_PREFIX} " * 20_000,
    "\u200b" * 100_000,
    "9" * 1_000_000,
    f"{ANSWER_PREFIX} 1e999999999",
    "\x00\ufffe\U0010ffff" * 1000,
)


def misbehaves(completion: str, reference: Mapping[str, Any] | None, params: object) -> float:
    """0.0, unless the completion begins with what it is to do."""
    if completion.startswith(SLEEPS):
        time.sleep(3600)
    while completion.startswith(SPINS):
        pass
    if completion.startswith(SEGFAULTS):
        ctypes.string_at(0)
    if completion.startswith(EXITS):
        os._exit(1)
    if completion.startswith(EATS):
        return float(len(b"x" * 2**40))
    return 0.0


def run(seconds: float, progress: Progress) -> dict[str, Any]:
    """Soak for so many seconds.

    Returns:
        `machine`, `settings` and `figures`.

    Raises:
        RlvrError: An accepted item was not answered as it must be, or the audit log is damaged.
    """
    with TemporaryDirectory(prefix="rlvr-bench-soak-") as name:
        folder = Path(name)
        audit = AuditSettings(database=str(folder / "audit.db"))
        with _service(folder, audit) as service:
            counts, samples = asyncio.run(_soak(service, seconds, progress))
            restarts = _restarts(service)
            children = psutil.Process(service.process.pid).children(recursive=True)
            service.process.send_signal(signal.SIGTERM)
            service.process.wait(30)
            _, alive = psutil.wait_procs(children, 10)
        store = AuditStore(audit.database)
        checked = verify(store)
        store.close()
    if checked.findings:
        raise RlvrError(f"the audit log is damaged: {checked.findings[0]}")
    return {
        "machine": machine_line(),
        "settings": {"seconds": seconds, "num_clients": NUM_CLIENTS, "deadline_s": DEADLINE_S},
        "figures": {
            "accepted_items": float(counts["accepted"]),
            "answered_items": float(counts["answered"]),
            "wrong_items": float(counts["wrong"]),
            "unscored_harmless_items": float(counts["unscored_harmless"]),
            "misbehaving_items": float(counts["trouble"]),
            "refused_requests": float(counts["refused"]),
            "audited_items": float(checked.num_decisions),
            "items_per_s": counts["accepted"] / seconds,
            **{f"workers_replaced_{reason.replace(' ', '_')}": float(count) for reason, count in restarts.items()},
            **_growth(samples),
            "processes_left": float(len(alive)),
        },
    }


@contextmanager
def _service(folder: Path, audit: AuditSettings) -> Iterator[RunningService]:
    custom = CustomRewardSpec(name="misbehaves", target="orchestration.bench.reward_soak:misbehaves")
    settings = ServiceSettings(
        port=0,
        rewards=_REWARDS,
        custom_rewards=(custom,),
        deadline_s=DEADLINE_S,
        worker_memory_bytes=2**28,
        max_items_per_worker=50_000,
        audit=audit,
    )
    with start_in_subprocess(settings, log_path=folder / "service.log") as service:
        yield service


async def _soak(
    service: RunningService, seconds: float, progress: Progress
) -> tuple[Counter[str], list[tuple[float, float, float]]]:
    """Counts, and samples of (time, resident MiB of the server, of all its processes)."""
    counts: Counter[str] = Counter()
    samples: list[tuple[float, float, float]] = []
    end = time.monotonic() + seconds
    async with httpx.AsyncClient(timeout=90, trust_env=False) as client, asyncio.TaskGroup() as group:
        for number in range(NUM_CLIENTS):
            group.create_task(_client(client, service.url, random.Random(number), end, counts))
        group.create_task(_sample(service.process.pid, seconds, samples, progress))
    return counts, samples


async def _client(client: httpx.AsyncClient, url: str, draw: random.Random, end: float, counts: Counter[str]) -> None:
    while time.monotonic() < end:
        if draw.random() < 0.02:
            content = draw.choice([b"", b"{", b"[" * 10_000, b"\xff" * 1000, b'{"rewards": [], "items": []}'])
            if (await client.post(f"{url}/v1/score", content=content)).status_code != 422:
                raise RlvrError(f"the body {content[:50]!r} was not refused")
            counts["refused"] += 1
            continue
        items = [_item(draw, number) for number in range(draw.choice((1, 8, 64, 256)))]
        body = {"rewards": [{"name": name} for name in _REWARDS], "items": items, "run_id": "soak"}
        answer = await client.post(f"{url}/v1/score", content=msgspec.json.encode(body))
        if answer.status_code != 200:
            raise RlvrError(f"a request was answered {answer.status_code}: {answer.text[:200]}")
        counts["accepted"] += len(items)
        _check(items, msgspec.json.decode(answer.content)["results"], counts)


def _item(draw: random.Random, number: int) -> dict[str, Any]:
    """One in 2,000 makes trouble, one in 200 is hostile text, the others are harmless, half of them right."""
    chance = draw.random()
    kind = "trouble" if chance < 0.0005 else "hostile" if chance < 0.0055 else "harmless"
    completion = f"{number} it is.\n{ANSWER_PREFIX} {number if number % 2 else number + 1}"
    if kind == "trouble":
        completion = f"{draw.choice(_TROUBLE)}\n{completion}"
    elif kind == "hostile":
        completion = draw.choice(_HOSTILE)
    return {"completion": completion, "reference": {"final_answer": str(number)}, "id": f"{kind}/{number}"}


def _check(items: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]], counts: Counter[str]) -> None:
    if [result["id"] for result in results] != [item["id"] for item in items]:
        raise RlvrError(f"{len(items)} items were answered by {len(results)} results, or not in their order")
    for result in results:
        kind, _, number = result["id"].partition("/")
        rewards = result["rewards"]
        counts[kind] += 1
        counts["answered"] += all(reward["score"] is not None or reward["reason"] for reward in rewards.values())
        if kind == "harmless":
            expected = 0.5 + float(int(number) % 2)
            unscored = any(reward["score"] is None for reward in rewards.values())
            counts["unscored_harmless"] += unscored
            counts["wrong"] += not unscored and result["total"] != expected
        elif kind == "trouble":
            counts["wrong"] += rewards["misbehaves"]["score"] is not None


async def _sample(pid: int, seconds: float, samples: list[tuple[float, float, float]], progress: Progress) -> None:
    server = psutil.Process(pid)
    began = time.monotonic()
    while (passed_s := time.monotonic() - began) < seconds:
        progress("soaking", passed_s / seconds)
        await asyncio.sleep(_SAMPLE_S)
        resident = [server.memory_info().rss]
        for child in server.children(recursive=True):
            try:
                resident.append(child.memory_info().rss)
            except psutil.NoSuchProcess:  # it was a worker that is being replaced
                continue
        samples.append((time.monotonic(), resident[0] / 2**20, sum(resident) / 2**20))


def _growth(samples: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    """Medians of the second and of the last fifth; the first is the warm-up."""
    fifth = max(1, len(samples) // 5)
    figures: dict[str, float] = {}
    for column, name in ((1, "server"), (2, "all_processes")):
        early = statistics.median(sample[column] for sample in samples[fifth : 2 * fifth] or samples)
        late = statistics.median(sample[column] for sample in samples[-fifth:])
        figures |= {f"{name}_mib_early": early, f"{name}_mib_late": late, f"{name}_growth": late / early - 1}
    return figures


def _restarts(service: RunningService) -> dict[str, float]:
    text = httpx.get(f"{service.url}/metrics", timeout=10, trust_env=False).text
    prefix = 'reward_workers_restarted_total{reason="'
    lines = [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]
    return {line.partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}
