"""Which training problem is drawn next, by category and by what was measured of it.

The order is a function of the seed, of what was drawn and of the pass rates told so far: `state` holds all of that, and
an order that is restored from it goes on as if nothing had been.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from orchestration.data.curriculum_config import CurriculumConfig
from orchestration.data.cursor import DataCursor
from orchestration.errors import ConfigError
from orchestration.types import CurriculumState, Problem

_NEWEST = 0.5
"""Share of the newest measurement in a problem's pass rate."""


class Curriculum:
    """Draws problems lane by lane. A lane is a category if these have weights, else all problems are one; in each the
    problems come epoch by epoch, and those that are dropped or not accepted are passed over.

    Once every problem of every lane is dropped, they are drawn as if none were.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        seed: int,
        config: CurriculumConfig,
        weights: Mapping[str, float] | None = None,
        state: CurriculumState | None = None,
    ) -> None:
        """Begin, or go on from a state.

        Args:
            problems: all that may be drawn.
            seed: of the order.
            config: the options.
            weights: the task's own, where the options have none.

        Raises:
            ConfigError: a weight is negative, for a category that there is none of, or nothing is left to draw.
        """
        self._config, self._seed = config, seed
        weights = config.weights or weights or {}
        lanes = _lanes(problems, weights)
        self._weights = {lane: weights.get(lane, 1.0) for lane in lanes}
        state = state or CurriculumState()
        self._lanes = lanes
        self._cursors = {
            lane: DataCursor(members, f"{seed}/{lane}" if lane else seed, state.positions.get(lane, 0))
            for lane, members in lanes.items()
        }
        self._drawn = {lane: state.drawn.get(lane, 0) for lane in lanes}
        self._rates = dict(state.rates)
        self._measures = config.drop_solved_after or config.drop_unsolved_after or config.target_pass_rate

    @property
    def position(self) -> int:
        """Problems drawn so far, those passed over included."""
        return sum(cursor.position for cursor in self._cursors.values())

    @property
    def num_dropped(self) -> int:
        """Problems that are left out now."""
        return sum(self._is_dropped(problem) for members in self._lanes.values() for problem in members)

    def state(self) -> CurriculumState:
        """Where the order stands now."""
        positions = {lane: cursor.position for lane, cursor in self._cursors.items()}
        return CurriculumState(drawn=dict(self._drawn), positions=positions, rates=dict(self._rates))

    def observe(self, problem_id: str, pass_rate: float) -> None:
        """Takes in how often a group's problem was answered right; kept only where an option asks for it.

        Example: rates 1, 0 and 1 give 1, then 0.5, then 0.75.

        Args:
            problem_id: Of a training problem.
            pass_rate: The share of right completions, 0 to 1.
        """
        if not self._measures:
            return
        before, streak = self._rates.get(problem_id, (pass_rate, 0))
        rate = before + _NEWEST * (pass_rate - before)
        if pass_rate >= 1:
            streak = max(streak, 0) + 1
        elif pass_rate <= 0:
            streak = min(streak, 0) - 1
        else:
            streak = 0
        self._rates[problem_id] = rate, streak

    def take(self) -> Problem:
        """The next problem."""
        lane, all_dropped = self._next_lane()
        cursor, problem = self._cursors[lane], None
        for _ in range(round(2 * len(self._lanes[lane]) / self._config.least_share)):
            at = cursor.position
            candidate = cursor.take(1)[0]
            if all_dropped or not self._is_dropped(candidate):
                problem = candidate
                if all_dropped or self._accepts(candidate, lane, at):
                    break
        assert problem is not None, "the lane has one that is not dropped, and an epoch went by"
        self._drawn[lane] += 1
        return problem

    def _next_lane(self) -> tuple[str, bool]:
        """The lane that is farthest behind its share, and whether all problems are dropped."""
        left = [lane for lane, members in self._lanes.items() if not all(map(self._is_dropped, members))]
        lanes = left or list(self._lanes)
        total = sum(self._weights[lane] for lane in lanes)
        drawn = sum(self._drawn[lane] for lane in lanes)
        behind = {lane: self._weights[lane] / total * (drawn + 1) - self._drawn[lane] for lane in lanes}
        return max(behind, key=lambda lane: (behind[lane], self._weights[lane])), not left

    def _is_dropped(self, problem: Problem) -> bool:
        config, (_, streak) = self._config, self._rates.get(problem.problem_id, (0.0, 0))
        solved, unsolved = config.drop_solved_after, config.drop_unsolved_after
        return (solved > 0 and streak >= solved) or (unsolved > 0 and -streak >= unsolved)

    def _accepts(self, problem: Problem, lane: str, at: int) -> bool:
        target = self._config.target_pass_rate
        if target is None or problem.problem_id not in self._rates:
            return True
        rate, _ = self._rates[problem.problem_id]
        likely = max(self._config.least_share, 1 - abs(rate - target) / max(target, 1 - target))
        return random.Random(f"accept/{self._seed}/{lane}/{at}").random() < likely


def _lanes(problems: Sequence[Problem], weights: Mapping[str, float]) -> dict[str, tuple[Problem, ...]]:
    if not weights:
        return {"": tuple(problems)}
    lanes: dict[str, list[Problem]] = {}
    for problem in problems:
        lanes.setdefault(problem.category, []).append(problem)
    for name, weight in weights.items():
        if name not in lanes or weight < 0:
            wrong = "must not be negative" if name in lanes else f"categories are: {', '.join(sorted(lanes))}"
            raise ConfigError(f"curriculum.weights: {name}={weight:g}: {wrong}")
    found = {lane: tuple(members) for lane, members in lanes.items() if weights.get(lane, 1.0) > 0}
    if not found:
        raise ConfigError("curriculum.weights leave nothing to draw: give one category a weight above 0")
    return found
