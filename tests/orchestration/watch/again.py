"""Runs that were made, watched again: `python -m tests.orchestration.watch.again RUN_DIR …` prints the alarms of each.

From their tables and rows, step by step, as the run itself did. Held-out answers are not kept, so the two alarms that
look at those are not here.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import parquet

from orchestration.run.alarms import MOST_GROUPS
from orchestration.settings.config import load_config
from orchestration.watch.facts import Alarm, Sample, StepFacts
from orchestration.watch.watch import Watch


def steps_of(run_dir: Path) -> Iterator[StepFacts]:
    """What the watch was told of each step."""
    config = load_config(str(run_dir / "config.yaml"))
    strict, names = config.judges.get("strict"), [reward.name for reward in config.rewards]
    correctness = strict.name if strict is not None and strict.name in names else None
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        table = parquet.read_table(run_dir / "completions" / f"step-{row['step']:06d}.parquet").to_pylist()
        samples = tuple(_sample(one, names) for one in table if int(one["completion_id"].split("/")[1]) < MOST_GROUPS)
        yield StepFacts(step=row["step"], samples=samples, correctness=correctness, figures=row)


def _sample(row: dict[str, Any], names: list[str]) -> Sample:
    return Sample(
        completion_id=row["completion_id"],
        group=row["prompt_id"],
        text=row["completion"],
        rewards={name: row[f"reward_{name}"] for name in names},
        total=row["total"],
        num_tokens=row["num_tokens"],
        truncated=row["finish_reason"] in ("length", "turns", "time"),
        category=row["category"],
        prompt=row["prompt"],
    )


def alarms_of(run_dir: Path) -> list[Alarm]:
    watch = Watch(flat_steps=load_config(str(run_dir / "config.yaml")).flat_steps_alarm)
    return [alarm for facts in steps_of(run_dir) for alarm in watch.step(facts)]


if __name__ == "__main__":
    for run_dir in map(Path, sys.argv[1:]):
        alarms = alarms_of(run_dir)
        print(f"{run_dir}: {len(list(steps_of(run_dir)))} steps, alarms {dict(Counter(one.name for one in alarms))}")
        for alarm in alarms[:3]:
            print(f"  step {alarm.step}: {alarm.line()}")
