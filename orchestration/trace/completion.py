"""`rlvr trace RUN_DIR ID`: where a completion came from, how it was scored, and which update it went into."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestration.errors import ConfigError
from orchestration.run.ledger.names import CONFIG_FILE
from orchestration.settings.config import RunConfig, load_config
from orchestration.trace.audit import chain_findings, decided, differences, find_decided
from orchestration.trace.folder import TracedRun
from reward_service.errors import AuditError

_ID = re.compile(r"(\d{1,9})/(\d{1,9})/(\d{1,9})")
_UPDATE = ("loss", "grad_norm", "learning_rate", "num_loss_tokens")


def parse_id(text: str) -> tuple[int, int, int]:
    """A `completion_id` in its parts.

    Args:
        text: STEP/GROUP/MEMBER, as 12/0/3.

    Returns:
        (step, group, member); the last two from 0.

    Raises:
        ConfigError: It is not of that form.
    """
    match = _ID.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{text!r} is not a completion's id: STEP/GROUP/MEMBER, as 12/0/3; the column completion_id of RUN_DIR/"
            f"completions has them, and so has the run's page"
        )
    return int(match[1]), int(match[2]), int(match[3])


def trace_completion(run_dir: Path, completion_id: str) -> dict[str, Any]:
    """All that the folder knows of a completion; what is not known is None.

    Raises:
        ConfigError: this is no run's folder, or it has no such completion.
        DataError: its table cannot be read.
    """
    run, (step, group, member) = TracedRun.open(run_dir), parse_id(completion_id)
    config = load_config(str(run_dir / CONFIG_FILE))
    row, members = _find(run, step, group, member)
    adapters = run.adapters()
    log = _of_the_log(run, row, config)
    return {
        "completion_id": row["completion_id"],
        "run": run.path.name,
        "prompt": row["prompt"],
        "completion": row["completion"],
        "turns": row.get("turns") or [],
        "failure": row.get("failure"),
        "reference": None if row.get("reference") is None else json.loads(row["reference"]),
        "category": row.get("category"),
        "finish_reason": row.get("finish_reason"),
        "num_tokens": row.get("num_tokens"),
        "sampler": {
            "version": row["adapter_version"],
            "adapter_sha256": adapters.of(row["adapter_version"]),
            "logprob_mean": _mean(row.get("sampling_logprobs")),
        },
        "rewards": _rewards(row, config, log),
        "total": row["total"],
        "control": config.reward.control,
        "audit": log,
        "group": _group(members),
        "advantage": row["advantage"],
        "update": {
            "step": step,
            **_figures(run, step),
            "share_of_absolute_advantage": _share(run.completions(step), row["advantage"]),
            "adapter_before": adapters.of(step - 1),
            "adapter_after": adapters.of(step),
        },
        "importance": _importance(row),
        "gradient": None,
    }


def _importance(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """exp(learner's - sampler's log-prob) of its tokens, before the update; None where it had no part in the loss, or
    the run is of before these were kept."""
    logs = row.get("importance_log_ratios") or []
    ratios = [None if math.isnan(log) else math.exp(log) for log in logs]
    known = [(ratio, token) for token, ratio in enumerate(ratios) if ratio is not None]
    if not known:
        return None
    (low, lowest), (high, highest) = min(known), max(known)
    mean = sum(ratio for ratio, _ in known) / len(known)
    extremes = {"min": low, "min_token": lowest, "max": high, "max_token": highest}
    return {"mean": mean, **extremes, "token_ids": row["token_ids"], "ratios": ratios}


def _find(run: TracedRun, step: int, group: int, member: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A completion's row, and those of its group."""
    steps = run.table_steps()
    if step not in steps:
        told = f"{steps[0]} to {steps[-1]}" if steps else "none"
        raise ConfigError(f"{str(run.path)!r} has no completions of step {step}; it has those of steps {told}")
    prefix = f"{step}/{group}/"
    members = [row for row in run.completions(step) if str(row.get("completion_id", "")).startswith(prefix)]
    for row in members:
        if row["completion_id"] == f"{prefix}{member}":
            return row, members
    raise ConfigError(
        f"{str(run.path)!r} has no completion {prefix}{member}: "
        + (f"group {group} of step {step} has {len(members)}" if members else f"step {step} has no group {group}")
    )


def _rewards(row: Mapping[str, Any], config: RunConfig, log: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Score, weight, and what the log has besides: version, reason, what was found."""
    logged = (log or {}).get("rewards") or {}
    return {
        spec.name: {
            "score": row.get(f"reward_{spec.name}"),
            "weight": spec.weight,
            "reason": row.get(f"reason_{spec.name}"),
            "version": logged.get(spec.name, {}).get("version"),
            "details": logged.get(spec.name, {}).get("details"),
        }
        for spec in config.rewards
    }


def _of_the_log(run: TracedRun, row: Mapping[str, Any], config: RunConfig) -> dict[str, Any] | None:
    """The log's record, what is wrong with its chain, and where it differs from the row; None without a log."""
    if run.audit_log is None or not row.get("item_id"):
        return None
    wrong, told = chain_findings(run.audit_log)
    try:
        found = find_decided(run.audit_log, run.run_ids, row["item_id"])
    except AuditError as error:
        found, wrong = None, [*wrong, str(error)]
    if found is None:
        return {"log": told, "findings": [*wrong, f"no decision of item {row['item_id']!r}"], "item_id": row["item_id"]}
    other = differences(row, decided(found), control=config.reward.control != "none")
    kept = ("seq", "time", "caller", "service_version", "prev_hash", "hash", "rewards")
    return {
        "log": told,
        "item_id": row["item_id"],
        **{name: found[name] for name in kept},
        "findings": [*wrong, *(f"the log has {one}" for one in other)],
    }


def _group(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    totals = [row["total"] for row in members]
    known = [total for total in totals if total is not None]
    return {
        "prompt_id": members[0]["prompt_id"],
        "totals": totals,
        "advantages": [row["advantage"] for row in members],
        "mean": _mean(known),
        "flat": len(set(known)) < 2,
    }


def _figures(run: TracedRun, step: int) -> dict[str, Any]:
    for _, row in run.metrics_lines():
        if row is not None and row.get("step") == step:
            return {name: row.get(name) for name in _UPDATE}
    return dict.fromkeys(_UPDATE)


def _share(rows: Sequence[Mapping[str, Any]], advantage: float | None) -> float | None:
    whole = sum(abs(row["advantage"]) for row in rows if row["advantage"] is not None)
    return abs(advantage) / whole if advantage is not None and whole else None


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
