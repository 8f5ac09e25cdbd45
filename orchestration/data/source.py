"""Prompts in the order of training, with the ones that do not fit counted and left out."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from orchestration.data.curriculum import Curriculum
from orchestration.data.curriculum_config import CurriculumConfig
from orchestration.errors import DataError
from orchestration.types import BuiltPrompt, CurriculumState, Problem


class PromptSource:
    """An endless source: epoch by epoch, each in an order of its own, or as a curriculum says. Built prompts are made
    when they are drawn."""

    def __init__(
        self,
        problems: Sequence[Problem],
        build: Callable[[Problem], BuiltPrompt | None],
        seed: int,
        curriculum: CurriculumConfig | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Begin at the first problem.

        Args:
            build: makes a problem's prompt; None where it is too long.
            seed: of the order.
            curriculum: which problems are drawn how often.
            weights: the task's own, by category, where the curriculum has none.

        Raises:
            ConfigError: the weights are for other categories.
        """
        self._problems, self._build, self._seed = {problem.problem_id: problem for problem in problems}, build, seed
        self._curriculum, self._weights = curriculum or CurriculumConfig(), weights
        self._order = self._new_order(None)
        self._first: deque[str] = deque()
        self._digest: str | None = None

    @property
    def position(self) -> int:
        """Problems drawn so far, those passed over included."""
        return self._order.position

    @property
    def curriculum(self) -> CurriculumState:
        """Where the order stands; `restore` goes on from it."""
        return self._order.state()

    @property
    def num_dropped(self) -> int:
        """Problems that the curriculum leaves out now."""
        return self._order.num_dropped

    def observe(self, problem_id: str, pass_rate: float) -> None:
        """The share of right completions in a group of a problem, by which the curriculum goes on.

        Args:
            problem_id: Of a problem of this source.
            pass_rate: From 0 to 1.
        """
        self._order.observe(problem_id, pass_rate)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Ids of problems that `restore` put first and that nobody has drawn yet."""
        return tuple(self._first)

    def digest(self) -> str:
        """SHA-256 over the problems, in order: what is asked, and what a verifier is told."""
        if self._digest is None:
            digest = hashlib.sha256()
            for problem in self._problems.values():
                content = (problem.problem_id, problem.question, problem.reference, problem.metadata, problem.category)
                digest.update(repr(content).encode("utf-8", "replace"))
            self._digest = digest.hexdigest()
        return self._digest

    def next(self) -> BuiltPrompt:
        """The next prompt that fits.

        Raises:
            DataError: A whole epoch went by without one.
        """
        for _ in range(len(self._problems) + len(self._first)):
            problem = self._problems[self._first.popleft()] if self._first else self._order.take()
            built = self._build(problem)
            if built is not None:
                return built
        raise DataError(self._nothing_fits())

    def check(self) -> None:
        """Find out now, not after the engines' start, whether any prompt fits. Draws nothing.

        Raises:
            DataError: None does.
        """
        if all(self._build(problem) is None for problem in self._problems.values()):
            raise DataError(self._nothing_fits())

    def restore(self, position: int, pending: Sequence[str], curriculum: CurriculumState | None = None) -> None:
        """Go on from `position`, with the problems `pending` (ids) first.

        Args:
            curriculum: where the order stood; None: it was one without, at `position`.

        Raises DataError when one of them is not in the data: the files or their settings have changed.
        """
        unknown = [name for name in pending if name not in self._problems]
        if unknown:
            raise DataError(
                f"problem {unknown[0]!r} of the stopped run is not in the training data any more; "
                f"choose another run_dir"
            )
        self._order = self._new_order(curriculum or CurriculumState(positions={"": position}))
        self._first = deque(pending)

    def _new_order(self, state: CurriculumState | None) -> Curriculum:
        problems = tuple(self._problems.values())
        return Curriculum(problems, self._seed, self._curriculum, self._weights, state)

    def _nothing_fits(self) -> str:
        return (
            f"all {len(self._problems)} training prompts are longer than the context; lower data.num_shots or raise "
            f"rollout.max_model_len"
        )
