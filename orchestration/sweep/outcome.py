"""What the runs of a sweep gained, put together: seeds in one row, controls in rows of their own. Pure, but for scipy's
intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any, Final

from orchestration.evals.answers import ADAPTER, BASE, GREEDY, HELD_OUT, Answer
from orchestration.evals.figures import Values, measures
from orchestration.evals.table import aligned
from orchestration.report.text import percent
from orchestration.run.intervals import Interval, bootstrap_difference, bootstrap_mean
from orchestration.sweep.grid import NO_CONTROL, Point

CONTROLS: Final = {
    "none": "rewards",
    "random": "random rewards (control: uniform draws)",
    "shuffled": "random rewards (control: dealt out anew, at the same rate)",
}
INTERVALS: Final = (
    "Held-out accuracy, greedy. Intervals hold 95 %: bootstrap over the problems, of the mean over seeds."
)
NOTE: Final = f"{INTERVALS} Gains are paired; what another seed would bring shows in the last column alone."


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Runs that differ by their seed alone."""

    settings: str
    """`num_shots=2`."""
    control: str
    seeds: Sequence[str]
    before: Interval
    after: Interval
    gain: Interval
    """Mean over seeds, paired by problem."""
    gains: Sequence[float]
    """Of each seed."""
    num_problems: int

    @property
    def label(self) -> str:
        """What it was trained on."""
        return CONTROLS.get(self.control, self.control)


def rows(points: Sequence[Point], answers: Mapping[str, Sequence[Answer]], *, rule: str = "strict") -> list[Row]:
    """One row for each group of seeds of which at least one run is evaluated, in the order of the sweep.

    Args:
        answers: by the run's name.
        rule: the judge whose scores count.
    """
    groups: dict[tuple[Any, str], list[Point]] = {}
    for point in points:
        if point.name in answers:
            groups.setdefault((point.group, point.control), []).append(point)
    found = [_row(members, [answers[point.name] for point in members], rule) for members in groups.values()]
    return [row for row in found if row is not None]


def _row(points: Sequence[Point], answers: Sequence[Sequence[Answer]], rule: str) -> Row | None:
    befores, afters = ([_values(one, side, rule) for one in answers] for side in (BASE, ADAPTER))
    shared = sorted(set.intersection(*(set(values) for values in (*befores, *afters))))
    if not shared:
        return None
    before, after = ([mean(values[one] for values in sides) for one in shared] for sides in (befores, afters))
    gains = [mean(a[one] - b[one] for one in shared) for b, a in zip(befores, afters, strict=True)]
    name = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in points[0].group)
    return Row(
        settings=name,
        control=points[0].control,
        seeds=[point.values.get("seed", "0") for point in points],
        before=bootstrap_mean(before, seed=0),
        after=bootstrap_mean(after, seed=0),
        gain=bootstrap_difference(before, after, seed=0),
        gains=gains,
        num_problems=len(shared),
    )


def _values(answers: Sequence[Answer], side: str, rule: str) -> Values:
    return measures(one for one in answers if one.side == side and one.part == HELD_OUT).get(GREEDY, {}).get(rule, {})


def table(found: Mapping[str, Sequence[Row]], *, title: str, missing: int) -> str:
    """All rows of each rule in plain text."""
    lines = [["", "trained on", "rule", "problems", "before", "after", "gain", "seeds: gain of each"]]
    for rule, of in found.items():
        lines += [
            [
                row.settings,
                row.label,
                rule,
                str(row.num_problems),
                _share(row.before),
                _share(row.after),
                _points(row.gain),
                ", ".join(f"{seed}: {100 * gain:+.1f}" for seed, gain in zip(row.seeds, row.gains, strict=True)),
            ]
            for row in of
        ]
    left = [f"{missing} runs of the sweep are not done: what stands here is of the others."] if missing else []
    return "\n".join([title, "", *aligned(lines), "", NOTE, *left])


def facts(found: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """For JSON."""
    return {rule: [asdict(row) | {"label": row.label} for row in of] for rule, of in found.items()}


def is_control(row: Row) -> bool:
    """Whether its rewards were replaced."""
    return row.control != NO_CONTROL


def _share(interval: Interval) -> str:
    return f"{percent(interval.estimate, 1)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _points(interval: Interval) -> str:
    return f"{100 * interval.estimate:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
