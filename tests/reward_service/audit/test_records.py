"""One audit record: its canonical bytes lose nothing, and its hash is what anybody can work out from the docstring."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_service.audit.records import (
    FIELDS,
    GENESIS,
    AuditItem,
    Head,
    chain,
    describe,
    encode_fields,
    read_key,
    record_hash,
)
from reward_service.errors import AuditError
from tests.reward_service.audit.audit_cases import KEY, RESULT, batch, drafted, row_of


def parse_canonical(data: bytes) -> list[bytes | None]:
    """A reader written from the docstring of `records` alone."""
    tag, data = data[:13], data[13:]
    assert tag == b"rlvr-audit-1\n"
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
values = st.none() | texts | st.integers(0, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(values))
def test_canonical_bytes_lose_nothing(fields: list[str | int | float | None]) -> None:
    parsed = parse_canonical(b"rlvr-audit-1\n" + encode_fields(fields))
    assert len(parsed) == len(fields)
    for field, data in zip(fields, parsed, strict=True):
        if isinstance(field, str):
            assert data == field.encode()
        elif field is None:
            assert data is None
        else:
            assert data is not None
            assert type(field)(data.decode()) == field


def test_a_known_record_has_a_known_hash() -> None:
    """The hash is put together here by hand: a third party has to get the same."""
    (row,), head = chain(drafted(batch(0, num_items=1), keep_text=False), Head(0, GENESIS), None)
    texts = [
        "1", GENESIS, "1700000000000000", "alice", "run", "3",
        f'{{"gsm8k_format":{{"weight":1.0,"version":"{"a" * 64}"}},'
        f'"gsm8k_correctness":{{"weight":1.0,"version":"{"b" * 64}"}}}}',
        "1.0", "0/0", "g0", hashlib.sha256(b"What is 70 + 2?").hexdigest(), hashlib.sha256(b"72").hexdigest(),
        RESULT.decode().partition('"rewards":')[2][:-1], "1.5",
    ]  # fmt: skip
    canonical = "rlvr-audit-1\n" + "".join(f"{len(text)}:{text}," for text in texts) + "-,-,"
    assert head == (1, hashlib.sha256(canonical.encode()).hexdigest())
    record = dict(zip(FIELDS, row[:-1], strict=True))
    assert row[-1] == head.hash == record_hash(record)
    (keyed,), _ = chain(drafted(batch(0, num_items=1), keep_text=False), Head(0, GENESIS), KEY)
    assert keyed[-1] == hmac.new(KEY, canonical.encode(), "sha256").hexdigest() == record_hash(record, KEY)


@pytest.mark.parametrize(
    ("result", "total"),
    [
        (b'{"total":null,"rewards":{}}', None),
        (b'{"id":"x","total":-0.0,"rewards":{}}', 0.0),
        (b'{"total":2,"rewards":{}}', 2.0),
        (b'{"total":0.1,"rewards":{}}', 0.1),
        (b"{", None),
        (b'{"total":1e999,"rewards":{}}', None),
    ],
)
def test_totals(result: bytes, total: float | None) -> None:
    item = AuditItem("", None, "", "", result)
    (draft,) = drafted(msgspec.structs.replace(batch(0), items=[item]))
    row = row_of(draft)
    assert repr(row["total"]) == repr(total)
    json.loads(row["rewards"])
    if result == b"{":
        assert describe({**row, "seq": 1, "hash": "", "prev_hash": ""})["rewards"]["unreadable"] == {"result": "{"}


@given(texts, st.none() | texts, texts, texts, st.booleans(), st.none() | st.floats(-9, 9))
def test_what_is_hashed_fast_is_what_the_format_says(
    item_id: str, group: str | None, prompt: str, completion: str, keep_text: bool, total: float | None
) -> None:
    result = msgspec.json.encode({"total": total, "rewards": {"é": {"score": total}}})
    item = AuditItem(item_id, group, prompt, completion, result)
    for draft in drafted(msgspec.structs.replace(batch(0), items=[item, item]), keep_text=keep_text):
        assert draft.body == encode_fields(draft.values)


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
