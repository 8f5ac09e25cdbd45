"""One audit record: its canonical bytes lose nothing, and its hash is what anybody can work out from the docstring."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_service.audit.decisions import decisions, describe
from reward_service.audit.records import (
    FIELDS,
    GENESIS,
    Head,
    Row,
    Values,
    chain,
    encode_fields,
    read_key,
    record_hash,
)
from reward_service.audit.wire import HEADER, FrameReader
from reward_service.errors import AuditError
from tests.reward_service.audit.audit_cases import KEY, RESULT, batch, batch_of, recorded


def parse_canonical(data: bytes) -> list[bytes | None]:
    """A reader written from the docstring of `records` alone."""
    tag, data = data[:13], data[13:]
    assert tag == b"rlvr-audit-2\n"
    values: list[bytes | None] = []
    while data:
        if data.startswith(b"-,"):
            values.append(None)
            data = data[2:]
            continue
        length, _, data = data.partition(b":")
        assert data[int(length) : int(length) + 1] == b","
        values.append(data[: int(length)])
        data = data[int(length) + 1 :]
    return values


texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.none() | texts | st.integers(0, 2**63 - 1) | st.binary()


@given(st.lists(values))
def test_canonical_bytes_lose_nothing(fields: list[str | int | bytes | None]) -> None:
    parsed = parse_canonical(b"rlvr-audit-2\n" + encode_fields(fields))
    assert len(parsed) == len(fields)
    for field, data in zip(fields, parsed, strict=True):
        assert data == (str(field).encode() if isinstance(field, str | int) else field)


def test_a_known_record_has_a_known_hash() -> None:
    """The hash is put together here by hand: a third party has to get the same."""
    (row,), head = chain(recorded(batch(0), keep_text=False), Head(0, GENESIS), None)
    fields = [
        b"1", GENESIS.encode(), b"1700000000000000", b"alice", b"run", b"3",
        f'{{"gsm8k_format":{{"weight":1.0,"version":"{"a" * 64}"}},'
        f'"gsm8k_correctness":{{"weight":1.0,"version":"{"b" * 64}"}}}}'.encode(),
        b"1.0", b"2", b"\x92\xa30/0\xa30/1", b"\x92\xa2g0\xa2g0",
        2 * hashlib.sha256(b"What is 70 + 2?").digest(), 2 * hashlib.sha256(b"72").digest(),
        b"\x92" + 2 * (b"\xc4" + bytes([len(RESULT)]) + RESULT),
    ]  # fmt: skip
    canonical = b"rlvr-audit-2\n" + b"".join(b"%d:%b," % (len(field), field) for field in fields) + b"-,-,"
    assert head == (1, hashlib.sha256(canonical).hexdigest())
    record = dict(zip(FIELDS, row[:-1], strict=True))
    assert row[-1] == head.hash == record_hash(record)
    (keyed,), _ = chain(recorded(batch(0), keep_text=False), Head(0, GENESIS), KEY)
    assert keyed[-1] == hmac.new(KEY, canonical, "sha256").hexdigest() == record_hash(record, KEY)


@pytest.mark.parametrize(
    ("result", "total"),
    [
        (b'{"total":null,"rewards":{}}', None),
        (b'{"id":"x","total":-0.5,"rewards":{}}', -0.5),
        (b'{"total":2,"rewards":{}}', 2.0),
        (b"{", None),
        (b"\xff\n", None),
        (b'{"total":1e999,"rewards":{}}', None),
    ],
)
def test_totals(result: bytes, total: float | None) -> None:
    """What a verifier made of its worker's answer is recorded, whatever it is."""
    [record] = rows(recorded(batch_of(["a"], result=result)))
    [decision] = decisions(record)
    assert decision.result == result
    told = describe(decision)
    assert told["total"] == total
    if result == b"{":
        assert told["rewards"]["unreadable"] == {"result": "{"}


@given(st.lists(texts, max_size=3), st.none() | texts, texts, texts, st.booleans())
def test_what_is_recorded_is_read(
    ids: list[str], group: str | None, prompt: str, completion: str, keep_text: bool
) -> None:
    made = batch_of(ids, group=group, prompt=prompt, completion=completion)
    [record] = rows(recorded(made, keep_text=keep_text))
    found = decisions(record)
    assert [(one.item, one.item_id, one.group) for one in found] == [(n, one, group) for n, one in enumerate(ids)]
    for one in found:
        assert one.completion_sha256 == hashlib.sha256(completion.encode()).hexdigest()
        assert (one.prompt, one.completion) == ((prompt, completion) if keep_text else (None, None))


def rows(pending: list[Values]) -> list[Row]:
    chained, _ = chain(pending, Head(0, GENESIS), None)
    return [dict(zip((*FIELDS, "hash"), one, strict=True)) for one in chained]


def test_keys_for_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(KEY + b"\n")
    assert read_key(path) == KEY
    assert read_key(None) is None
    path.write_bytes(b"short")
    with pytest.raises(AuditError, match="5 bytes"):
        read_key(path)
    with pytest.raises(AuditError, match="none cannot be read: No such file"):
        read_key(tmp_path / "none")


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 60), min_size=1))
def test_frames_are_the_same_in_whatever_pieces_they_come(messages: list[bytes], sizes: list[int]) -> None:
    rest = b"".join(HEADER.pack(len(message)) + message for message in messages)
    reader, read, number = FrameReader(), list[bytes](), 0
    while rest:
        piece = bytearray(rest[: sizes[number % len(sizes)]])
        rest, number = rest[len(piece) :], number + 1
        read += reader.feed(piece)
        piece[:] = b"\xff" * len(piece)  # as the next piece overwrites it
    assert read == messages
