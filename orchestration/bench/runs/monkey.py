"""`rlvr bench monkey`: trains the tiny model while something kills or stops a random process of the run every so often.

Whatever happens, the run has to make exactly the planned updates and to learn from each prompt exactly as often as
planned. Where the run itself ends, as without its driver or without Ray, the same command starts it again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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


@dataclass(frozen=True, slots=True)
class Victim:
    """A process of a run."""

    kind: str
    """Of `KINDS`."""
    pid: int


@dataclass(slots=True)
class Mischief:
    """What was done to a run, and what came of it."""

    faults: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    exit_codes: list[int] = field(default_factory=list)


def run(seconds: float, every_s: float, steps: int, seed: int, progress: Progress) -> dict[str, Any]:
    """Train `steps` steps, again and again with other seeds, until so many seconds are over.

    Args:
        every_s: Between two faults.

    Returns:
        `machine`, `settings` and `figures`.

    Raises:
        RlvrError: A run made other updates than planned, or learned from other prompts.
    """
    draw, mischief, rewards = random.Random(seed), Mischief(), []
    began, memory = time.monotonic(), _shared_memory_mib()
    num_runs = 0
    with TemporaryDirectory(prefix=owned_prefix("bench")) as name:
        while not num_runs or time.monotonic() - began < seconds:
            words = ["tiny", *_SETTINGS, f"max_steps={steps}", f"seed={num_runs}", f"run_dir={name}/run-{num_runs}"]
            rows = Path(name, f"run-{num_runs}", "metrics.jsonl")
            _train(words, rows, draw, mischief, until=began + seconds, every_s=every_s, log=Path(name, "log"))
            rewards.append(checked(load_config("tiny", words[1:])))
            num_runs += 1
            progress(f"{num_runs} runs, {sum(mischief.faults.values())} faults", (time.monotonic() - began) / seconds)
    remove_leftovers()
    return {
        "machine": machine_line(),
        "settings": {"seconds": seconds, "every_s": every_s, "steps": steps, "seed": seed},
        "figures": {
            "runs": num_runs,
            "updates": num_runs * steps,
            "starts": mischief.starts,
            **{f"faults: {what}": number for what, number in sorted(mischief.faults.items())},
            "reward_last_steps": sum(rewards) / len(rewards),
            "shared_memory_growth_mib": _shared_memory_mib() - memory,
        },
    }


def _train(
    words: list[str], rows: Path, draw: random.Random, mischief: Mischief, *, until: float, every_s: float, log: Path
) -> None:
    """One run to its end, by as many starts as it takes."""
    code = -1
    while code != 0:
        mischief.starts += 1
        with log.open("ab") as output:
            driver = subprocess.Popen(
                [sys.executable, "-m", "orchestration.cli", "train", *words], stdout=output, stderr=output
            )
        fatal = _disturb(driver, rows, draw, mischief, until=until, every_s=every_s)
        code = driver.wait(_START_S)
        mischief.exit_codes.append(code)
        if code != 0 and not fatal:
            raise RlvrError(f"the run ended with exit code {code}: {_tail(log)}")


def _disturb(
    driver: subprocess.Popen[bytes],
    rows: Path,
    draw: random.Random,
    mischief: Mischief,
    *,
    until: float,
    every_s: float,
) -> bool:
    """Does harm from the first step of this start until the run or the time is over. Returns whether it was of a kind
    that ends the run."""
    fatal, next_at = False, 0.0
    before = _num_lines(rows)
    while driver.poll() is None:
        time.sleep(_POLL_S)
        if fatal or not next_at <= time.monotonic() < until or (next_at == 0 and _num_lines(rows) <= before):
            continue
        next_at = time.monotonic() + every_s
        if victims := list(victims_below([driver.pid])):
            victim, number = chosen(victims, draw)
            fatal = strike(victim, number, mischief) and victim.kind in FATAL
    return fatal


def chosen(victims: Sequence[Victim], draw: random.Random) -> tuple[Victim, signal.Signals]:
    """Who is next, and what is sent to it: any kind is as likely as another, however many there are of it."""
    kind = draw.choice(sorted({victim.kind for victim in victims}))
    victim = draw.choice([victim for victim in victims if victim.kind == kind])
    return victim, draw.choice(SIGNALS.get(kind, (signal.SIGKILL, signal.SIGSTOP)))


def strike(victim: Victim, number: signal.Signals, mischief: Mischief) -> bool:
    """Send the signal, and book it. Returns whether there was somebody to receive it."""
    try:
        os.kill(victim.pid, number)
    except ProcessLookupError:
        return False
    mischief.faults[f"{victim.kind}, {number.name}"] += 1
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


def checked(config: RunConfig) -> float:
    """The mean reward of the last steps of a finished run.

    Raises RlvrError if it made other updates, or learned from other prompts, than planned.
    """
    from pyarrow import parquet

    folder = Path(str(config.run_dir))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if (made := [row["step"] for row in rows]) != list(range(1, config.max_steps + 1)):
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
    last = rows[-max(1, len(rows) // 10) :]
    return float(sum(row["reward_mean"] for row in last) / len(last))


def _num_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _shared_memory_mib() -> float:
    return float(psutil.disk_usage(str(SHARED_MEMORY)).used) / 2**20


def _tail(log: Path) -> str:
    return " ".join(log.read_text(errors="replace")[-2000:].split())
