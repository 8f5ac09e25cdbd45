"""A trace and a proof as people read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from orchestration.trace.verify import Verified

_BASE = "none: the base model"


def completion_in_words(found: Mapping[str, Any]) -> str:
    """All of `trace_completion`, a line each."""
    return "\n".join(
        [
            f"completion {found['completion_id']} of {found['run']}",
            *_text("prompt", found["prompt"]),
            *(_turns(found) if found.get("turns") else _text("completion", found["completion"])),
            _line("reference", json.dumps(found["reference"], ensure_ascii=False)),
            *([_line("category", found["category"])] if found["category"] else []),
            _line("sampled", _sampled(found)),
            *_rewards(found),
            *_audit(found["audit"]),
            *_group(found),
            _line("importance", _importance(found["importance"])),
            *_update(found),
            _line("gradient", _gradient(found["gradient"])),
        ]
    )


def verified_in_words(found: Verified) -> str:
    """Findings, then what was looked at."""
    facts = found.facts
    parts = [f"{facts[name]} {name}" for name in ("files", "records", "tables", "rows", "completions") if name in facts]
    if facts.get("other_decisions"):
        parts.append(f"{facts['other_decisions']} decisions of groups that were not learned from, or of evaluations")
    lines = [*found.findings, *(f"not looked at: {note}" for note in found.notes)]
    if "audit" in facts:
        lines.append(f"audit log: {facts['audit']}")
    if "trail" in facts:
        lines.append(f"trail: {facts['trail']['lines']} lines, head {facts['trail']['head']}")
    number = len(found.findings)
    state = "intact" if found.intact else f"{number} finding{'s' * (number > 1)}"
    return "\n".join([*lines, f"{state}: {', '.join(parts)}"])


def _line(name: str, told: Any) -> str:
    return f"  {name:<11} {told}"


def _text(name: str, text: str) -> Iterator[str]:
    first, *rest = text.splitlines() or [""]
    yield _line(name, first)
    yield from (_line("", line) for line in rest)


def _turns(found: Mapping[str, Any]) -> Iterator[str]:
    """What each turn said, was answered and earned."""
    for number, turn in enumerate(found["turns"], start=1):
        if turn.get("rewritten"):
            yield _line("", "(the template rewrote what came before: from here on it is a sequence of its own)")
        yield from _text(f"turn {number}", turn["text"])
        total = "" if turn.get("total") is None else f", answers for {turn['total']:.4g}"
        paid = "nothing" if turn["reward"] is None else f"{turn['reward']:g}"
        yield _line(
            "",
            f"[{turn['stop'] - turn['start']} tokens by version {turn['adapter_version']}, ended by "
            f"{turn['finish_reason']}; paid {paid}{total}]",
        )
        if turn["observation"]:
            yield from _text("answered", turn["observation"])
    if found.get("failure"):
        yield _line("failed", found["failure"])


def _sampled(found: Mapping[str, Any]) -> str:
    sampler = found["sampler"]
    mean = "" if sampler["logprob_mean"] is None else f", {sampler['logprob_mean']:.3f} nats a token"
    adapter = _digest(sampler["adapter_sha256"])
    return (
        f"by version {sampler['version']} (adapter {adapter}): {found['num_tokens']} tokens, ended by "
        f"{found['finish_reason']}{mean}"
    )


def _rewards(found: Mapping[str, Any]) -> Iterator[str]:
    for name, reward in found["rewards"].items():
        said = _null(reward["reason"]) if reward["score"] is None else f"{reward['score']:g}"
        version = f"  version {reward['version'][:16]}" if reward["version"] else ""
        details = f"  {json.dumps(reward['details'], ensure_ascii=False)}" if reward["details"] else ""
        yield _line("reward", f"{name} × {reward['weight']:g}: {said}{details}{version}")
    drawn = "  (drawn at random: reward.control=random)" if found["control"] == "random" else ""
    yield _line("total", f"{_number(found['total'])}{drawn}")


def _null(reason: str | None) -> str:
    return f"no score ({reason or 'the reason is not known'})"


def _audit(log: Mapping[str, Any] | None) -> Iterator[str]:
    if log is None:
        yield _line("audit", "the run kept no log of the rewards' decisions (audit=true)")
        return
    if "seq" in log:
        yield _line("audit", f"record {log['seq']}, {log['time']}, item {log['item_id']}, hash {log['hash']}")
    whole = "chain verified; prompt, completion and scores are those of the log" if not log["findings"] else "WRONG"
    yield _line("", f"{log['log']}: {whole}")
    yield from (_line("", f"! {finding}") for finding in log["findings"])


def _group(found: Mapping[str, Any]) -> Iterator[str]:
    group = found["group"]
    totals = " ".join(map(_number, group["totals"]))
    yield _line("group", f"{group['prompt_id']}, mean {_number(group['mean'])} of {totals}")
    yield _line("advantage", f"{_number(found['advantage'])} of {' '.join(map(_number, group['advantages']))}")


def _update(found: Mapping[str, Any]) -> Iterator[str]:
    update = found["update"]
    figures = ", ".join(
        f"{name} {update[name]:.4g}" for name in ("loss", "grad_norm", "learning_rate") if update[name] is not None
    )
    share = update["share_of_absolute_advantage"]
    of_all = "" if share is None else f"; {share:.2%} of the step's absolute advantages"
    yield _line("update", f"step {update['step']}: {figures}{of_all}")
    yield _line("adapter", f"before {_digest(update['adapter_before'])}")
    yield _line("", f"after  {_digest(update['adapter_after'])}")


def _importance(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not known: no part in the loss, or the run is of before it was kept"
    return (
        f"learner's probability over the sampler's: mean {found['mean']:.3f}, from {found['min']:.3f} (token "
        f"{found['min_token']}) to {found['max']:.3f} (token {found['max_token']})"
    )


def _gradient(gradient: Mapping[str, Any] | None) -> str:
    if gradient is None:
        return "not measured: --gradient learns the step again and measures this completion's share"
    same = "bit for bit as recorded" if gradient["equal"] else "NOT as recorded: settings or machine are others"
    if not gradient["in_loss"]:
        return f"no part: without an advantage, or left out of the loss (the step learned again is {same})"
    return (
        f"share <g_i,g>/<g,g> {gradient['share']:+.2%}; norm {gradient['norm']:.4g} beside {gradient['step_norm']:.4g} "
        f"of the step, cosine {gradient['cosine']:+.3f} (before clipping; the step learned again is {same})"
    )


def _digest(digest: str | None) -> str:
    return "not known" if digest is None else digest or _BASE


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:.4g}"
