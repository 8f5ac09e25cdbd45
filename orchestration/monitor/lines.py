"""An actor and a run, each in one line."""

from __future__ import annotations

from collections.abc import Mapping

from orchestration.run.metrics import Number


def actor_line(name: str, values: Mapping[str, float]) -> str:
    """`RolloutWorker 2 · v137 · 3,410 tok/s · 48 running, 0 waiting`, or a learner rank's, from its gauges.

    Args:
        name: Of the worker, as `rollout-2` or `learner-0`.
        values: Gauges without their prefix; before the first of them the line is the name alone.
    """
    role, _, index = name.rpartition("-")
    title = {"rollout": "RolloutWorker", "learner": "LearnerRank"}.get(role, role)
    parts = [f"{title} {index}"]
    if "adapter_version" in values:
        parts.append(f"v{values['adapter_version']:.0f}")
        parts.append(f"{values['rollout_tokens_per_s']:,.0f} tok/s")
        parts.append(f"{values['running_requests']:.0f} running, {values['waiting_requests']:.0f} waiting")
    elif "learner_step" in values:
        parts.append(f"step {values['learner_step']:.0f}")
        parts.append(f"{values['learner_tokens_per_s']:,.0f} tok/s")
    return " · ".join(parts)


def run_line(row: Mapping[str, Number], max_steps: int) -> str:
    """`step 12 of 16 · reward 0.81 · 3,410 tok/s`, from a step's row.

    Args:
        row: Of metrics.jsonl, with its `step`; what else is null or missing is left out.
        max_steps: Of the run.
    """
    parts = [f"step {row['step']} of {max_steps}"]
    if (reward := row.get("reward_mean")) is not None:
        parts.append(f"reward {reward:.2f}")
    if (speed := row.get("rollout_tokens_per_s")) is not None:
        parts.append(f"{speed:,.0f} tok/s")
    if alarms := row.get("alarms"):
        parts.append("1 alarm" if alarms == 1 else f"{alarms} alarms")
    return " · ".join(parts)
