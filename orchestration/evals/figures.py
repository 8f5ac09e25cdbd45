"""From answers to figures: accuracy, pass@k, maj@k, by category, and the paired difference of two models. Pure, but for
scipy's intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from orchestration.evals.answers import ADAPTER, BASE, GREEDY, SAMPLED, Answer
from orchestration.evals.rules import vote
from orchestration.run.intervals import bootstrap_difference, bootstrap_mean, mcnemar_exact

METHOD: Final = (
    "Intervals hold 95 %: percentile bootstrap over the problems, 10,000 resamples (scipy.stats.bootstrap); "
    "differences are paired by problem. p is McNemar's exact test over the problems that one of both solves."
)

Values = dict[str, float]
"""By problem; what could not be scored is not in it."""
Figure = dict[str, Any]


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Probability that at least one of k completions drawn without replacement is right, 1 - C(n-c, k) / C(n, k): the
    unbiased estimator of pass@k (Chen et al. 2021, arXiv:2107.03374).

    Raises ValueError unless 0 <= num_right <= num_samples and 1 <= k <= num_samples.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 <= num_right <= num_samples and 1 <= k <= num_samples):
        raise ValueError(f"pass@{k} of {num_right} right among {num_samples} has no meaning")
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def ks(num_samples: int) -> list[int]:
    """The k of pass@k: powers of two up to the samples, and their number.

    >>> ks(10)
    [1, 2, 4, 8, 10]

    Args:
        num_samples: Of each problem; at least 1.
    """
    return sorted({2**power for power in range(num_samples.bit_length()) if 2**power <= num_samples} | {num_samples})


def measures(answers: Iterable[Answer]) -> dict[str, dict[str, Values]]:
    """One model's answers to one set of problems, as draw → measure → values.

    Greedy measures are the judges' names, `ends_by_itself`, `truncated` and `tokens`; sampled ones `JUDGE pass@k` and
    `JUDGE maj@k`. An answer is right if its score is 1. A problem with a completion that could not be scored has no
    pass@k of it.

    Args:
        answers: Of one model alone.
    """
    groups: defaultdict[tuple[str, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.draw, answer.problem_id].append(answer)
    found: dict[str, dict[str, Values]] = {}
    for (draw, problem_id), group in groups.items():
        group.sort(key=lambda answer: answer.sample)
        for name, value in (_greedy(group[0]) if draw == GREEDY else _sampled(group)).items():
            found.setdefault(draw, {}).setdefault(name, {})[problem_id] = value
    return found


def _greedy(answer: Answer) -> Values:
    return {
        **{name: score for name, score in answer.scores.items() if score is not None},
        "ends_by_itself": float(answer.ended == "end"),
        "truncated": float(answer.ended == "length"),
        "tokens": float(answer.num_tokens),
    }


def _sampled(group: Sequence[Answer]) -> Values:
    values: Values = {}
    winner = vote([answer.text for answer in group])
    for judge in group[0].scores:
        scores = [answer.scores[judge] for answer in group]
        right = [score >= 1.0 for score in scores if score is not None]
        if len(right) == len(scores):
            values |= {f"{judge} pass@{k}": pass_at_k(len(right), sum(right), k) for k in ks(len(right))}
            values[f"{judge} maj@{len(right)}"] = float(winner is not None and right[winner])
    return values


def summary(answers: Sequence[Answer], *, seed: int) -> dict[str, Any]:
    """All figures of one set of problems: by model, by category, and the adapter's difference from its base.

    Args:
        answers: Of base, adapter or both.
        seed: Of the bootstrap's draws.
    """
    sides = {
        side: measures(answer for answer in answers if answer.side == side)
        for side in dict.fromkeys(answer.side for answer in answers)
    }
    categories = dict(sorted({answer.problem_id: answer.category for answer in answers}.items()))
    found: dict[str, Any] = {
        "num_problems": len(categories),
        "unscored": sum(score is None for answer in answers for score in answer.scores.values()),
        "sides": {side: _each(draws, lambda values: _estimate(values, seed)) for side, draws in sides.items()},
    }
    if len(set(categories.values())) > 1:
        found["by_category"] = {
            category: _of_category({one for one, of in categories.items() if of == category}, sides, seed)
            for category in sorted(set(categories.values()))
        }
    if BASE in sides and ADAPTER in sides:
        found["difference"] = differences(sides[BASE], sides[ADAPTER], seed=seed)
    return found


def differences(
    before: Mapping[str, Mapping[str, Values]], after: Mapping[str, Mapping[str, Values]], *, seed: int
) -> dict[str, dict[str, Figure]]:
    """By draw and measure, `difference` of what both have.

    Args:
        before: As `measures` gives them.
        after: The same; what one of them lacks is left out.
        seed: Of the bootstrap's draws.
    """
    return {
        draw: {
            name: difference(before[draw][name], after[draw][name], seed=seed)
            for name in before[draw]
            if name in after[draw] and before[draw][name].keys() & after[draw][name].keys()
        }
        for draw in before
        if draw in after
    }


def difference(before: Values, after: Values, *, seed: int) -> Figure:
    """After less before over the problems that both have, with its interval.

    Args:
        before: Values by problem.
        after: As many or others; what only one side has does not count.
        seed: Of the bootstrap's draws.

    Returns:
        `estimate`, `low` and `high` (95 %), `num_problems`; of rights and wrongs `won`, `lost`, and McNemar's `p`.
    """
    shared = [problem_id for problem_id in before if problem_id in after]
    firsts, seconds = [before[one] for one in shared], [after[one] for one in shared]
    found: Figure = asdict(bootstrap_difference(firsts, seconds, seed=seed)) | {"num_problems": len(shared)}
    if {*firsts, *seconds} <= {0.0, 1.0}:
        won = sum(second > first for first, second in zip(firsts, seconds, strict=True))
        lost = sum(second < first for first, second in zip(firsts, seconds, strict=True))
        found |= {"won": won, "lost": lost, "p": mcnemar_exact(won, lost)}
    return found


def _of_category(
    problem_ids: set[str], sides: Mapping[str, Mapping[str, Mapping[str, Values]]], seed: int
) -> dict[str, Any]:
    """Accuracy of greedy answers, or pass@1, of some problems, by side and judge."""
    found: dict[str, Any] = {"num_problems": len(problem_ids)}
    for side, draws in sides.items():
        of_side = {}
        for draw, by_name in draws.items():
            for name, values in by_name.items():
                kept = {one: value for one, value in values.items() if one in problem_ids}
                if kept and (draw == GREEDY or (draw == SAMPLED and name.endswith("pass@1"))):
                    of_side[name] = _estimate(kept, seed)
        found[side] = of_side
    return found


def _each(draws: Mapping[str, Mapping[str, Values]], figure: Any) -> dict[str, dict[str, Figure]]:
    return {draw: {name: figure(values) for name, values in by_name.items()} for draw, by_name in draws.items()}


def _estimate(values: Values, seed: int) -> Figure:
    return asdict(bootstrap_mean(list(values.values()), seed=seed)) | {"num_problems": len(values)}
