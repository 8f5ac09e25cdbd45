"""What a step learned from, as a table for people: RUN/completions/step-000012.parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
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

    groups, numbers = record.groups_P, zip(_NUMBERS, (pa.int32(), pa.float32()), strict=True)
    columns = [(name, pa.array(values, type=kind)) for name, kind, values in _columns(record)]
    completions = [member.completion for group in groups for member in group.members]
    columns += [
        (name, _lists(kind, [getattr(completion, name) for completion in completions])) for name, kind in numbers
    ]
    ratios = record.update.log_ratios or [[None] * len(group.members) for group in groups]
    columns.append((RATIOS, pa.array(map(_nats, chain(*ratios)), type=pa.list_(pa.float32()))))
    return pa.table(dict(columns))


def _columns(record: StepRecord) -> Iterator[tuple[str, Any, list[Any]]]:
    """Name, type and values of each column that is not of numbers of tokens."""
    import pyarrow as pa

    groups, text = record.groups_P, pa.string()
    sizes = [len(group.members) for group in groups]
    members = [member for group in groups for member in group.members]
    completions = [member.completion for member in members]
    given = [_as_json(record.references.get(group.prompt_id)) for group in groups]

    def of_groups(values: Iterable[Any]) -> list[Any]:
        """A group's value for each of its members."""
        return [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]

    names = (completion_id(record.step, index, number) for index, size in enumerate(sizes) for number in range(size))
    yield "step", pa.int64(), [record.step] * len(members)
    yield "completion_id", text, list(names)
    yield "category", text, of_groups(group.category for group in groups)
    yield "prompt_id", text, of_groups(group.prompt_id for group in groups)
    yield "prompt", text, of_groups(encodable(record.prompt_texts[group.prompt_id]) for group in groups)
    yield "completion", text, [encodable(completion.text) for completion in completions]
    yield "reference", text, of_groups(reference for reference, _ in given)
    yield "metadata", text, of_groups(metadata for _, metadata in given)
    for place, name in enumerate(record.reward_names):
        yield f"reward_{name}", pa.float64(), [member.rewards[place] for member in members]
    for place, name in enumerate(record.reward_names):
        yield f"reason_{name}", text, [member.reasons[place] if member.reasons else None for member in members]
    yield "total", pa.float64(), [member.total for member in members]
    yield "advantage", pa.float64(), [*chain(*(record.update.advantages or [[None] * size for size in sizes]))]
    yield "item_id", text, [member.item_id or None for member in members]
    yield "adapter_version", pa.int64(), [completion.adapter_version for completion in completions]
    yield "finish_reason", text, [str(completion.finish_reason) for completion in completions]
    yield "num_tokens", pa.int64(), [len(completion.token_ids) for completion in completions]
    turn = pa.struct([(name, getattr(pa, kind)()) for name, kind in (*_TURN, *_BESIDE)])
    yield "turns", pa.list_(turn), list(map(_turns, members))
    yield "failure", text, [completion.failure for completion in completions]


def _nats(ratios: LogRatios | None) -> Any:
    import numpy as np

    if ratios is None:
        return None
    units = np.asarray(ratios)
    return np.where(units == UNKNOWN, np.nan, units / UNITS_PER_NAT).astype(np.float32)


def _turns(member: ScoredCompletion) -> list[dict[str, Any]]:
    completion = member.completion
    if not completion.turns:
        return []
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


def _as_json(given: str | None) -> tuple[str | None, str | None]:
    """`reference` and `metadata` of what a record keeps of a prompt, as JSON each; None: it kept nothing."""
    if given is None:
        return None, None
    whole = json.loads(given)
    return json.dumps(whole["reference"]), json.dumps(whole["metadata"])
