"""Prompts in the order of training, with the ones that do not fit counted and left out."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence

from orchestration.data.cursor import DataCursor
from orchestration.errors import DataError
from orchestration.types import BuiltPrompt, Problem


class PromptSource:
    """An endless source: epoch by epoch, each in an order of its own. Built prompts are made when they are drawn."""

    def __init__(self, problems: Sequence[Problem], build: Callable[[Problem], BuiltPrompt | None], seed: int) -> None:
        self._problems, self._build, self._seed = {problem.problem_id: problem for problem in problems}, build, seed
        self._cursor = DataCursor(problems, seed)
        self._first: deque[str] = deque()
        self._digest: str | None = None

    @property
    def position(self) -> int:
        """Problems drawn so far, those passed over included."""
        return self._cursor.position

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

        Raises DataError when a whole epoch went by without one.
        """
        for _ in range(len(self._problems) + len(self._first)):
            problem = self._problems[self._first.popleft()] if self._first else self._cursor.take(1)[0]
            built = self._build(problem)
            if built is not None:
                return built
        raise DataError(self._nothing_fits())

    def check(self) -> None:
        """Find out now, not after the engines' start, whether any prompt fits. Draws nothing.

        Raises DataError when none does.
        """
        if all(self._build(problem) is None for problem in self._problems.values()):
            raise DataError(self._nothing_fits())

    def restore(self, position: int, pending: Sequence[str]) -> None:
        """Go on from `position`, with the problems `pending` (ids) first.

        Raises DataError when one of them is not in the data: the files or their settings have changed.
        """
        unknown = [name for name in pending if name not in self._problems]
        if unknown:
            raise DataError(
                f"problem {unknown[0]!r} of the stopped run is not in the training data any more; "
                f"choose another run_dir"
            )
        self._cursor = DataCursor(tuple(self._problems.values()), self._seed, position)
        self._first = deque(pending)

    def _nothing_fits(self) -> str:
        return (
            f"all {len(self._problems)} training prompts are longer than the context; lower data.num_shots or raise "
            f"rollout.max_model_len"
        )
