"""What a page shows of a run, read from its folder as it stands: finished, under way or broken off."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml

from orchestration.errors import ConfigError
from orchestration.page.tokens import MOST_TOKENS, cut, pieces_of
from orchestration.run.ledger.names import (
    AUDIT_FILE,
    COMPLETIONS_FOLDER,
    CONFIG_FILE,
    EVENTS_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    config_of,
)
from orchestration.run.ledger.tables import RATIOS
from orchestration.settings.config import load_config

Row = Mapping[str, Any]

PROMPT_TAIL: Final = 600
"""Characters of a prompt that a completion shows; worked examples before them are folded away."""
_REWARD: Final = "reward_"
_REASON: Final = "reason_"
_OF_A_TURN: Final = ("start", "stop", "text", "observation", "reward", "finish_reason", "adapter_version")
_NOT_SHOWN: Final = ("reference",)
_OF_AN_EVENT: Final[Mapping[str, Mapping[str, type]]] = {
    "alarm": {"step": int, "name": str, "sentence": str},
    "evaluation": {"step": int, "accuracies": dict},
}


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

    def by(self, kind: str, column: str) -> dict[str, list[tuple[float, float]]]:
        """(step, mean) of a column of the completions by `category` or `difficulty`; empty where there is none."""
        found: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in self.completions:
            if row.get(kind) and _is_number(row.get(column)):
                found[row[kind]][row["step"]].append(row[column])
        return {
            name: [(step, sum(values) / len(values)) for step, values in sorted(steps.items())]
            for name, steps in sorted(found.items(), key=lambda item: _in_order(item[0]))
        }


def read_run(path: Path, *, most_completions: int) -> Run:
    """A run folder's content; of the completions the latest.

    Args:
        path: the run's folder, finished, under way or broken off.
        most_completions: how many are read; 0: their number alone.

    Raises:
        ConfigError: this is no run folder, or a file in it cannot be read; it is named.
    """
    config_file = config_of(path)
    with _reading(config_file):
        config = _mapping(yaml.safe_load(config_file.read_text()))
    rows = list(_rows(path / METRICS_FILE, {"step": int}))
    with _reading(path / SUMMARY_FILE):
        summary = _mapping(json.loads((path / SUMMARY_FILE).read_bytes())) if (path / SUMMARY_FILE).is_file() else {}
    events = [event for event in _rows(path / EVENTS_FILE, {"kind": str}) if _is_whole(event)]
    completions, number = _completions(path / COMPLETIONS_FOLDER, most_completions)
    _judge(config_file, completions)
    _explain(path, completions)
    _cut(path, completions)
    return Run(
        path=path,
        config=config,
        rows=rows,
        summary=summary,
        completions=completions,
        num_completions=number,
        events=events,
    )


@contextmanager
def _reading(path: Path, line: int | None = None) -> Iterator[None]:
    """What is wrong with a file becomes a sentence that names it."""
    try:
        yield
    except (OSError, ValueError, yaml.YAMLError) as error:
        place = f"line {line} of {path}" if line else str(path)
        remedy = "" if path.name == CONFIG_FILE else "; without that file the rest of the run is shown"
        raise ConfigError(f"cannot read {place}: {' '.join(str(error).split())}{remedy}") from error


def _mapping(value: Any, needed: Mapping[str, type] = MappingProxyType({})) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"a mapping is wanted there, not {type(value).__name__}")
    for name, kind in needed.items():
        if not isinstance(value.get(name), kind):
            raise ValueError(f"{name!r} is {value.get(name)!r}, and {kind.__name__} is wanted")
    return value


def _rows(path: Path, needed: Mapping[str, type]) -> Iterator[Row]:
    with _reading(path):
        lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []  # one without its end is being written
    for number, line in enumerate(lines, 1):
        with _reading(path, number):
            yield _mapping(json.loads(line), needed)


def _is_whole(event: Row) -> bool:
    """Of a kind that a page shows, and with what it shows of it; those of other versions of rlvr may be more."""
    needed = _OF_AN_EVENT.get(event["kind"])
    return needed is not None and all(isinstance(event.get(name), kind) for name, kind in needed.items())


def _completions(folder: Path, most: int) -> tuple[list[dict[str, Any]], int]:
    from pyarrow import parquet

    number, found = 0, list[dict[str, Any]]()
    for file in sorted(folder.glob("step-*.parquet"), reverse=True):
        with _reading(file):
            number += parquet.read_metadata(file).num_rows
            if len(found) < most:
                names = [name for name in parquet.read_schema(file).names if name not in _NOT_SHOWN]
                found = [*parquet.read_table(file, columns=names).to_pylist(), *found]
    for row in found:
        row["difficulty"] = _difficulty(row.pop("metadata", None))
    return found[max(0, len(found) - most) :], number


def _in_order(name: str) -> tuple[float, str]:
    """Numbers by their size, before words."""
    return (float(name) if name.replace(".", "", 1).isdecimal() else math.inf), name


def _difficulty(metadata: str | None) -> str:
    """What the problem's metadata, as JSON, says that it is; empty where it says nothing."""
    found = json.loads(metadata).get("difficulty") if metadata and '"difficulty"' in metadata else None
    return str(found) if isinstance(found, (int, float, str)) else ""


def _judge(config_file: Path, completions: Sequence[dict[str, Any]]) -> None:
    """Whether a completion is right, by the reward that the metrics' accuracy goes by, goes into `right`; None: not
    known, as with settings of another version, or of a task whose module is elsewhere."""
    if not completions:
        return
    try:
        config = load_config(str(config_file))
    except ConfigError:
        return
    strict = {part: judge.name for part in config.parts() if (judge := config.judges_of(part).get("strict"))}
    for row in completions:
        name = strict.get(row.get("category") or "", strict.get(""))
        score = row.get(f"{_REWARD}{name}")
        row["right"] = None if score is None else score >= 1


def _explain(path: Path, completions: Sequence[dict[str, Any]]) -> None:
    """What the audit log says of each score goes into `why`, by reward."""
    log = path / AUDIT_FILE
    if not completions or not log.is_file():
        return
    from orchestration.trace.audit import read_decisions
    from reward_service.errors import AuditError

    try:
        decisions = read_decisions(log)
    except AuditError:
        return  # `rlvr trace --verify` says what is wrong with it
    for row in completions:
        if (decided := decisions.get(row.get("item_id") or "")) is not None:
            told = {name: said.get("details") for name, said in decided.rewards.items()}
            row["why"] = {name: json.dumps(details, ensure_ascii=False) for name, details in told.items() if details}


def _cut(path: Path, completions: Sequence[dict[str, Any]]) -> None:
    """The tokens' lengths, probabilities and ratios go into `cut`, in place of the tokens."""
    pieces = pieces_of(path) if completions else None
    if sum(row.get("num_tokens") or 0 for row in completions) > MOST_TOKENS:
        pieces = None
    for row in completions:
        token_ids, logprobs = row.pop("token_ids", None), row.pop("sampling_logprobs", None)
        ratios = row.pop(RATIOS, None)
        if pieces is None or token_ids is None or logprobs is None:
            continue
        for turn in row.get("turns") or []:
            own = slice(turn["start"], turn["stop"])
            turn["cut"] = cut(turn["text"], token_ids[own], logprobs[own], ratios and ratios[own], pieces)
        if not row.get("turns"):
            row["cut"] = cut(row["completion"], token_ids, logprobs, ratios, pieces)


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
        "h": row.get("right"),
    }
    turns = [
        [*(turn[name] for name in _OF_A_TURN), turn.get("total"), bool(turn.get("rewritten")), turn.get("cut") or {}]
        for turn in row.get("turns") or []
    ]
    reasons = {name.removeprefix(_REASON): value for name, value in row.items() if name.startswith(_REASON) and value}
    more = {
        "g": turns,
        "d": row.get("failure"),
        "c": row.get("category"),
        "x": row.get("why"),
        "z": reasons,
        **(row.get("cut") or {}),
    }
    return shown | {name: value for name, value in more.items() if value}


def _step(event: Row) -> int:
    return int(event.get("step") or 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
