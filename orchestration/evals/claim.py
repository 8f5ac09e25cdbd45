"""What may be claimed of an adapter: sentences that follow from figures, each with its verdict. Pure, but for scipy's
intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from orchestration.evals.answers import ADAPTER, BASE, GREEDY, HELD_OUT, TRAIN, Answer
from orchestration.evals.figures import Values, difference, measures
from orchestration.evals.leakage import Overlap
from orchestration.evals.table import change, p_value
from orchestration.report.text import percent
from orchestration.run.intervals import bootstrap_difference

Verdict = Literal["yes", "no", "open"]
"""May be claimed; may not be claimed; not known."""
ALPHA = 0.05
"""McNemar's p has to be below, beside an interval that does not hold 0: that of few changes is too narrow."""
TRUNCATED = 0.05
"""Share of answers cut off, from which on accuracy says less than it seems to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """One thing that may be claimed, or not."""

    verdict: Verdict
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Other:
    """Another run's adapter on the same problems: of another seed, or a control."""

    name: str
    seed: int
    control: str
    """`none`, `random` or `shuffled`."""
    strict: Values
    gain: Mapping[str, Any]
    """Its own difference from the base, by the strict rule."""
    behind: Mapping[str, Any]
    """The claimed adapter's strict accuracy less its own, paired."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All that sentences follow from."""

    results: Mapping[str, Any]
    answers: Sequence[Answer]
    overlaps: Sequence[Overlap]
    control: str
    """What the adapter itself was trained on: `none` if on its rewards, `unknown` for a foreign one."""
    others: Sequence[Other]
    trained_on_held_out: int | None
    """Held-out problems among those that the run's steps asked; None: nothing of that is recorded."""
    limit: int
    """Tokens an answer may have."""
    article_tokens: int


def other(name: str, *, seed: int, control: str, answers: Sequence[Answer], mine: Sequence[Answer]) -> Other:
    """Another run's answers beside the claimed adapter's and the base's."""
    theirs = strict_of(answers, ADAPTER)
    return Other(
        name=name,
        seed=seed,
        control=control,
        strict=theirs,
        gain=difference(strict_of(mine, BASE), theirs, seed=seed),
        behind=difference(theirs, strict_of(mine, ADAPTER), seed=seed),
    )


def strict_of(answers: Sequence[Answer], side: str, judge: str = "strict", part: str = HELD_OUT) -> Values:
    """Greedy scores by problem.

    Args:
        answers: Of any models and sets of problems.
        side: Base or adapter.
        judge: Whose scores.
        part: The set of problems.
    """
    kept = [answer for answer in answers if answer.side == side and answer.part == part]
    return measures(kept).get(GREEDY, {}).get(judge, {})


def sentences(evidence: Evidence) -> list[Sentence]:
    """All of them, the most important first."""
    return [
        *_trained_on(evidence),
        *_leakage(evidence),
        *_gain(evidence),
        *_form(evidence),
        *_article(evidence),
        *_truncation(evidence),
        *_controls(evidence),
        *_seeds(evidence),
    ]


def _trained_on(evidence: Evidence) -> list[Sentence]:
    if evidence.control in ("none", "unknown"):
        return []
    said = {
        "random": "uniform random draws in place of its rewards",
        "shuffled": "its rewards dealt out anew at random within each group, so at the same rate",
    }
    text = f"This adapter was trained on {said.get(evidence.control, evidence.control)}: it is a control, and whatever "
    return [Sentence(verdict="no", text=f"{text}it gained was not learned from rewards.")]


def _leakage(evidence: Evidence) -> list[Sentence]:
    found = []
    exact = sum(len(one.exact) for one in evidence.overlaps if one.first == "held-out")
    asked = evidence.trained_on_held_out
    if exact or asked:
        text = f"{exact} held-out questions stand in training or header, and {asked or 0} were asked in training"
        found.append(Sentence(verdict="no", text=f"{text}: these figures are not about unseen problems."))
    else:
        recorded = "" if asked is None else ", and none was asked in a recorded step"
        text = f"No held-out question is in the training problems or in the header{recorded}."
        found.append(Sentence(verdict="yes" if evidence.control != "unknown" else "open", text=text))
    if evidence.control == "unknown":
        text = "What a foreign adapter was trained on is not recorded: leakage was looked for in the data named here."
        found.append(Sentence(verdict="open", text=text))
    for one in evidence.overlaps:
        if one.first == "held-out" and one.near:
            text = (
                f"{len({pair.first for pair in one.near})} held-out questions are nearly the same as one in the "
                f"{one.second} (similarity {one.near[0].similarity:.2f} at most), {one.same_numbers} pairs with the "
                f"same numbers: the claim is about problems of the same making, not of another kind."
            )
            found.append(Sentence(verdict="open", text=text))
    return found


def _gain(evidence: Evidence) -> list[Sentence]:
    found = []
    for rule in ("strict", "lenient"):
        changed = _changed(evidence, rule)
        if changed is None:
            continue
        told = f"{_levels(evidence, rule)}: {change(rule, changed)} points on {changed['num_problems']} problems"
        p = f" (p {p_value(changed)})" if p_value(changed) else ""
        if _is_shown(changed):
            found.append(Sentence(verdict="yes", text=f"{rule.capitalize()} accuracy rose: {told}{p}."))
        elif changed["high"] < 0:
            found.append(Sentence(verdict="no", text=f"{rule.capitalize()} accuracy fell: {told}{p}."))
        else:
            why = "the interval holds 0" if changed["low"] <= 0 else "too few problems changed for the exact test"
            text = f"No change of {rule} accuracy may be claimed, as {why}: {told}{p}."
            found.append(Sentence(verdict="no", text=text))
    return found


def _is_shown(changed: Mapping[str, Any]) -> bool:
    """Whether a gain may be claimed: by its interval, and by the exact test where there is one."""
    return bool(changed["low"] > 0 and changed.get("p", 0.0) < ALPHA)


def _form(evidence: Evidence) -> list[Sentence]:
    strict, lenient, ends = (_changed(evidence, rule) for rule in ("strict", "lenient", "ends_by_itself"))
    found = []
    if strict and lenient:
        gap = change("strict", _gap(evidence, "strict", "lenient", HELD_OUT))
        text = (
            f"The strict gain is {gap} points more than the lenient one: so much of it is form, answers that were "
            f"there before, and not in the form that was asked for."
        )
        found.append(Sentence(verdict="open", text=text))
    if ends:
        told = f"{_levels(evidence, 'ends_by_itself')}, {change('', ends)} points."
        if _is_shown(ends):
            found.append(Sentence(verdict="yes", text=f"Stops by itself: {told}"))
        else:
            found.append(Sentence(verdict="no", text=f"No gain in stopping by itself may be claimed: {told}"))
    return found


def _article(evidence: Evidence) -> list[Sentence]:
    part = TRAIN if TRAIN in evidence.results else HELD_OUT
    if "article" not in evidence.results[part].get("difference", {}).get(GREEDY, {}):
        return []
    changed = evidence.results[part]["difference"][GREEDY]["article"]
    gap = change("", _gap(evidence, "article", "lenient", part))
    misread = misreadings(evidence.answers, part)
    where = "training problems" if part == TRAIN else "held-out problems"
    text = (
        f"The article's own evaluation (last integer of prompt and completion together, no stops, up to "
        f"{evidence.article_tokens} tokens) says {change('', changed)} points on {changed['num_problems']} {where}. On "
        f"the same completions that is {gap} points more than by our lenient rule, which is reading and stopping, not "
        f"answers: "
        f"{misread[BASE][0]} right answers of the base and {misread[ADAPTER][0]} of the adapter are misread by it, and "
        f"{misread[BASE][1]} and {misread[ADAPTER][1]} wrong ones taken for right."
    )
    return [Sentence(verdict="open", text=text)]


def _truncation(evidence: Evidence) -> list[Sentence]:
    shares = {
        side: figures[GREEDY]["truncated"]["estimate"] for side, figures in evidence.results[HELD_OUT]["sides"].items()
    }
    told = ", ".join(f"{side} {percent(share, 1)}" for side, share in shares.items())
    if max(shares.values()) <= TRUNCATED:
        return [Sentence(verdict="yes", text=f"The limit of {evidence.limit} tokens cuts few answers off: {told}.")]
    text = f"The limit of {evidence.limit} tokens cuts answers off ({told}): with more room both may be higher."
    return [Sentence(verdict="open", text=text)]


def _controls(evidence: Evidence) -> list[Sentence]:
    controls = [one for one in evidence.others if one.control != "none"]
    if not controls:
        if evidence.control not in ("none", "unknown"):
            return []
        text = "That the gain comes from the rewards is not shown: no run on random rewards was given (--control)."
        return [Sentence(verdict="open", text=text)]
    found = []
    for one in controls:
        beside = f"{one.name} ({one.control} rewards, seed {one.seed}) gained {change('', one.gain)} points"
        if one.behind["low"] > 0:
            text = f"The gain needs the rewards: the control {beside}; this adapter is {change('', one.behind)} ahead."
            found.append(Sentence(verdict="yes", text=text))
        else:
            text = f"The gain is not told apart from that of the control: {beside}; ahead by {change('', one.behind)}."
            found.append(Sentence(verdict="no", text=text))
    return found


def _seeds(evidence: Evidence) -> list[Sentence]:
    same = [one for one in evidence.others if one.control == "none"]
    seed = evidence.results["seed"]
    if not same:
        text = f"One seed ({seed}): the intervals cover which problems were asked, not how another seed would train."
        return [Sentence(verdict="open", text=text)]
    gains = [one.gain["estimate"] for one in same]
    if mine := _changed(evidence, "strict"):
        gains.append(mine["estimate"])
    told = f"{len(gains)} seeds ({', '.join(map(str, [seed, *(one.seed for one in same)]))})"
    text = f"Over {told} the strict gain runs from {100 * min(gains):+.1f} to {100 * max(gains):+.1f} points."
    return [Sentence(verdict="yes" if min(gains) > 0 else "no", text=text)]


def misreadings(answers: Sequence[Answer], part: str) -> dict[str, tuple[int, int]]:
    """By side: right answers (lenient rule) that the article's evaluation misreads, and wrong ones taken for right."""
    found = {}
    for side in (BASE, ADAPTER):
        lenient, article = (strict_of(answers, side, judge, part) for judge in ("lenient", "article"))
        both = [(lenient[one], article[one]) for one in lenient.keys() & article.keys()]
        found[side] = (sum(ours > theirs for ours, theirs in both), sum(ours < theirs for ours, theirs in both))
    return found


def _gap(evidence: Evidence, rule: str, other_rule: str, part: str) -> dict[str, Any]:
    """By how much more one rule's gain is than another's on the same answers, paired."""
    sides = {
        (side, judge): strict_of(evidence.answers, side, judge, part)
        for side in (BASE, ADAPTER)
        for judge in (rule, other_rule)
    }
    shared = sorted(set.intersection(*(set(values) for values in sides.values())))
    before, after = (
        [sides[side, rule][one] - sides[side, other_rule][one] for one in shared] for side in (BASE, ADAPTER)
    )
    return asdict(bootstrap_difference(before, after, seed=evidence.results["seed"]))


def _changed(evidence: Evidence, rule: str) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = evidence.results[HELD_OUT].get("difference", {}).get(GREEDY, {}).get(rule)
    return found


def _levels(evidence: Evidence, rule: str) -> str:
    sides = evidence.results[HELD_OUT]["sides"]
    return " → ".join(percent(sides[side][GREEDY][rule]["estimate"], 1) for side in (BASE, ADAPTER))
