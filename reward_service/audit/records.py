"""What one audit record is, its canonical bytes, and its place in the chain. Pure; nothing here knows a database.

A record holds all decisions of one request, in the order of its items. Canonical bytes of a record, so that anybody can
verify a log with nothing but this text:

    rlvr-audit-2\n  then each field of FIELDS, in that order

- A field with a value is `LENGTH:BYTES,` (a netstring): the number of bytes in decimal, a colon, the bytes, a comma.
- A field without a value (NULL) is `-,`.
- The bytes of a text are its UTF-8; of an integer, its decimal digits; of a bytes column, what it holds.

`hash` is the SHA-256 of these bytes in lower-case hexadecimal, or their HMAC-SHA-256 where the log is keyed.
`prev_hash` is the `hash` of the record before; of the first one, 64 zeros. Sequence numbers begin at 1 without gaps.

The columns from `item_ids` on have one entry an item: msgpack arrays, or 32 bytes an item. `decisions` reads them; it
and nothing else has to know, as the chain is over the bytes. One record a request because a row and a place in the
chain cost ten times as much as an item's columns.

U+0000, which PostgreSQL cannot hold in a text, stands as U+2400 in every text column of either database; the columns
of bytes hold everything as it came.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, overload

import msgspec

from reward_service.audit.wire import AppliedReward, ReceivedBatch
from reward_service.errors import AuditError

FORMAT_TAG: Final = b"rlvr-audit-2\n"
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
    "num_items",  # integer
    "item_ids",  # msgpack: texts
    "item_groups",  # msgpack: texts, nil for an item without
    "prompt_sha256",  # of the UTF-8 of the prompts, one after the other
    "completion_sha256",
    "results",  # msgpack: byte strings, JSON as it was answered: {"id": …, "total": …, "rewards": {reward: …}}
    "prompts",  # msgpack: texts; NULL unless texts are kept
    "completions",  # msgpack: texts; NULL unless texts are kept
)
MIN_KEY_BYTES: Final = 16

Field = str | int | bytes | None
Row = dict[str, Any]
Values = tuple[Field, ...]
"""The columns of a record that is not chained yet, from `time_us` on."""

_texts = msgspec.msgpack.Decoder(list[str])


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
        return self._replace(seal=chain_hash(encode_fields(("segment", *self[:-1])), key))

    def removed(self, now_us: int, key: bytes | None) -> Segment:
        """The same, once it is removed."""
        return self._replace(file="", removed_us=now_us).sealed(key)


def encode_fields(values: Iterable[Field]) -> bytes:
    """The values as the module's docstring says, one after the other."""
    parts = []
    for value in values:
        if value is None:
            parts.append(b"-,")
            continue
        data = value if isinstance(value, bytes) else _bytes_of(value)
        parts += (b"%d:" % len(data), data, b",")
    return b"".join(parts)


def _bytes_of(value: str | int) -> bytes:
    # surrogateescape: a manipulated database may hold what is not UTF-8
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else repr(value).encode()


def chain_hash(data: bytes, key: bytes | None) -> str:
    """SHA-256 of the canonical bytes behind the tag, or their HMAC if there is a key."""
    digest = hashlib.sha256(FORMAT_TAG) if key is None else hmac.new(key, FORMAT_TAG, "sha256")
    digest.update(data)
    return digest.hexdigest()


def record_hash(row: Mapping[str, Any], key: bytes | None = None) -> str:
    """The hash that a record with these columns has to have."""
    return chain_hash(encode_fields(row[name] for name in FIELDS), key)


def values_of(batch: ReceivedBatch, *, service_version: str, keep_text: bool) -> Values:
    """The record of a request. Columns that came as msgpack are taken over as they are: hashing is all the work.

    Args:
        batch: As the service took it on, texts and results packed.
        service_version: What scored it.
        keep_text: Keep prompts and completions; else their SHA-256 alone, which show later whether a text was the one.
    """
    prompts, completions = _texts.decode(batch.prompts), _texts.decode(batch.completions)
    return (
        batch.time_us,
        storable(batch.caller),
        storable(batch.run_id),
        batch.policy_version,
        _definitions(batch.rewards),
        storable(service_version),
        len(completions),
        bytes(batch.ids),
        bytes(batch.groups),
        _sha256_of_each(prompts),
        _sha256_of_each(completions),
        bytes(batch.results),
        bytes(batch.prompts) if keep_text else None,
        bytes(batch.completions) if keep_text else None,
    )


def chain(pending: Iterable[Values], head: Head, key: bytes | None) -> tuple[list[Values], Head]:
    """The records behind `head`, their columns in the order of FIELDS and then `hash`; and the new head.

    Args:
        pending: Without number and hashes.
        head: Number and hash of the newest record.
        key: Of the HMAC; None: plain SHA-256, which shows a change only to who knows the head.
    """
    seq, last = head
    rows = []
    for values in pending:
        seq += 1
        own = chain_hash(encode_fields((seq, last, *values)), key)
        rows.append((seq, last, *values, own))
        last = own
    return rows, Head(seq, last)


@overload
def storable(text: str) -> str: ...
@overload
def storable(text: str | None) -> str | None: ...
def storable(text: str | None) -> str | None:
    """The text with U+0000 as U+2400, which every database can hold."""
    return text.replace("\0", "\u2400") if text is not None and "\0" in text else text


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


def _sha256_of_each(texts: Iterable[str]) -> bytes:
    """Their digests, one after the other. Neighbours are often the same: completions of one prompt come together."""
    digests, before, digest = [], None, b""
    for text in texts:
        if text != before:
            before, digest = text, hashlib.sha256(text.encode()).digest()
        digests.append(digest)
    return b"".join(digests)
