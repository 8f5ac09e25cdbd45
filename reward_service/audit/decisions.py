"""The decisions in a record, an item each: read from its columns, and made readable for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from reward_service.audit.records import Row
from reward_service.errors import AuditError

_DIGEST_BYTES: Final = 32

_texts = msgspec.msgpack.Decoder(list[str])
_groups = msgspec.msgpack.Decoder(list[str | None])
_results = msgspec.msgpack.Decoder(list[bytes])


class _Result(msgspec.Struct):
    total: float | None
    rewards: msgspec.Raw


_result_decoder = msgspec.json.Decoder(_Result)


class Decision(NamedTuple):
    """What was decided of one item of a request."""

    record: Row
    item: int
    """Its place in the request, from 0."""
    item_id: str
    group: str | None
    prompt_sha256: str
    completion_sha256: str
    result: bytes
    """JSON, as it was answered."""
    prompt: str | None
    completion: str | None

    def read_result(self) -> tuple[float | None, bytes]:
        """(total, JSON of the rewards); what cannot be read is told as it is."""
        try:
            decoded = _result_decoder.decode(self.result)
        except (msgspec.MsgspecError, RecursionError):
            return None, msgspec.json.encode({"unreadable": {"result": self.result.decode(errors="replace")}})
        return decoded.total, bytes(decoded.rewards)


def decisions(record: Row) -> list[Decision]:
    """The decisions of a record, in the order of its items; AuditError if it was changed into what cannot be read."""
    try:
        ids, groups = _texts.decode(record["item_ids"]), _groups.decode(record["item_groups"])
        results, number = _results.decode(record["results"]), len(ids)
        nothing: list[str | None] = [None] * number
        prompts, completions = (
            nothing if record[name] is None else _texts.decode(record[name]) for name in ("prompts", "completions")
        )
        digests = [_split(record[name]) for name in ("prompt_sha256", "completion_sha256")]
        columns = (ids, groups, *digests, results, prompts, completions)
        made = [Decision(record, item, *one) for item, one in enumerate(zip(*columns, strict=True))]
        if number != record["num_items"]:
            raise ValueError(f"it has {number} items, and says {record['num_items']}")
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise unreadable(record, error) from None
    return made


def describe(decision: Decision) -> dict[str, Any]:
    """A decision for people and for JSON: the rewards in one place, the time as ISO 8601.

    Raises AuditError if the record was changed into something that cannot be read.
    """
    row = decision.record
    try:
        definitions = msgspec.json.decode(row["definitions"], type=dict[str, dict[str, Any]])
        total, text = decision.read_result()
        rewards = msgspec.json.decode(text, type=dict[str, dict[str, Any]])
        time = _time_text(row["time_us"])
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise unreadable(row, error) from None
    return {
        "seq": row["seq"],
        "item": decision.item,
        "time": time,
        "caller": row["caller"],
        "run_id": row["run_id"],
        "policy_version": row["policy_version"],
        "id": decision.item_id,
        "group": decision.group,
        "prompt_sha256": decision.prompt_sha256,
        "completion_sha256": decision.completion_sha256,
        "rewards": {name: {**definitions.get(name, {}), **result} for name, result in rewards.items()},
        "total": total,
        "prompt": decision.prompt,
        "completion": decision.completion,
        "service_version": row["service_version"],
        "prev_hash": row["prev_hash"],
        "hash": row["hash"],
    }


def unreadable(record: Row, error: Exception) -> AuditError:
    """What is said of a record that was changed."""
    return AuditError(f"record {record['seq']} cannot be read ({error}); run `rlvr reward audit verify`")


def _split(digests: bytes) -> list[str]:
    return [digests[at : at + _DIGEST_BYTES].hex() for at in range(0, len(digests), _DIGEST_BYTES)]


def _time_text(time_us: int) -> str:
    """`2026-11-21T14:43:06.000123Z`."""
    seconds, micros = divmod(time_us, 1_000_000)
    return (
        datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros, tzinfo=None).isoformat("T", "microseconds")
        + "Z"
    )
