"""What the audit log says of a run's completions, and whether that is what the run has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from orchestration.run.rewards import answer_of
from reward_service.audit.reading import all_decisions, find_decision, verify_log
from reward_service.errors import AuditError

Row = Mapping[str, Any]


class Decided(NamedTuple):
    """What the service decided of an item."""

    seq: int
    policy_version: int | None
    prompt_sha256: str
    completion_sha256: str
    rewards: Mapping[str, Mapping[str, Any]]
    total: float | None


def decided(described: Mapping[str, Any]) -> Decided:
    """Of a decision as the log describes it."""
    return Decided(**{name: described[name] for name in Decided._fields})


def read_decisions(log: Path) -> dict[str, Decided]:
    """The newest decision of each item: one that was asked about again is there twice.

    Args:
        log: The audit log's SQLite file; it is only read.

    Returns:
        By item id, as the column `item_id` of the completions' tables.

    Raises:
        AuditError: It is no audit log, or cannot be read.
    """
    return {one["id"]: decided(one) for one in all_decisions(log)}


def find_decided(log: Path, run_ids: Iterable[str], item_id: str) -> dict[str, Any] | None:
    """The newest decision about an item, as the log describes it.

    Args:
        log: The run's SQLite file.
        run_ids: Of its starts, looked through in this order.
        item_id: As the tables have it.

    Returns:
        None: it has none.

    Raises:
        AuditError: It cannot be read.
    """
    found = (find_decision(log, run_id, item_id) for run_id in run_ids)
    return next((one for one in found if one is not None), None)


def chain_findings(log: Path) -> tuple[list[str], str]:
    """What is wrong with the log's chain, and what there is, in words.

    Returns:
        A sentence for each thing that is wrong, none where the chain holds; and how much there is, with its head.
    """
    try:
        found = verify_log(log)
    except AuditError as error:
        return [str(error)], "not readable"
    told = f"{found.num_decisions} decisions in {found.num_records} records, chained by {found.algorithm}"
    more = found.num_findings - len(found.findings)
    return [*found.findings, *([f"and {more} more"] if more else [])], f"{told}, head {found.head}"


def differences(row: Row, decision: Decided, *, control: bool) -> list[str]:
    """Where a completion's row says otherwise than the log.

    Args:
        control: totals were drawn at random, and the log has those of the real rewards.
    """
    asked = {"prompt": row["prompt"], "completion": answer_of(row)[0]}
    digests = (("prompt", decision.prompt_sha256), ("completion", decision.completion_sha256))
    other = [f"another {name}" for name, digest in digests if sha256(asked[name].encode()).hexdigest() != digest]
    for name, said in decision.rewards.items():
        if row.get(f"reward_{name}") != said.get("score"):
            other.append(f"{name} {said.get('score')}, and not {row.get(f'reward_{name}')}")
        elif row.get(f"reason_{name}") != said.get("reason"):
            other.append(f"the reason {said.get('reason')} of {name}, and not {row.get(f'reason_{name}')}")
    if not control and row["total"] != decision.total:
        other.append(f"a total of {decision.total}, and not {row['total']}")
    if decision.policy_version is not None and decision.policy_version > row["adapter_version"]:
        other.append(f"policy version {decision.policy_version}, and not {row['adapter_version']}")
    return other
