"""`rlvr bench monkey`: trains the tiny model while something kills or stops a random process of the run every so often.

Whatever happens, the run has to make exactly the planned updates, to learn from each prompt exactly as often as
planned, to earn what a run earns that nobody disturbs, and to leave no shared memory behind. Where the run itself ends,
as without its driver or without Ray, the same command starts it again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, Final

import psutil

from orchestration.bench.machine import machine_line
from orchestration.data.cursor import DataCursor
from orchestration.errors import RlvrError
from orchestration.settings.config import RunConfig, load_config
from orchestration.storage.cache import Progress
from rollout_server.forking.leftovers import SHARED_MEMORY, owned_prefix, remove_leftovers

_FORK_SERVER: Final = "rollout_server.forking.server"
FORKED: Final = "engine, core or rank"
KINDS: Final = {
    "ray::RolloutActor": "rollout actor",
    "ray::LearnerActor": "learner actor",
    _FORK_SERVER: FORKED,
    "reward_service": "reward service",
    "raylet/raylet": "raylet",
    "gcs_server": "GCS",
    "orchestration.cli": "driver",
}
"""Part of a command line → who that is; the first that fits."""
FATAL: Final = ("raylet", "GCS", "driver")
"""What ends the run, which then is started again."""
SIGNALS: Final = {
    "raylet": (signal.SIGKILL,),
    "GCS": (signal.SIGKILL,),
    "driver": (signal.SIGKILL, signal.SIGTERM),
}
"""What is sent to whom; to the others SIGKILL or SIGSTOP."""
FAULTS: Final = tuple(
    (kind, number) for kind in KINDS.values() for number in SIGNALS.get(kind, (signal.SIGKILL, signal.SIGSTOP))
)
_SETTINGS: Final = (
    "dashboard=false",
    "rollout.num_workers=2",
    "max_staleness=1",
    "save_every=1",
    "eval_at_ends=false",
    "data.num_eval=8",
    "max_restarts=1000",
    "rollout.stall_timeout_s=10",
    "learner.stall_timeout_s=20",
    "reward.stall_timeout_s=10",
)
_POLL_S: Final = 0.2
_START_S: Final = 600.0
_TOO_BUSY: Final = "the machine is too busy: try again"
"""Of what is said when Ray was not up within a half minute of its own; it is tried again."""
_FLAT_MIB: Final = 64.0
"""What abandoned shared memory may grow by: other programs leave some too, but an engine leaves more."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A process of a run."""

    kind: str
    """Of `KINDS`."""
    pid: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How long a run is disturbed, and how often."""

    every_s: float
    """Between two faults, at least."""
    seconds: float = math.inf
    num_faults: float = math.inf
    """Ends the harm however slow the machine is."""
    steps: int
    seed: int
    """Of the faults."""
    servers: Sequence[int] = ()
    """Processes that fork the run's engines and ranks and are not below its driver."""


@dataclass(slots=True)
class Mischief:
    """What was done to a run, and what came of it."""

    faults: Counter[tuple[str, signal.Signals]] = field(default_factory=Counter)
    starts: int = 0
    began: float = field(default_factory=time.monotonic)

    def over(self, plan: Plan) -> bool:
        """Whether all is done that was planned."""
        return sum(self.faults.values()) >= plan.num_faults or time.monotonic() - self.began >= plan.seconds


def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Train undisturbed, then disturbed, again and again with other seeds until the planned harm is done.

    Returns:
        `machine`, `settings` and `figures`.

    Raises:
        RlvrError: A run made other updates than planned, learned from other prompts, or earned less or more than the
            undisturbed one; or shared memory was left behind.
    """
    draw, memory = random.Random(plan.seed), abandoned_mib()
    rewards: list[float] = []
    with TemporaryDirectory(prefix=owned_prefix("bench")) as name:
        spread = settled(_train(Path(name, "calm"), 0, replace(plan, num_faults=0), draw, Mischief()))
        mischief = Mischief()
        while not rewards or not mischief.over(plan):
            folder = Path(name, f"run-{len(rewards)}")
            rewards.append(mean(settled(_train(folder, len(rewards), plan, draw, mischief))))
            check_reward(rewards[-1], spread, folder)
            num_faults = sum(mischief.faults.values())
            share = max(num_faults / plan.num_faults, (time.monotonic() - mischief.began) / plan.seconds)
            progress(f"{len(rewards)} runs, {num_faults} faults", min(1.0, share))
    remove_leftovers()
    if (growth := abandoned_mib() - memory) > _FLAT_MIB:
        raise RlvrError(f"{SHARED_MEMORY} holds {growth:.0f} MiB more than before that no process has in use")
    return {
        "machine": machine_line(),
        "settings": {name: value for name, value in asdict(plan).items() if value not in (math.inf, ())},
        "figures": {
            "runs": len(rewards),
            "updates": len(rewards) * plan.steps,
            "starts": mischief.starts,
            **{f"faults: {kind}, {what.name}": number for (kind, what), number in sorted(mischief.faults.items())},
            "reward": mean(rewards),
            "reward_undisturbed": mean(spread),
            "reward_undisturbed_from": min(spread),
            "reward_undisturbed_to": max(spread),
            "shared_memory_growth_mib": growth,
        },
    }


def _train(folder: Path, seed: int, plan: Plan, draw: random.Random, mischief: Mischief) -> RunConfig:
    """One run to its end, by as many starts as it takes; then the check of its folder."""
    words = [*_SETTINGS, f"max_steps={plan.steps}", f"seed={seed}", f"run_dir={folder}"]
    code = -1
    while code != 0:
        mischief.starts += 1
        log = folder.with_name(f"{folder.name}-{mischief.starts}.log")
        with log.open("wb") as output:
            driver = subprocess.Popen(
                [sys.executable, "-m", "orchestration.cli", "train", "tiny", *words], stdout=output, stderr=output
            )
        try:
            fatal = _disturb(driver, folder / "metrics.jsonl", plan, draw, mischief)
            code = driver.wait(_START_S)
        finally:
            driver.kill()
        if code != 0 and not fatal and _TOO_BUSY not in (said := _tail(log)):
            raise RlvrError(f"after {dict(mischief.faults)} the run ended with exit code {code}: {said}")
    config = load_config("tiny", words)
    check_ledger(config)
    return config


def _disturb(driver: subprocess.Popen[bytes], rows: Path, plan: Plan, draw: random.Random, mischief: Mischief) -> bool:
    """Does harm from the first step of this start until the run or the plan is over. Returns whether it was of a kind
    that ends the run."""
    fatal, next_at = False, 0.0
    before = _num_lines(rows)
    while driver.poll() is None:
        time.sleep(_POLL_S)
        if fatal or mischief.over(plan) or time.monotonic() < next_at or (next_at == 0 and _num_lines(rows) <= before):
            continue
        if (found := chosen(list(victims_below([driver.pid, *plan.servers])), mischief.faults, draw)) is not None:
            next_at = time.monotonic() + plan.every_s
            fatal = strike(*found, mischief) and found[0].kind in FATAL
    return fatal


def chosen(
    victims: Sequence[Victim], faults: Counter[tuple[str, signal.Signals]], draw: random.Random
) -> tuple[Victim, signal.Signals] | None:
    """Who is next, and what is sent to it: any of the faults that were caused least often, so that each comes once
    before any comes again; None while nobody is there for them."""
    least = min(faults[fault] for fault in FAULTS)
    there = {victim.kind for victim in victims}
    if not (left := [fault for fault in FAULTS if faults[fault] == least and fault[0] in there]):
        return None
    kind, number = draw.choice(left)
    return draw.choice([victim for victim in victims if victim.kind == kind]), number


def strike(victim: Victim, number: signal.Signals, mischief: Mischief) -> bool:
    """Send the signal, and book it. Returns whether there was somebody to receive it."""
    try:
        os.kill(victim.pid, number)
    except ProcessLookupError:
        return False
    mischief.faults[victim.kind, number] += 1
    return True


def victims_below(roots: Iterable[int]) -> Iterator[Victim]:
    """The processes of a run, of which these are the first."""
    for root in map(psutil.Process, roots):
        for process in (root, *root.children(recursive=True)):
            try:
                line = " ".join(process.cmdline())
                parent = " ".join(above.cmdline()) if (above := process.parent()) else ""
            except psutil.Error:
                continue
            if (kind := kind_of(line, parent)) is not None:
                yield Victim(kind, process.pid)


def kind_of(line: str, parent: str) -> str | None:
    """What a process is, by its command line and its parent's. The fork server itself is spared: what it forks is
    not."""
    kind = next((kind for part, kind in KINDS.items() if part in line), None)
    return None if kind == FORKED and _FORK_SERVER not in parent else kind


def check_ledger(config: RunConfig) -> None:
    """Raises RlvrError if a finished run made other updates, or learned from other prompts, than planned."""
    from pyarrow import parquet

    folder = Path(str(config.run_dir))
    if (made := [row["step"] for row in _rows(config)]) != list(range(1, config.max_steps + 1)):
        raise RlvrError(f"{folder}: the updates are {made}, and not 1 to {config.max_steps}")
    learned: Counter[str] = Counter()
    for step in range(1, config.max_steps + 1):
        table = parquet.read_table(folder / "completions" / f"step-{step:06d}.parquet", columns=["prompt_id"])
        learned.update(table["prompt_id"].to_pylist())
    drawn = DataCursor(config.data.load().train, config.seed).take(config.max_steps * config.prompts_per_step)
    planned = Counter(problem.problem_id for problem in drawn)
    for name in planned:
        planned[name] *= config.rollout.num_generations
    if learned != planned:
        raise RlvrError(
            f"{folder}: learned too often: {dict(learned - planned)}, too seldom: {dict(planned - learned)} "
            f"(completions by prompt)"
        )


def settled(config: RunConfig) -> list[float]:
    """The mean rewards of the steps of a run's second half."""
    rows = _rows(config)
    return [float(row["reward_mean"]) for row in rows[len(rows) // 2 :]]


def check_reward(reward: float, spread: Sequence[float], run: object) -> None:
    """Raises RlvrError if what a run earned on the average of some steps is none of what single steps earned in another
    run, which scatter more than averages do; or no number."""
    if not min(spread) <= reward <= max(spread):
        raise RlvrError(f"{run}: its reward is {reward:.3f}, and undisturbed {min(spread):.3f} to {max(spread):.3f}")


def _rows(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(str(config.run_dir), "metrics.jsonl").read_text().splitlines()]


def _num_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def abandoned_mib() -> float:
    """Shared memory that has a name, and that no process has in use: the files of killed processes stay for good."""
    held: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            held.update(re.findall(rf"{SHARED_MEMORY}/(\S+)", maps.read_text(errors="replace")))
    total = 0
    for file in SHARED_MEMORY.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += 0 if file.name in held else file.stat().st_blocks * 512
    return total / 2**20


def _tail(log: Path) -> str:
    return " ".join(log.read_text(errors="replace")[-2000:].split())
