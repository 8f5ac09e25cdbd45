"""What each step was made of, a file a step: enough to learn it again, and to write again all that is told of it.

    records/step-000012.record      32 bytes of SHA-256, then a `StepRecord` as MessagePack, compressed

Tokens and log-probabilities are in it as bytes, 4 a number; older records, which have lists of numbers, are read too.

A record is written when its update is done, beside its place, and renamed: a step is recorded whole or not at all. With
the checkpoint before it (or the learner as it begins) it gives the learner after it, so checkpoints may be rare.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from learner.types import ScoredGroup, UpdateMetrics
from orchestration.errors import DataError
from orchestration.run.ledger.names import RECORDS_FOLDER
from orchestration.storage.atomic import atomic_write
from orchestration.types import CurriculumState, Problem
from rollout_server.arrays import Packed

Value = TypeVar("Value")


_NAME = re.compile(r"step-(\d{6,})\.record")
_CODEC = "zstd"
_DIGEST = hashlib.sha256


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """The loop's own state after a step."""

    step: int
    """Updates made."""
    cursor: int
    """Problems drawn from the training data."""
    pending: tuple[str, ...]
    """Ids of problems that were drawn but not learned from; they come first when the run goes on."""
    before: dict[str, tuple[float | None, ...]] | None
    """Held-out scores before the first step, so that a resumed run compares with them."""
    tokens: dict[str, int]
    """Counts of tokens so far, by kind."""
    seconds: dict[str, float]
    """Wall time so far, by phase."""
    problems: str = ""
    """Digest of the training problems."""
    weights: str = ""
    """Of the base model: their fingerprint."""
    curriculum: CurriculumState | None = None
    """Where their order stands; None: in a record of before there were curricula."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One step, as it was."""

    groups_P: tuple[ScoredGroup, ...]
    prompt_texts: dict[str, str]
    """By prompt id."""
    seeds: tuple[int | None, ...]
    """By which each group was drawn; None: not known."""
    reward_names: tuple[str, ...]
    update: UpdateMetrics
    """Without figures where the learner made the step and could not tell them any more."""
    row: dict[str, float | int | None]
    """Of `metrics.jsonl`, but for what is known only after publishing."""
    references: dict[str, str] = field(default_factory=dict)
    """By prompt id: JSON of the `reference` and `metadata` that the rewards were given."""
    adapter: str
    """SHA-256 of the adapter after the step, hexadecimal; empty where it is not known."""
    state: RunState

    @property
    def step(self) -> int:
        return self.state.step


def record_path(run_dir: Path, step: int) -> Path:
    """Where a step's record lies."""
    return run_dir / RECORDS_FOLDER / f"step-{step:06d}.record"


def write_record(run_dir: Path, record: StepRecord) -> Path:
    """Write a step's record; an earlier one of the same step is replaced.

    Returns:
        Where it lies.

    Raises:
        OSError: It could not be written, and nothing has changed.
    """
    path = record_path(run_dir, record.step)
    path.parent.mkdir(exist_ok=True)
    content = packed(record)
    atomic_write(path, _DIGEST(content).digest() + content)
    return path


def read_record(run_dir: Path, step: int) -> StepRecord:
    """A step's record, its checksum compared.

    Raises:
        DataError: There is none, it is damaged, or it is another step's.
    """
    path = record_path(run_dir, step)
    try:
        content = path.read_bytes()
        digest, rest = content[: _DIGEST().digest_size], content[_DIGEST().digest_size :]
        if _DIGEST(rest).digest() != digest:
            raise DataError(f"{path} is damaged, its checksum is another")
        record = unpacked(rest, StepRecord)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if record.step != step:
        raise DataError(f"{path} is the record of step {record.step}")
    return record


def recorded_steps(run_dir: Path) -> list[int]:
    """Steps that have a record, in order; not whether it is whole."""
    folder = run_dir / RECORDS_FOLDER
    matches = [_NAME.fullmatch(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in matches if match is not None)


def prune_records(run_dir: Path, *, keep_from: int) -> None:
    """Remove the records of steps before `keep_from`."""
    for step in recorded_steps(run_dir):
        if step < keep_from:
            record_path(run_dir, step).unlink(missing_ok=True)


def packed(value: object) -> bytes:
    """A dataclass, or a list of them, as compressed MessagePack; text without a UTF-8 form is replaced."""
    from pyarrow import BufferOutputStream, CompressedOutputStream

    sink = BufferOutputStream()
    with CompressedOutputStream(sink, _CODEC) as stream:
        stream.write(msgspec.msgpack.encode(value, enc_hook=_as_bytes))
    content: bytes = sink.getvalue().to_pybytes()
    return content


def unpacked(content: bytes, kind: type[Value]) -> Value:
    """The reverse of `packed`.

    Args:
        content: Compressed MessagePack.
        kind: What it is; a field that an earlier version had not written has its default.

    Raises:
        OSError: It is not compressed so.
        msgspec.MsgspecError: It is something else.
    """
    from pyarrow import BufferReader, CompressedInputStream

    with CompressedInputStream(BufferReader(content), _CODEC) as stream:
        value: Value = msgspec.msgpack.decode(stream.read(), type=kind, dec_hook=_packed_again)
    return value


def _as_bytes(value: object) -> bytes:
    if isinstance(value, Packed):
        return value.tobytes()
    raise NotImplementedError(f"{type(value).__name__} has no form in a record")


def _packed_again(kind: type[Packed[Any]], content: bytes | list[Any]) -> Packed[Any]:
    return kind.of_bytes(content) if isinstance(content, bytes) else kind(content)


def storable(groups: Sequence[ScoredGroup]) -> tuple[ScoredGroup, ...]:
    """The same groups, with lone surrogates replaced in their texts, which have no form in a file."""
    return tuple(map(_storable, groups))


def _storable(group: ScoredGroup) -> ScoredGroup:
    texts = [encodable(member.completion.text) for member in group.members]
    if all(text is member.completion.text for text, member in zip(texts, group.members, strict=True)):
        return group
    pairs = zip(texts, group.members, strict=True)
    members = [replace(member, completion=replace(member.completion, text=text)) for text, member in pairs]
    return replace(group, members=tuple(members))


def encodable(text: str) -> str:
    """Lone surrogates have no UTF-8 form; everything else passes unchanged."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text


def given_to_rewards(problem: Problem) -> str:
    """JSON of what the rewards are given of a problem besides prompt and completion."""
    return json.dumps({"reference": problem.reference, "metadata": problem.metadata})
