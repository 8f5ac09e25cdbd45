"""`rlvr trace --verify`: do log, completions, metrics, records and adapters belong together, byte for byte?

With a trail (audit=true) every file's digest is known; without one, what can be derived from a record is derived again.
Whoever may write to the folder can write all of it anew, trail included: only a head that is kept elsewhere shows that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from learner.checkpoint import find_checkpoint
from orchestration.errors import DataError, RlvrError
from orchestration.run.ledger.names import (
    ADAPTER_FOLDER,
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    TRAIL_FILE,
)
from orchestration.run.ledger.records import StepRecord, read_record, record_path, recorded_steps
from orchestration.run.ledger.tables import completions_table
from orchestration.run.ledger.trail import digests, file_digest, sealed_files
from orchestration.settings.config import RunConfig, load_config
from orchestration.trace.audit import chain_findings, differences, read_decisions
from orchestration.trace.folder import TracedRun
from reward_service.errors import AuditError
from rollout_server.types import ADAPTER_WEIGHTS

_OF_THE_CLOCK: Final = ("alarms", "publish_bytes", "publish_ms", "probe_difference")
"""Figures of a row that its record, written before the publish, has otherwise; so are those that end in `_s`."""


@dataclass(slots=True)
class Verified:
    """What was found."""

    findings: list[str] = field(default_factory=list)
    """What is wrong, each beginning with the file."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was looked at."""
    notes: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""

    @property
    def intact(self) -> bool:
        return not self.findings


def verify_run(run_dir: Path, *, expected_head: str | None = None) -> Verified:
    """Looks at every file of a run's folder.

    Args:
        expected_head: the trail's last hash, as the end of the run said it.

    Raises:
        ConfigError: this is no run's folder.
    """
    run, found = TracedRun.open(run_dir), Verified()
    config = _config(run, found)
    _look_at_trail(run, found, expected_head, config)
    records = dict(_records(run, found))
    _look_at_tables(run, found, records)
    _look_at_metrics(run, found, records)
    _look_at_adapters(run, found, records, config)
    _look_at_json(run, found)
    if config is not None:
        _look_at_audit(run, found, config)
    return found


def _look_at_trail(run: TracedRun, found: Verified, expected_head: str | None, config: RunConfig | None) -> None:
    if not run.trail:
        if expected_head is not None:
            found.findings.append(f"{TRAIL_FILE}: missing, and a head of it was expected")
        elif config is not None and config.audit:
            found.findings.append(f"{TRAIL_FILE}: missing, and {CONFIG_FILE} says audit=true")
        else:
            found.notes.append("the run kept no trail (audit=true): digests of its files are not known")
        return
    found.findings += [f"{TRAIL_FILE}: {line.wrong}" for line in run.trail if line.wrong]
    last = run.trail[-1]
    found.facts["trail"] = {"lines": len(run.trail), "head": last.hash, "ended": last.entry.get("kind") == "end"}
    if not (run.path / TRAIL_FILE).read_bytes().endswith(b"\n"):
        found.findings.append(f"{TRAIL_FILE}: its last line has no end")
    if expected_head is not None and expected_head not in [line.hash for line in run.trail]:
        found.findings.append(f"{TRAIL_FILE}: the head {expected_head} is not in it; it was written anew")
    if last.entry.get("kind") == "end":
        _compare(found, last.entry["files"], digests(run.path, sealed_files(run.path)))
        found.facts["files"] = len(last.entry["files"])
        return
    found.notes.append("the trail has no end: the run is under way or was killed, and only its steps' files are known")
    known: dict[str, str] = {}
    for line in run.trail:
        files = line.entry.get("files", {}) if line.entry.get("kind") == "step" else {}
        known |= {path: digest for path, digest in files.items() if not path.startswith(f"{ADAPTER_FOLDER}/")}
    there = {path: file_digest(run.path / path) for path in known if (run.path / path).is_file()}
    pruned = {path for path in known.keys() - there.keys() if path.startswith("records/")}
    _compare(found, {path: digest for path, digest in known.items() if path not in pruned}, there)


def _compare(found: Verified, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    for path in sorted(then.keys() | now.keys()):
        if path not in now:
            found.findings.append(f"{path}: missing")
        elif path not in then:
            found.findings.append(f"{path}: was put in; the trail does not know it")
        elif then[path] != now[path]:
            found.findings.append(f"{path}: changed; its SHA-256 is not the one in the trail")


def _config(run: TracedRun, found: Verified) -> RunConfig | None:
    try:
        return load_config(str(run.path / CONFIG_FILE))
    except (RlvrError, ValueError) as error:
        found.findings.append(f"{CONFIG_FILE}: cannot be read: {' '.join(str(error).split())}")
        return None


def _records(run: TracedRun, found: Verified) -> Iterator[tuple[int, StepRecord]]:
    steps = recorded_steps(run.path)
    found.facts["records"] = len(steps)
    for step in steps:
        try:
            yield step, read_record(run.path, step)
        except DataError as error:
            found.findings.append(f"{_relative(run, record_path(run.path, step))}: {error}")


def _look_at_tables(run: TracedRun, found: Verified, records: Mapping[int, StepRecord]) -> None:
    from pyarrow import ArrowException, parquet

    steps = run.table_steps()
    found.facts["tables"] = len(steps)
    found.findings += [f"{_relative(run, run.table_path(step))}: missing" for step in records.keys() - set(steps)]
    for step in steps:
        path = _relative(run, run.table_path(step))
        try:
            table = parquet.read_table(run.table_path(step))
            expected = completions_table(records[step]) if step in records else table
            names = [name for name in table.column_names if name in expected.column_names]  # an older one has fewer
            if len(names) != table.num_columns or not _same(table, expected.select(names)):
                found.findings.append(f"{path}: is not what follows from the record of step {step}")
        except (OSError, ArrowException, UnicodeDecodeError) as error:
            found.findings.append(f"{path}: cannot be read: {' '.join(str(error).split())}")


def _same(table: Any, expected: Any) -> bool:
    """Two tables alike; NaN is like NaN, which pyarrow does not say."""
    return bool(table.equals(expected)) or repr(table.to_pylist()) == repr(expected.to_pylist())


def _look_at_metrics(run: TracedRun, found: Verified, records: Mapping[int, StepRecord]) -> None:
    rows = {line.entry["step"]: line.entry.get("row") for line in run.trail if line.entry.get("kind") == "step"}
    steps = []
    for number, (line, row) in enumerate(run.metrics_lines(), 1):
        if row is None or not isinstance(row.get("step"), int):
            found.findings.append(f"{METRICS_FILE}: line {number} cannot be read")
            continue
        step = row["step"]
        steps.append(step)
        if rows.get(step) not in (None, hashlib.sha256(line).hexdigest()):
            found.findings.append(f"{METRICS_FILE}: the row of step {step} is not the one in the trail")
        if step in records and (other := _other_figures(row, records[step])):
            found.findings.append(f"{METRICS_FILE}: step {step} has another {other} than its record")
    found.facts["rows"] = len(steps)
    if steps != sorted(set(steps)):
        found.findings.append(f"{METRICS_FILE}: its steps are not in order, each once")
    if lost := sorted((records.keys() | rows.keys()) - set(steps)):
        found.findings.append(f"{METRICS_FILE}: the row of step {lost[0]} is missing")


def _other_figures(row: Mapping[str, Any], record: StepRecord) -> str:
    """Names of figures that a row has otherwise than the record that it follows from."""
    then = json.loads(json.dumps(record.row))
    same = {name: value for name, value in then.items() if name not in _OF_THE_CLOCK and not name.endswith("_s")}
    return ", ".join(sorted(name for name, value in same.items() if _differs(row.get(name), value)))


def _differs(now: Any, then: Any) -> bool:
    return bool(now != then and not (now is None and isinstance(then, float) and then - then != 0))  # NaN is null there


def _look_at_adapters(
    run: TracedRun, found: Verified, records: Mapping[int, StepRecord], config: RunConfig | None
) -> None:
    noted = {line.entry["step"]: line.entry.get("adapter") for line in run.trail if line.entry.get("kind") == "step"}
    for step, record in records.items():
        if noted.get(step, record.adapter) != record.adapter:
            found.findings.append(f"{TRAIL_FILE}: step {step} has another adapter than its record")
    weights = run.path / ADAPTER_FOLDER / ADAPTER_WEIGHTS
    last = max(records, default=0)
    tied = config is not None and bool(config.learner.lora.modules_to_save)  # then the folder has tensors twice
    if last and records[last].adapter and not tied:
        if not weights.is_file():
            found.findings.append(f"{_relative(run, weights)}: missing")
        elif file_digest(weights) != records[last].adapter:
            found.findings.append(f"{_relative(run, weights)}: is not the adapter of step {last}, by its record")
    for damage in find_checkpoint(run.path / CHECKPOINTS_FOLDER).damaged:
        found.findings.append(f"{CHECKPOINTS_FOLDER}: {damage}")


def _look_at_json(run: TracedRun, found: Verified) -> None:
    path = run.path / SUMMARY_FILE
    if path.is_file():
        try:
            found.facts["status"] = json.loads(path.read_bytes())["status"]
        except (ValueError, KeyError, TypeError):
            found.findings.append(f"{SUMMARY_FILE}: cannot be read")


def _look_at_audit(run: TracedRun, found: Verified, config: RunConfig) -> None:
    """The log's own chain, and of every completion that it was decided so."""
    if run.audit_log is None:
        kept = "its audit log is missing" if config.audit else "the run kept no audit log (audit=true)"
        (found.findings if config.audit else found.notes).append(f"audit.sqlite3: {kept}")
        return
    name = run.audit_log.name
    wrong, told = chain_findings(run.audit_log)
    found.findings += [f"{name}: {finding}" for finding in wrong]
    found.facts["audit"] = told
    try:
        decisions = read_decisions(run.audit_log)
    except AuditError as error:
        found.findings.append(f"{name}: {error}")
        return
    matched: set[str] = set()
    for step in run.table_steps():
        try:
            rows = run.completions(step)
        except DataError:
            continue  # said already
        for row in rows:
            identifier = row.get("item_id") or ""
            matched.add(identifier)
            if identifier not in decisions:
                found.findings.append(f"{name}: holds no decision of completion {row['completion_id']} ({identifier})")
            elif other := differences(row, decisions[identifier], control=config.reward.control != "none"):
                found.findings.append(f"{name}: of completion {row['completion_id']} it has {'; '.join(other)}")
    found.facts["completions"] = len(matched)
    found.facts["other_decisions"] = len(decisions.keys() - matched)


def _relative(run: TracedRun, path: Path) -> str:
    return path.relative_to(run.path).as_posix()
