"""Decisions for the tests of the audit log."""

from __future__ import annotations

from reward_service.audit.records import FIELDS, AppliedReward, AuditBatch, AuditItem, Draft, Row, drafts

KEY = b"sixteen bytes or more"
RESULT = (
    b'{"total":1.5,"rewards":{"gsm8k_format":{"score":0.5,"reason":null,"details":{}},'
    b'"gsm8k_correctness":{"score":1.0,"reason":null,"details":{"extracted":"72"}}}}'
)
REWARDS = (AppliedReward("gsm8k_format", 1.0, "a" * 64), AppliedReward("gsm8k_correctness", 1.0, "b" * 64))


def batch(number: int, *, num_items: int = 2, run_id: str | None = "run", completion: str = "72") -> AuditBatch:
    items = [AuditItem(f"{number}/{n}", f"g{number}", "What is 70 + 2?", completion, RESULT) for n in range(num_items)]
    return AuditBatch(1_700_000_000_000_000 + number, "alice", run_id, 3, REWARDS, items)


def drafted(*batches: AuditBatch, keep_text: bool = True) -> list[Draft]:
    return [draft for one in batches for draft in drafts(one, service_version="1.0", keep_text=keep_text)]


def row_of(draft: Draft) -> Row:
    """Its columns by name, without `seq`, `prev_hash` and `hash`."""
    return dict(zip(FIELDS[2:], draft.values, strict=True))
