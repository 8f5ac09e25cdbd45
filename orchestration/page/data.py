"""What a page shows of a run, read from its folder as it stands: finished, under way or broken off."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from orchestration.errors import ConfigError
from orchestration.run.ledger.names import COMPLETIONS_FOLDER, CONFIG_FILE, EVENTS_FILE, METRICS_FILE, SUMMARY_FILE

Row = Mapping[str, Any]

PROMPT_TAIL: Final = 600
"""Characters of a prompt that a completion shows; worked examples before them are folded away."""
_REWARD: Final = "reward_"
_NOT_SHOWN: Final = ("token_ids", "sampling_logprobs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run folder's content."""

    path: Path
    config: Mapping[str, Any]
    rows: Sequence[Row]
    """Of `metrics.jsonl`, by step."""
    summary: Mapping[str, Any]
    """Empty while the run is under way."""
    completions: Sequence[Row]
    """The latest of them, as the parquet files have them."""
    num_completions: int
    """How many there are in all."""
    events: Sequence[Row] = ()
    """Alarms and evaluations, in the order in which they came."""

    @property
    def alarms(self) -> list[Row]:
        """Each once, by step."""
        found = {(event.get("step"), event.get("name")): event for event in self.events if event.get("kind") == "alarm"}
        return sorted(found.values(), key=_step)

    @property
    def evaluations(self) -> list[Row]:
        """Each once, by step."""
        found = {event.get("step"): event for event in self.events if event.get("kind") == "evaluation"}
        return sorted(found.values(), key=_step)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def status(self) -> str:
        """`finished`, `stopped`, `failed`, or `under way`."""
        return str(self.summary.get("status", "under way"))

    @property
    def reward_names(self) -> list[str]:
        """The rewards that the run's rows speak of, in their order."""
        named = self.config.get("reward", {}).get("rewards") or []
        return [str(reward["name"]) for reward in named if isinstance(reward, dict) and "name" in reward]

    def series(self, name: str) -> list[tuple[float, float]]:
        """(step, figure) of every row that has the figure."""
        return [(row["step"], row[name]) for row in self.rows if _is_number(row.get(name))]

    def by_category(self, column: str) -> dict[str, list[tuple[float, float]]]:
        """(step, mean) of a column of the completions by category; empty where they have none."""
        found: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in self.completions:
            if row.get("category") and _is_number(row.get(column)):
                found[row["category"]][row["step"]].append(row[column])
        return {
            category: [(step, sum(values) / len(values)) for step, values in sorted(steps.items())]
            for category, steps in sorted(found.items())
        }


def read_run(path: Path, *, most_completions: int) -> Run:
    """A run folder's content; of the completions the latest.

    Raises:
        ConfigError: this is no run folder, or a file in it cannot be read.
    """
    if not (path / CONFIG_FILE).is_file():
        raise ConfigError(f"{str(path)!r} is not a run folder: it holds no {CONFIG_FILE}")
    try:
        config = yaml.safe_load((path / CONFIG_FILE).read_text())
        rows = list(_rows(path / METRICS_FILE))
        summary = json.loads((path / SUMMARY_FILE).read_bytes()) if (path / SUMMARY_FILE).is_file() else {}
        events = list(_rows(path / EVENTS_FILE))
        completions, number = _completions(path / COMPLETIONS_FOLDER, most_completions)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the run in {str(path)!r}: {' '.join(str(error).split())}") from error
    return Run(
        path=path,
        config=config,
        rows=rows,
        summary=summary,
        completions=completions,
        num_completions=number,
        events=events,
    )


def _rows(path: Path) -> Iterator[Row]:
    if path.is_file():
        for line in path.read_bytes().split(b"\n")[:-1]:  # a line without its end is still being written
            yield json.loads(line)


def _completions(folder: Path, most: int) -> tuple[list[Row], int]:
    from pyarrow import parquet

    files = sorted(folder.glob("step-*.parquet"))
    number = sum(parquet.read_metadata(file).num_rows for file in files)
    found: list[Row] = []
    for file in reversed(files):
        if len(found) >= most:
            break
        names = [name for name in parquet.read_schema(file).names if name not in _NOT_SHOWN]
        found = [*parquet.read_table(file, columns=names).to_pylist(), *found]
    return found[max(0, len(found) - most) :], number


def shown_completion(row: Row) -> dict[str, Any]:
    """What the browser of completions needs of one, under short names."""
    prompt = str(row.get("prompt") or "")
    shown = {
        "s": row["step"],
        "i": row.get("completion_id"),
        "p": row["prompt_id"],
        "q": prompt[-PROMPT_TAIL:],
        "f": max(0, len(prompt) - PROMPT_TAIL),
        "t": row["completion"],
        "r": {name.removeprefix(_REWARD): value for name, value in row.items() if name.startswith(_REWARD)},
        "w": row.get("total"),
        "a": row.get("advantage"),
        "v": row.get("adapter_version"),
        "e": row.get("finish_reason"),
        "n": row.get("num_tokens"),
    }
    return shown | ({"c": row["category"]} if row.get("category") else {})


def _step(event: Row) -> int:
    return int(event.get("step") or 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
