"""`rlvr bench reward`: the reward service over HTTP, beside an echo and the bare functions, and with items that hang.

Server and clients are on one machine and share its cores, as they would on a small host. Every ratio is between
neighbours of one round; figures are medians over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec

from orchestration.bench.machine import machine_line
from orchestration.bench.reward_load import Load, Outcome, run_load
from orchestration.bench.reward_servers import SLEEPS, SPINS, echo_server
from orchestration.data.task import Task
from orchestration.data.tasks.arithmetic import Arithmetic
from orchestration.data.tasks.gsm8k import Gsm8k
from orchestration.errors import RlvrError
from orchestration.report.progress import counted
from orchestration.storage.cache import Progress
from orchestration.types import Problem
from reward_service.audit.settings import AuditSettings
from reward_service.child import start_in_subprocess
from reward_service.registry import BUILTIN_REWARDS
from reward_service.rewards.base import Task as Asked
from reward_service.scoring import apply_reward, make_plan
from reward_service.settings import CustomRewardSpec, ServiceSettings
from reward_service.types import ANSWER_PREFIX, RewardSpec

PAIR: Final = ("gsm8k_format", "gsm8k_correctness")
BATCHES: Final = (1, 64, 1024)
CLIENTS: Final = (1, 8, 64)
HEADLINE_BATCH: Final = 64
HEADLINE_CLIENTS: Final = 8
DEADLINE_S: Final = 1.0
_NUM_ITEMS: Final = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardBench:
    """What is measured."""

    seconds: float = 2.0
    """Of one measurement."""
    rounds: int = 5
    """Of the headline: echo, service, service with audit, with and without hanging items."""
    sweep: bool = True
    """Also every batch size with every number of clients."""
    data_file: str | None = None
    """GSM8K's training file; generated problems if unset."""


def run(options: RewardBench, progress: Progress) -> dict[str, Any]:
    """Measure the service beside an echo and the bare functions.

    Returns:
        `machine`, `settings` and `figures`.

    Raises:
        RlvrError: An answer is not what it should be.
    """
    begin = counted(progress, 2 + options.rounds + (len(BATCHES) * len(CLIENTS) if options.sweep else 0))
    begin("measuring the bare functions")
    items = make_items(options)
    figures: dict[str, float] = {"in_process_items_per_s": _in_process(items)}
    with ExitStack() as stack:
        begin("starting the services")
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="rlvr-bench-reward-")))
        ports = {
            "plain": stack.enter_context(_service(folder, "plain")),
            "audit": stack.enter_context(_service(folder, "audit", audit=AuditSettings(database=str(folder / "a.db")))),
        }
        echo = stack.enter_context(echo_server())
        figures |= _headline(options, items, ports, echo, begin)
        if options.sweep:
            figures |= _sweep(options, items, ports, echo, begin)
    return {"machine": machine_line(), "settings": asdict(options), "figures": figures}


def make_items(options: RewardBench) -> list[dict[str, Any]]:
    """Problems with their worked solutions as completions, three in four with an answer line, half of those right."""
    data: Task = Arithmetic(num_shots=1, num_eval=1, num_train=_NUM_ITEMS, difficulty=(3, 4, 5))
    if options.data_file is not None:
        data = Gsm8k(train_file=options.data_file, eval_file=options.data_file, num_shots=1, num_eval=1)
    problems = data.load().train
    return [_item(problems[number % len(problems)], number) for number in range(_NUM_ITEMS)]


def _item(problem: Problem, number: int) -> dict[str, Any]:
    answer = problem.reference["final_answer"] if number % 2 else f"{number}"
    line = f"\n{ANSWER_PREFIX} {answer}" if number % 4 else ""
    return {
        "prompt": problem.question,
        "completion": f"{problem.solution.rpartition(ANSWER_PREFIX)[0].strip()}{line}",
        "reference": dict(problem.reference),
        "id": f"{problem.problem_id}/{number}",
        "group": problem.problem_id,
    }


def make_bodies(items: Sequence[dict[str, Any]], batch: int, rewards: Sequence[str]) -> tuple[bytes, ...]:
    """Encode items as bodies of `/v1/score`.

    Args:
        items: What `make_items` makes.
        batch: Items of one request.
        rewards: Names of the rewards that every request asks for.

    Returns:
        At most 256 bodies; what fills no whole request is left out.
    """
    request = {"rewards": [{"name": name} for name in rewards], "run_id": "bench", "policy_version": 1}
    return tuple(
        msgspec.json.encode({**request, "items": items[start : start + batch]})
        for start in range(0, min(len(items), 256 * batch) - batch + 1, batch)
    )


def _in_process(items: Sequence[dict[str, Any]]) -> float:
    """Items per second of the same functions called here, on one core."""
    plan = make_plan([RewardSpec(name=name) for name in PAIR], BUILTIN_REWARDS)
    tasks = [Asked(item["completion"], item["reference"]) for item in items]
    rates = []
    for _ in range(3):
        began = time.perf_counter()
        for task in tasks:
            for planned in plan:
                apply_reward(planned, task)
        rates.append(len(tasks) / (time.perf_counter() - began))
    return max(rates)


@contextmanager
def _service(folder: Path, name: str, **settings: Any) -> Iterator[int]:
    custom = CustomRewardSpec(name="hangs", target="orchestration.bench.reward_servers:hangs")
    given = ServiceSettings(
        port=0, rewards=(*PAIR, "hangs"), custom_rewards=(custom,), deadline_s=DEADLINE_S, **settings
    )
    with start_in_subprocess(given, log_path=folder / f"{name}.log") as service:
        yield int(service.url.rpartition(":")[2])


def _headline(
    options: RewardBench,
    items: Sequence[dict[str, Any]],
    ports: Mapping[str, int],
    echo: int,
    begin: Callable[[str], None],
) -> dict[str, float]:
    bodies = make_bodies(items, HEADLINE_BATCH, PAIR)
    careful = make_bodies(items, HEADLINE_BATCH, (*PAIR, "hangs"))
    hanging = tuple(_hanging(body, how) for body, how in zip(careful[:2], (SLEEPS, SPINS), strict=True))

    def load(port: int, path: str, sent: tuple[bytes, ...], hang: tuple[bytes, ...] = (), factor: int = 1) -> Load:
        return Load(
            host="127.0.0.1",
            port=port,
            path=path,
            bodies=sent,
            batch=HEADLINE_BATCH,
            num_clients=HEADLINE_CLIENTS,
            seconds=factor * options.seconds,
            hanging=hang,
        )

    loads = {
        "echo": load(echo, "/echo", bodies),
        "plain": load(ports["plain"], "/v1/score", bodies),
        "echo_msgspec": load(echo, "/echo_msgspec", bodies),
        "audit": load(ports["audit"], "/v1/score", bodies),
        "careful": load(ports["plain"], "/v1/score", careful, factor=2),
        "hanging": load(ports["plain"], "/v1/score", careful, hanging, factor=2),
    }
    _checked(loads["plain"])  # warms up
    rounds = []
    for number in range(options.rounds):
        begin(f"measuring the headline, round {number + 1} of {options.rounds}")
        rounds.append({name: _checked(one) for name, one in loads.items()})
    rate = {name: statistics.median(_rate(one[name]) for one in rounds) for name in rounds[0]}
    hung = [one["hanging"] for one in rounds]
    return {
        "items_per_s_batch64": rate["plain"],
        "ratio_to_echo_batch64": _ratio(rounds, "plain", "echo"),
        "ratio_to_msgspec_echo_batch64": _ratio(rounds, "plain", "echo_msgspec"),
        "items_per_s_batch64_audit": rate["audit"],
        "ratio_audit_to_plain": _ratio(rounds, "audit", "plain"),
        "ratio_audit_to_echo_batch64": _ratio(rounds, "audit", "echo"),
        "ratio_with_hanging": _ratio(rounds, "hanging", "careful"),
        "p50_ms_batch64": statistics.median(one["plain"].percentile_ms(0.5) for one in rounds),
        "p99_ms_batch64": statistics.median(one["plain"].percentile_ms(0.99) for one in rounds),
        "echo_items_per_s_batch64": rate["echo"],
        "echo_msgspec_items_per_s_batch64": rate["echo_msgspec"],
        "num_hanging": float(sum(len(one.hanging_latencies_s) for one in hung)),
        "longest_ms_beside_hanging": max(one.percentile_ms(1.0) for one in hung),
        "longest_ms_of_hanging": 1000 * max(max(one.hanging_latencies_s, default=0.0) for one in hung),
    }


def _checked(load: Load) -> Outcome:
    outcome = run_load(load)
    if load.path == "/v1/score":
        _check(outcome, hangs=bool(load.hanging))
    return outcome


def _hanging(body: bytes, how: str) -> bytes:
    """The body with its last item made to hang."""
    request = msgspec.json.decode(body)
    request["items"][-1]["completion"] = f"{how}\n{request['items'][-1]['completion']}"
    return msgspec.json.encode(request)


def _check(outcome: Outcome, *, hangs: bool) -> None:
    """What was looked at holds every score, but those of items that hang; and the right ones."""
    num_timeouts = 0
    for body in outcome.looked_at:
        results = msgspec.json.decode(body)["results"]
        if len(results) != HEADLINE_BATCH:
            raise RlvrError(f"an answer has {len(results)} results for {HEADLINE_BATCH} items")
        for result in results:
            number = int(result["id"].rpartition("/")[2])
            expected = 0.0 if number % 4 == 0 else 1.0
            scores = {name: one["score"] for name, one in result["rewards"].items()}
            num_timeouts += scores.get("hangs", 0.0) is None
            right = scores["gsm8k_correctness"] == (expected if number % 2 else scores["gsm8k_correctness"])
            if not right or None in (scores["gsm8k_format"], scores["gsm8k_correctness"]):
                raise RlvrError(f"the item {result['id']} was answered {result}")
    if num_timeouts != (len(outcome.hanging_latencies_s) if hangs else 0):
        raise RlvrError(f"{num_timeouts} items timed out, {len(outcome.hanging_latencies_s)} were to")


def _sweep(
    options: RewardBench,
    items: Sequence[dict[str, Any]],
    ports: Mapping[str, int],
    echo: int,
    begin: Callable[[str], None],
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for batch in BATCHES:
        bodies = make_bodies(items, batch, PAIR)
        for num_clients in CLIENTS:
            begin(f"sweeping, batches of {batch} by {num_clients} clients")
            for name, port, path in (
                ("plain", ports["plain"], "/v1/score"),
                ("audit", ports["audit"], "/v1/score"),
                ("echo", echo, "/echo"),
            ):
                load = Load(
                    host="127.0.0.1",
                    port=port,
                    path=path,
                    bodies=bodies,
                    batch=batch,
                    num_clients=num_clients,
                    seconds=options.seconds,
                )
                outcome = run_load(load)
                key = f"batch{batch}_clients{num_clients}_{name}"
                figures[f"{key}_items_per_s"] = _rate(outcome)
                figures[f"{key}_p50_ms"] = outcome.percentile_ms(0.5)
                figures[f"{key}_p99_ms"] = outcome.percentile_ms(0.99)
    return figures


def _rate(outcome: Outcome) -> float:
    return outcome.num_items / outcome.seconds if outcome.seconds else 0.0


def _ratio(rounds: Sequence[dict[str, Outcome]], name: str, other: str) -> float:
    return statistics.median(_rate(one[name]) / _rate(one[other]) for one in rounds)
