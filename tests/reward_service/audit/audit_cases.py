"""Decisions for the tests of the audit log."""

from __future__ import annotations

import msgspec

from reward_service.audit.records import Values, values_of
from reward_service.audit.wire import AppliedReward, AuditBatch, ReceivedBatch

KEY = b"sixteen bytes or more"
RESULT = (
    b'{"total":1.5,"rewards":{"gsm8k_format":{"score":0.5,"reason":null,"details":{}},'
    b'"gsm8k_correctness":{"score":1.0,"reason":null,"details":{"extracted":"72"}}}}'
)
REWARDS = (AppliedReward("gsm8k_format", 1.0, "a" * 64), AppliedReward("gsm8k_correctness", 1.0, "b" * 64))


def batch(number: int, *, num_items: int = 2, run_id: str | None = "run", completion: str = "72") -> AuditBatch:
    return batch_of(
        [f"{number}/{n}" for n in range(num_items)],
        time_us=1_700_000_000_000_000 + number,
        run_id=run_id,
        group=f"g{number}",
        prompt="What is 70 + 2?",
        completion=completion,
    )


def batch_of(
    ids: list[str],
    *,
    time_us: int = 1,
    run_id: str | None = "run",
    group: str | None = None,
    prompt: str = "",
    completion: str = "",
    result: bytes = RESULT,
) -> AuditBatch:
    """Items that have all but their identifier in common."""
    texts = [[group], [prompt], [completion], [result]]
    return AuditBatch(time_us, "alice", run_id, 3, REWARDS, ids, *(len(ids) * one for one in texts))  # type: ignore[arg-type]


def recorded(*batches: AuditBatch, keep_text: bool = True) -> list[Values]:
    """As the writer makes them of what it receives."""
    received = [msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=ReceivedBatch) for one in batches]
    return [values_of(one, service_version="1.0", keep_text=keep_text) for one in received]
