"""What a step learned from, as a table for people: RUN/completions/step-000012.parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate, chain, zip_longest
from typing import Any

from learner.types import UNITS_PER_NAT, UNKNOWN, LogRatios, ScoredCompletion
from orchestration.run.ledger.records import StepRecord, encodable
from rollout_server.arrays import Packed

_NUMBERS = ("token_ids", "sampling_logprobs")
RATIOS = "importance_log_ratios"
_TURN = (
    ("start", "int32"),
    ("stop", "int32"),
    ("text", "string"),
    ("finish_reason", "string"),
    ("adapter_version", "int64"),
    ("reward", "float64"),
    ("observation", "string"),
)
"""What the table says of an episode's turn; its sampled tokens are `token_ids[start:stop]`. Beside it `total`, what it
is answerable for where turns are judged each, and `rewritten`: the history before it was, and it is a fork's first."""


_BESIDE = (("total", "float64"), ("rewritten", "bool_"))


def completion_id(step: int, group: int, member: int) -> str:
    """By which a completion is called: its step, the group in the step's batch, the member of the group, from 0."""
    return f"{step}/{group}/{member}"


def completions_table(record: StepRecord) -> Any:
    """The `pyarrow.Table` of a step, one row a completion; column types do not depend on the values.

    Rewards are columns `reward_NAME`; null is "could not be scored", and `reason_NAME` says why. `reference` and
    `metadata` are the JSON that they were given, `item_id` is what the reward service's audit log calls the completion.

    Numbers go along with `token_ids`: `sampling_logprobs`, and `importance_log_ratios`, learner's log-prob before the
    update - sampler's, nats, in thousandths; NaN of a token that has none, null of a completion that had no part in the
    loss.
    """
    import pyarrow as pa

    groups, reward_names = record.groups_P, record.reward_names
    references = {prompt: _as_json(given) for prompt, given in record.references.items()}
    advantages = record.update.advantages or [[None] * len(group.members) for group in groups]
    rows = [
        {
            "step": record.step,
            "completion_id": completion_id(record.step, index, number),
            "category": group.category,
            "prompt_id": group.prompt_id,
            "prompt": encodable(record.prompt_texts[group.prompt_id]),
            "completion": encodable(member.completion.text),
            "reference": references.get(group.prompt_id, (None, None))[0],
            "metadata": references.get(group.prompt_id, (None, None))[1],
            **{f"reward_{name}": reward for name, reward in zip(reward_names, member.rewards, strict=True)},
            **{f"reason_{name}": reason for name, reason in zip(reward_names, member.reasons, strict=False)},
            "total": member.total,
            "advantage": advantage,
            "item_id": member.item_id or None,
            "adapter_version": member.completion.adapter_version,
            "finish_reason": str(member.completion.finish_reason),
            "num_tokens": len(member.completion.token_ids),
            "turns": _turns(member),
            "failure": member.completion.failure,
        }
        for index, (group, group_advantages) in enumerate(zip(groups, advantages, strict=True))
        for number, (member, advantage) in enumerate(zip(group.members, group_advantages, strict=True))
    ]
    schema = pa.schema(
        [
            ("step", pa.int64()),
            ("completion_id", pa.string()),
            ("category", pa.string()),
            ("prompt_id", pa.string()),
            ("prompt", pa.string()),
            ("completion", pa.string()),
            ("reference", pa.string()),
            ("metadata", pa.string()),
            *((f"reward_{name}", pa.float64()) for name in reward_names),
            *((f"reason_{name}", pa.string()) for name in reward_names),
            ("total", pa.float64()),
            ("advantage", pa.float64()),
            ("item_id", pa.string()),
            ("adapter_version", pa.int64()),
            ("finish_reason", pa.string()),
            ("num_tokens", pa.int64()),
            ("turns", pa.list_(pa.struct([(name, getattr(pa, kind)()) for name, kind in (*_TURN, *_BESIDE)]))),
            ("failure", pa.string()),
        ]
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    completions = [member.completion for group in groups for member in group.members]
    for name, kind in zip(_NUMBERS, (pa.int32(), pa.float32()), strict=True):
        column = _lists(kind, [getattr(completion, name) for completion in completions])
        table = table.append_column(pa.field(name, pa.list_(kind)), column)
    ratios = record.update.log_ratios or [[None] * len(group.members) for group in groups]
    return table.append_column(RATIOS, pa.array(map(_nats, chain(*ratios)), type=pa.list_(pa.float32())))


def _nats(ratios: LogRatios | None) -> Any:
    import numpy as np

    if ratios is None:
        return None
    units = np.asarray(ratios)
    return np.where(units == UNKNOWN, np.nan, units / UNITS_PER_NAT).astype(np.float32)


def _turns(member: ScoredCompletion) -> list[dict[str, Any]]:
    completion = member.completion
    forked = {fork.start for fork in completion.forks}
    return [
        {name: getattr(turn, name) for name, _ in _TURN}
        | {"finish_reason": str(turn.finish_reason), "total": total, "rewritten": turn.start in forked}
        for turn, total in zip_longest(completion.turns, member.turn_totals)
    ]


def table_bytes(record: StepRecord) -> bytes:
    """The table as a parquet file. Tokens and log-probabilities stay without a dictionary, which takes most of the time
    that the file takes and makes it larger."""
    from pyarrow import BufferOutputStream, parquet

    table, sink = completions_table(record), BufferOutputStream()
    with_dictionary = [name for name in table.column_names if name not in _NUMBERS] + [f"{RATIOS}.list.element"]
    parquet.write_table(table, sink, compression="zstd", use_dictionary=with_dictionary)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _lists(kind: Any, rows: Sequence[Packed[Any]]) -> Any:
    """A column of lists of numbers, whose bytes are taken as they are."""
    import pyarrow as pa

    offsets = pa.array([0, *accumulate(map(len, rows))], type=pa.int32())
    content = pa.py_buffer(b"".join(row.tobytes() for row in rows))
    numbers = pa.Array.from_buffers(kind, offsets[-1].as_py(), [None, content])
    return pa.ListArray.from_arrays(offsets, numbers)


def _as_json(given: str) -> tuple[str, str]:
    """`reference` and `metadata` of what a record keeps of a prompt, as JSON each."""
    whole = json.loads(given)
    return json.dumps(whole["reference"]), json.dumps(whole["metadata"])
