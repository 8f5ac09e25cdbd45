"""What a step learned from, as a table for people: RUN/completions/step-000012.parquet."""

from __future__ import annotations

from typing import Any

from orchestration.run.ledger.records import StepRecord, encodable


def completions_table(record: StepRecord) -> Any:
    """The `pyarrow.Table` of a step, one row a completion; column types do not depend on the values.

    Rewards are columns `reward_NAME`; null is "could not be scored".
    """
    import pyarrow as pa

    groups, reward_names = record.groups_P, record.reward_names
    advantages = record.update.advantages or [[None] * len(group.members) for group in groups]
    rows = [
        {
            "step": record.step,
            "prompt_id": group.prompt_id,
            "prompt": encodable(record.prompt_texts[group.prompt_id]),
            "completion": encodable(member.completion.text),
            **{f"reward_{name}": reward for name, reward in zip(reward_names, member.rewards, strict=True)},
            "total": member.total,
            "advantage": advantage,
            "adapter_version": member.completion.adapter_version,
            "finish_reason": str(member.completion.finish_reason),
            "num_tokens": len(member.completion.token_ids),
        }
        for group, group_advantages in zip(groups, advantages, strict=True)
        for member, advantage in zip(group.members, group_advantages, strict=True)
    ]
    schema = pa.schema(
        [
            ("step", pa.int64()),
            ("prompt_id", pa.string()),
            ("prompt", pa.string()),
            ("completion", pa.string()),
            *((f"reward_{name}", pa.float64()) for name in reward_names),
            ("total", pa.float64()),
            ("advantage", pa.float64()),
            ("adapter_version", pa.int64()),
            ("finish_reason", pa.string()),
            ("num_tokens", pa.int64()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)
