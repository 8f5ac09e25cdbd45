"""A toy task for tests of the machinery: say the number that the question names."""

from __future__ import annotations

import random

from orchestration.data.problems import Problems, answer_line
from orchestration.errors import DataError
from orchestration.settings.config import CopyData
from orchestration.types import Problem

WORDINGS = (
    "Repeat the number {n}.",
    "Copy {n}.",
    "Say {n} again.",
    "Write down {n}.",
    "The number is {n}.",
    "Which number is {n}?",
)
MAX_SHOTS = 8


def make_copy_task(config: CopyData) -> Problems:
    """Make the sets from all pairs of wording and number, each pair used at most once; category is the wording's index.

    Raises:
        DataError: there are fewer pairs than problems asked for.
    """
    pairs = [(wording, number) for wording in range(len(WORDINGS)) for number in range(config.max_number + 1)]
    needed = config.num_train + config.num_eval + MAX_SHOTS
    if needed > len(pairs):
        raise DataError(
            f"the copy task has {len(pairs)} different problems with data.max_number={config.max_number}, and "
            f"{needed} are needed; raise it or lower data.num_train"
        )
    random.Random(f"copy/{config.seed}").shuffle(pairs)
    shots, rest = pairs[:MAX_SHOTS], pairs[MAX_SHOTS:]
    return Problems(
        train=_problems(rest[config.num_eval :][: config.num_train], "train"),
        eval=_problems(rest[: config.num_eval], "eval"),
        shots=_problems(shots[: config.num_shots], "shot"),
    )


def _problems(pairs: list[tuple[int, int]], split: str) -> tuple[Problem, ...]:
    return tuple(
        Problem(
            problem_id=f"copy/{split}/{index}",
            question=WORDINGS[wording].format(n=number),
            final_answer=str(number),
            solution=answer_line(str(number)),
            category=str(wording),
        )
        for index, (wording, number) in enumerate(pairs)
    )
