"""What one audit record is, its canonical bytes, and its place in the chain. Pure; nothing here knows a database.

Canonical bytes of a record, so that anybody can verify a log with nothing but this text:

    rlvr-audit-1\\n  then each field of FIELDS, in that order

- A field with a value is `LENGTH:BYTES,` (a netstring): the number of bytes in decimal, a colon, the bytes, a comma.
- A field without a value (NULL) is `-,`.
- The bytes of a text are its UTF-8; of an integer, its decimal digits; of a floating-point number (`total` only), the
  shortest decimal text that reads back as the same double, as Python's `repr` writes it: `1.5`, `0.1`, `1e-07`,
  `1e+16`, `2.0`. Its sign of zero is not kept (`0.0`), as SQLite does not.

`hash` is the SHA-256 of these bytes in lower-case hexadecimal, or their HMAC-SHA-256 where the log is keyed.
`prev_hash` is the `hash` of the record before; of the first one, 64 zeros. Sequence numbers begin at 1 without gaps.

U+0000, which PostgreSQL cannot hold in a text, stands as U+2400 in every text column of either database;
`prompt_sha256` and `completion_sha256` are those of the UTF-8 of the texts as they came.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, overload

import msgspec

from reward_service.errors import AuditError

FORMAT_TAG: Final = b"rlvr-audit-1\n"
GENESIS: Final = "0" * 64
FIELDS: Final = (
    "seq",  # integer
    "prev_hash",
    "time_us",  # integer: microseconds since 1970-01-01 UTC at which the service had decided
    "caller",  # name of the API key, or "anonymous"
    "run_id",  # may be NULL
    "policy_version",  # integer, may be NULL
    "definitions",  # JSON: {reward: {"weight": …, "version": …}}
    "service_version",
    "item_id",
    "item_group",  # may be NULL
    "prompt_sha256",
    "completion_sha256",
    "rewards",  # JSON, as it was answered: {reward: {"score": …, "reason": …, "details": …}}
    "total",  # double, may be NULL
    "prompt",  # NULL unless texts are kept
    "completion",  # NULL unless texts are kept
)
MIN_KEY_BYTES: Final = 16

Field = str | int | float | None
Row = dict[str, Any]


class Head(NamedTuple):
    """The last record of a chain; (0, GENESIS) is the head of an empty one."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


class Segment(NamedTuple):
    """A part of the chain that is no longer in the log itself."""

    first_seq: int
    last_seq: int
    last_hash: str
    last_time_us: int
    file: str
    """Name of the file that it was moved to; empty: it is not to be looked for."""
    removed_us: int | None
    """When it was removed; None: it was not."""
    seal: str
    """Hash of the above, as of a record: nobody without the key of a keyed log can say that something was removed."""

    @classmethod
    def of(cls, first_seq: int, last: Row, file: str, key: bytes | None) -> Segment:
        """The segment that ends with this record."""
        return cls(first_seq, last["seq"], last["hash"], last["time_us"], file, None, "").sealed(key)

    def sealed(self, key: bytes | None) -> Segment:
        """With the seal that it has to have."""
        return self._replace(seal=chain_hash(b"7:segment,", encode_fields(self[:-1]), key))

    def removed(self, now_us: int, key: bytes | None) -> Segment:
        """The same, once it is removed."""
        return self._replace(file="", removed_us=now_us).sealed(key)


class AppliedReward(msgspec.Struct, frozen=True, array_like=True):
    """A reward that a request asked for."""

    name: str
    weight: float
    version: str


class AuditItem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One item of a request, and what was decided of it."""

    id: str
    group: str | None
    prompt: str
    completion: str
    result: bytes
    """JSON with `total` and `rewards`, as the scoring worker encoded it; other members are not recorded."""


class AuditBatch(msgspec.Struct, frozen=True, array_like=True):
    """The decisions of one request: what the server hands to the writer."""

    time_us: int
    caller: str
    run_id: str | None
    policy_version: int | None
    rewards: tuple[AppliedReward, ...]
    items: list[AuditItem]


class Draft(NamedTuple):
    """A record that is not chained yet."""

    values: tuple[Field, ...]
    """Its columns from `time_us` on."""
    body: bytes
    """Their canonical bytes."""


class _Result(msgspec.Struct):
    total: float | None
    rewards: msgspec.Raw


_result_decoder = msgspec.json.Decoder(_Result)


def encode_fields(values: Iterable[Field]) -> bytes:
    """The values as the module's docstring says, one after the other."""
    parts = []
    for value in values:
        if value is None:
            parts.append(b"-,")
            continue
        # surrogateescape: a manipulated database may hold what is not UTF-8
        data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else repr(value).encode()
        parts.append(b"%d:%b," % (len(data), data))
    return b"".join(parts)


def chain_hash(prefix: bytes, body: bytes, key: bytes | None) -> str:
    """SHA-256 of the canonical bytes, given in two parts, or their HMAC if there is a key."""
    data = FORMAT_TAG + prefix + body
    return hashlib.sha256(data).hexdigest() if key is None else hmac.digest(key, data, "sha256").hex()


def record_hash(row: Mapping[str, Any], key: bytes | None = None) -> str:
    """The hash that a record with these columns has to have."""
    return chain_hash(b"", encode_fields(row[name] for name in FIELDS), key)


def drafts(batch: AuditBatch, *, service_version: str, keep_text: bool) -> Iterator[Draft]:
    """One record an item, in the items' order.

    What `encode_fields` says of the values, written out for speed: there are tens of thousands a second.
    """
    shared = (
        batch.time_us,
        storable(batch.caller),
        storable(batch.run_id),
        batch.policy_version,
        _definitions(batch.rewards),
        storable(service_version),
    )
    shared_bytes = encode_fields(shared)
    hashes: dict[str, str] = {}  # completions of one prompt come together
    texts: tuple[Field, Field] = (None, None)
    for item in batch.items:
        if (prompt_sha256 := hashes.get(item.prompt)) is None:
            hashes[item.prompt] = prompt_sha256 = _sha256(item.prompt)
        completion_sha256 = _sha256(item.completion)
        total, rewards = _read_result(item.result)
        item_id, group = storable(item.id), storable(item.group)
        id_bytes, total_bytes = item_id.encode(), b"-" if total is None else b"%d:%b" % _netstring(repr(total).encode())
        group_bytes = b"-" if group is None else b"%d:%b" % _netstring(group.encode())
        if keep_text:
            texts = (storable(item.prompt), storable(item.completion))
        body = b"%b%d:%b,%b,64:%b,64:%b,%d:%b,%b,%b" % (
            shared_bytes,
            len(id_bytes),
            id_bytes,
            group_bytes,
            prompt_sha256.encode(),
            completion_sha256.encode(),
            len(rewards),
            rewards,
            total_bytes,
            encode_fields(texts) if keep_text else b"-,-,",
        )
        own = (item_id, group, prompt_sha256, completion_sha256, rewards.decode(), total, *texts)
        yield Draft(shared + own, body)


def chain(pending: Iterable[Draft], head: Head, key: bytes | None) -> tuple[list[tuple[Field, ...]], Head]:
    """The drafts as records behind `head`, their columns in the order of FIELDS and then `hash`; and the new head."""
    seq, last = head
    rows = []
    for values, body in pending:
        seq += 1
        digits = b"%d" % seq
        own = chain_hash(b"%d:%b,%d:%b," % (*_netstring(digits), *_netstring(last.encode())), body, key)
        rows.append((seq, last, *values, own))
        last = own
    return rows, Head(seq, last)


def _netstring(data: bytes) -> tuple[int, bytes]:
    return len(data), data


@overload
def storable(text: str) -> str: ...
@overload
def storable(text: str | None) -> str | None: ...
def storable(text: str | None) -> str | None:
    """The text with U+0000 as U+2400, which every database can hold."""
    return text.replace("\0", "\u2400") if text is not None and "\0" in text else text


def describe(row: Mapping[str, Any]) -> dict[str, Any]:
    """A record for people and for JSON: the rewards in one place, the time as ISO 8601.

    Raises AuditError if the record was changed into something that cannot be read.
    """
    try:
        definitions = msgspec.json.decode(row["definitions"], type=dict[str, dict[str, Any]])
        rewards = msgspec.json.decode(row["rewards"], type=dict[str, dict[str, Any]])
        time = time_text(row["time_us"])
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise AuditError(f"record {row['seq']} cannot be read ({error}); run `rlvr reward audit verify`") from None
    return {
        "seq": row["seq"],
        "time": time,
        "caller": row["caller"],
        "run_id": row["run_id"],
        "policy_version": row["policy_version"],
        "id": row["item_id"],
        "group": row["item_group"],
        "prompt_sha256": row["prompt_sha256"],
        "completion_sha256": row["completion_sha256"],
        "rewards": {name: {**definitions.get(name, {}), **result} for name, result in rewards.items()},
        "total": row["total"],
        "prompt": row["prompt"],
        "completion": row["completion"],
        "service_version": row["service_version"],
        "prev_hash": row["prev_hash"],
        "hash": row["hash"],
    }


def time_text(time_us: int) -> str:
    """`2026-11-21T14:43:06.000123Z`."""
    seconds, micros = divmod(time_us, 1_000_000)
    return (
        datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros, tzinfo=None).isoformat("T", "microseconds")
        + "Z"
    )


def read_key(path: Path | None) -> bytes | None:
    """The HMAC key in a file, None for None; AuditError if there is none worth the name."""
    if path is None:
        return None
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise AuditError(f"hmac_key_file: {path} cannot be read: {error.strerror}") from None
    if len(key) < MIN_KEY_BYTES:
        raise AuditError(f"hmac_key_file: {path} holds {len(key)} bytes, and an HMAC key has at least {MIN_KEY_BYTES}")
    return key


def _definitions(rewards: Iterable[AppliedReward]) -> str:
    return msgspec.json.encode(
        {reward.name: {"weight": reward.weight, "version": reward.version} for reward in rewards}
    ).decode()


def _read_result(result: bytes) -> tuple[float | None, bytes]:
    """(total, JSON of the rewards). What cannot be read is recorded as it is: a decision is never left out."""
    try:
        decoded = _result_decoder.decode(result)
    except (msgspec.MsgspecError, RecursionError):
        return None, msgspec.json.encode({"unreadable": {"result": result.decode(errors="replace")}})
    total = None if decoded.total is None else decoded.total + 0.0  # -0.0 + 0.0 is 0.0
    return total, bytes(decoded.rewards)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
