"""Held-out accuracy: greedy answers, scored by the task's judges."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestration.concurrency import gather_or_cancel
from orchestration.errors import RewardsUnavailableError
from orchestration.run.ports import Generator, Scorer
from orchestration.types import BuiltPrompt
from rollout_server.types import Completion, SamplingParams, Turn

_NUMBERS = itertools.count()


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores of held-out answers."""

    scores: Mapping[str, tuple[float | None, ...]]
    """By judge (`strict`, `lenient`), one a problem, in their order; None: the service could not score it."""
    num_tokens: int
    completions_N: tuple[Completion, ...] = field(repr=False)

    def accuracies(self) -> dict[str, float]:
        """Mean score by judge.

        Raises:
            RewardsUnavailableError: A judge scored nothing.
        """
        return {name: mean_scored(scores_N) for name, scores_N in self.scores.items()}


def mean_scored(scores_N: Sequence[float | None]) -> float:
    """Mean over what was scored; what could not be scored is left out, not counted as wrong.

    Raises RewardsUnavailableError when nothing was scored.
    """
    scored = [score for score in scores_N if score is not None]
    if not scored:
        raise RewardsUnavailableError("the reward service could not score a single held-out answer; see its log")
    return sum(scored) / len(scored)


async def evaluate(
    *,
    generator: Generator,
    judges: Mapping[str, Scorer],
    problems: Sequence[BuiltPrompt],
    sampling: SamplingParams,
    together: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Answer every problem greedily with what is served now, and score the answers.

    Args:
        judges: who scores, by name; of each the first reward counts.
        sampling: only its lengths and stops are used.
        together: nothing else is being generated: all problems begin as one, and in order, so that which share an
            engine's batches does not depend on when they arrive.
        on_progress: told how many of all problems are done.

    Raises what generating or scoring raises.
    """
    greedy = replace(sampling, num_generations=1, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)
    done, key = 0, f"evaluation-{next(_NUMBERS)}"

    async def one(index: int, built: BuiltPrompt) -> tuple[Completion, list[float | None]]:
        nonlocal done
        turn = Turn(key=key, index=index, size=len(problems)) if together else None
        (completion,) = await generator.generate(replace(built.prompt, turn=turn), greedy)
        answers = await gather_or_cancel(
            judge.score(built.problem, built.text, [completion]) for judge in judges.values()
        )
        done += 1
        on_progress(done, len(problems))
        return completion, [scored.rewards[0] for (scored,) in answers]

    rows = await gather_or_cancel(one(index, built) for index, built in enumerate(problems))
    return Evaluation(
        scores={name: tuple(scores[index] for _, scores in rows) for index, name in enumerate(judges)},
        num_tokens=sum(completion.num_sampled for completion, _ in rows),
        completions_N=tuple(completion for completion, _ in rows),
    )
