"""`rlvr bench flow`: what staleness buys, and what it costs. The same run, from the beginning, with each bound.

Real runs by the command line: engines, learner, rewards and publishing are those of `rlvr train`. Without staleness
nothing overlaps: that run says how long generation and learning take alone. No step can be shorter than the longer.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from orchestration.bench.machine import machine_line, num_gpus
from orchestration.errors import RlvrError
from orchestration.machine import doctor
from orchestration.report.progress import counted
from orchestration.settings.config import load_config
from orchestration.storage.cache import Progress
from rollout_server.forking.leftovers import owned_prefix

BOUNDS: Final = (0, 1, 2, 4)
_OWN: Final = ("dashboard=false", "eval_at_ends=false", "save_minutes=0")
_CORE_EACH: Final = {"VLLM_CPU_OMP_THREADS_BIND": "0", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
"""vLLM's thread on one core; the learner has one thread, for which the others are left."""
_LIMIT_S: Final = 3600.0
"""Of one run."""

Rows = Sequence[Mapping[str, Any]]


def run(overrides: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Train with each staleness bound, and compare.

    Args:
        overrides: A recipe (`tiny`), if one is named first, and settings, as for `rlvr train`.

    Returns:
        `machine`, `settings` and `figures`: `generation_alone_s` and `learning_alone_s` of a step, means; and of each
        bound `step_s`, `overlap_efficiency` (the longer of the two alone over `step_s`), ages in versions, and mean
        reward and KL to the sampler over the last quarter of the steps.

    Raises:
        RlvrError: A setting or the machine does not allow it, or a run failed.
    """
    words = list(overrides)
    recipe = words.pop(0) if words and "=" not in words[0] else "tiny"
    if taken := [word for word in words if word.partition("=")[0] in ("max_staleness", "run_dir")]:
        raise RlvrError(f"{taken[0]} is this benchmark's own to set: leave it out")
    gpus = num_gpus()
    settings = [*_OWN, *([] if gpus else ["learner.num_threads=1"]), *words]
    config = load_config(recipe, [*settings, *_bound(max(BOUNDS))])
    if config.max_steps < 4:
        raise RlvrError(f"max_steps={config.max_steps} is too few to compare: take at least 4")
    doctor.require_machine(config)
    begin, found = counted(progress, len(BOUNDS)), {}
    with TemporaryDirectory(prefix=owned_prefix("bench")) as name:
        for bound in BOUNDS:
            begin(f"{config.max_steps} steps with max_staleness={bound}")
            found[bound] = _train([recipe, *settings, *_bound(bound)], Path(name, str(bound)), core_each=not gpus)
    return {
        "machine": machine_line(),
        "settings": {"recipe": recipe, "overrides": words, "steps": config.max_steps},
        "figures": figures(found),
    }


def figures(rows_of: Mapping[int, Rows]) -> dict[str, float]:
    """Of each bound's rows of `metrics.jsonl`, that of 0 among them. The first steps, in which engines warm up and
    nothing is ready yet, do not count, nor does the last, beside which nothing is generated."""
    alone = {phase: _mean(rows_of[0], f"{phase}_s") for phase in ("generation", "learning", "publishing")}
    found = {f"{phase}_alone_s": seconds for phase, seconds in alone.items()}
    for bound, rows in rows_of.items():
        step_s, last = _mean(rows, "step_s"), rows[-max(1, len(rows) // 4) :]
        found |= {
            f"overlap_efficiency_{bound}": max(alone["generation"], alone["learning"]) / step_s,
            f"step_s_{bound}": step_s,
            f"age_mean_{bound}": statistics.fmean(row["policy_age_mean"] for row in _counted(rows)),
            f"age_max_{bound}": max(row["policy_age_max"] for row in rows),
            f"reward_{bound}": statistics.fmean(row["reward_mean"] for row in last),
        }
        divergences = [row["kl_to_sampler"] for row in last if row.get("kl_to_sampler") is not None]
        if divergences:
            found[f"kl_to_sampler_{bound}"] = statistics.fmean(divergences)
    return found


def _counted(rows: Rows) -> Rows:
    return rows[len(rows) // 4 : -1]


def _mean(rows: Rows, name: str) -> float:
    """Not the median: where batches become whole two at a time, every other step is short."""
    return statistics.fmean(row[name] for row in _counted(rows))


def _bound(max_staleness: int) -> tuple[str, str]:
    return f"max_staleness={max_staleness}", f"rollout.max_adapter_versions={max(BOUNDS) + 2}"


def _train(words: Sequence[str], folder: Path, *, core_each: bool) -> Rows:
    """One run to its end. Returns its metrics. Raises RlvrError with the last words of one that fails."""
    command = [sys.executable, "-m", "orchestration.cli", "train", *words, f"run_dir={folder}"]
    environment = {**os.environ, **(_CORE_EACH if core_each else {})}
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise RlvrError(f"a run of {' '.join(words)} took more than {_LIMIT_S:g} s: take fewer max_steps") from None
    if done.returncode:
        told = " ".join(done.stdout.decode(errors="replace")[-2000:].split())
        raise RlvrError(f"a run of {' '.join(words)} ended with exit status {done.returncode}: {told}")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
