"""What another reward says of a run's completions, beside what the run learned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Row = Mapping[str, Any]

VERDICTS: Final = ("both high", "both low", "only then", "only now", "not scored")
MOST_EXAMPLES: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescored:
    """A completion, as it was paid and as it would be."""

    row: Row
    """Of the run's table."""
    rewards: Mapping[str, float | None]
    reasons: Mapping[str, str | None]
    total: float | None


def compare(scored: Sequence[Rescored]) -> dict[str, Any]:
    """Where the two differ.

    `high` is above the middle of the least and the greatest total ever seen, then and now for itself: so rewards of
    different scales can be compared. A reward that both have is compared score by score.
    """
    verdicts = verdicts_of(scored)
    names = list(scored[0].rewards) if scored else []
    apart = [one for one, verdict in zip(scored, verdicts, strict=True) if verdict in ("only then", "only now")]
    return {
        "num_completions": len(scored),
        "verdicts": {name: verdicts.count(name) for name in VERDICTS},
        "share_apart": len(apart) / len(scored) if scored else 0.0,
        "mean_then": _mean([one.row["total"] for one in scored]),
        "mean_now": _mean([one.total for one in scored]),
        "rewards": {name: _of_reward(scored, name) for name in names},
        "categories": _by_category(scored, verdicts),
        "steps": _by_step(scored, verdicts),
        "examples": [
            {
                "completion_id": one.row["completion_id"],
                "prompt": one.row["prompt"],
                "completion": one.row["completion"],
                "total_then": one.row["total"],
                "total_now": one.total,
                "rewards": dict(one.rewards),
            }
            for one in _clearest(apart)
        ],
    }


def _clearest(apart: Sequence[Rescored]) -> list[Rescored]:
    """Those that are furthest apart, one of a prompt."""
    by_distance = sorted(apart, key=lambda one: -abs((one.total or 0.0) - (one.row["total"] or 0.0)))
    return list({one.row["prompt_id"]: one for one in reversed(by_distance)}.values())[::-1][:MOST_EXAMPLES]


def verdicts_of(scored: Sequence[Rescored]) -> list[str]:
    """One of `VERDICTS` for each completion.

    Args:
        scored: Completions, each with what it got then and now.
    """
    then_above, now_above = (
        _middle(totals) for totals in zip(*((o.row["total"], o.total) for o in scored), strict=True)
    )
    found = []
    for one in scored:
        then, now = one.row["total"], one.total
        if then is None or now is None:
            found.append("not scored")
        else:
            high = then > then_above, now > now_above
            found.append(
                {(True, True): "both high", (False, False): "both low", (True, False): "only then"}.get(
                    high, "only now"
                )
            )
    return found


def _middle(totals: Sequence[float | None]) -> float:
    known = [total for total in totals if total is not None]
    return (min(known) + max(known)) / 2 if known else 0.0


def _of_reward(scored: Sequence[Rescored], name: str) -> dict[str, Any]:
    """How a reward scores now, and where the run had it too, how often otherwise than then."""
    nulls = Counter(one.reasons.get(name) for one in scored if one.rewards[name] is None)
    told: dict[str, Any] = {"mean": _mean([one.rewards[name] for one in scored]), "nulls": dict(nulls)}
    column = f"reward_{name}"
    if scored and column in scored[0].row:
        other = [one.row["completion_id"] for one in scored if one.row[column] != one.rewards[name]]
        told |= {"mean_then": _mean([one.row[column] for one in scored]), "num_other": len(other), "other": other[:20]}
    return told


def _by_category(scored: Sequence[Rescored], verdicts: Sequence[str]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for one, verdict in zip(scored, verdicts, strict=True):
        found.setdefault(one.row.get("category") or "", Counter())[verdict] += 1
    return {category: dict(count) for category, count in sorted(found.items())} if len(found) > 1 else {}


def _by_step(scored: Sequence[Rescored], verdicts: Sequence[str]) -> dict[int, float]:
    """Share of completions about which the two part, by step."""
    apart: dict[int, list[bool]] = {}
    for one, verdict in zip(scored, verdicts, strict=True):
        apart.setdefault(one.row["step"], []).append(verdict in ("only then", "only now"))
    return {step: sum(found) / len(found) for step, found in sorted(apart.items())}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def in_words(found: Mapping[str, Any]) -> str:
    """A table, what each reward says, and examples."""
    number = found["num_completions"]
    lines = [f"{number} completions; mean total {_told(found['mean_then'])} then, {_told(found['mean_now'])} now"]
    lines += [f"  {name:<11} {count:>7}  {count / max(1, number):7.1%}" for name, count in found["verdicts"].items()]
    for name, told in found["rewards"].items():
        then = "" if "num_other" not in told else f", {told['num_other']} scored otherwise than then"
        nulls = "".join(f", {count} null ({reason})" for reason, count in told["nulls"].items())
        lines.append(f"{name}: mean {_told(told['mean'])}{then}{nulls}")
    for category, count in found["categories"].items():
        apart = count.get("only then", 0) + count.get("only now", 0)
        lines.append(f"  category {category}: {apart} of {sum(count.values())} apart")
    for one in found["examples"]:
        lines += [
            f"{one['completion_id']}: {_told(one['total_then'])} then, {_told(one['total_now'])} now",
            f"  {_tail(one['prompt'])}",
            f"  → {_tail(one['completion'])}",
        ]
    return "\n".join(lines)


def _told(value: float | None) -> str:
    return "null" if value is None else f"{value:.4g}"


def _tail(text: str, most: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"…{line[-most:]}"
