"""Held-out accuracy: greedy answers, scored strictly and leniently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from orchestration.concurrency import gather_or_cancel
from orchestration.errors import RewardsUnavailableError
from orchestration.run.ports import Generator, Scorer
from orchestration.types import BuiltPrompt
from rollout_server.types import Completion, SamplingParams

STRICT, LENIENT = "gsm8k_correctness", "last_number"
"""Rewards of the service that decide: the required answer line, and the last number in the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Accuracy on held-out problems. Index i is problem i; None: the service could not score it."""

    strict_N: tuple[float | None, ...]
    lenient_N: tuple[float | None, ...]
    num_tokens: int
    mean_completion_length: float
    completions_N: tuple[Completion, ...] = field(repr=False)

    def scores(self) -> dict[str, list[float | None]]:
        """Scores by name, as the summary and a saved state hold them."""
        return {"strict": list(self.strict_N), "lenient": list(self.lenient_N)}

    @property
    def strict_accuracy(self) -> float:
        return mean_scored(self.strict_N)

    @property
    def lenient_accuracy(self) -> float:
        return mean_scored(self.lenient_N)


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
    scorer: Scorer,
    problems: Sequence[BuiltPrompt],
    sampling: SamplingParams,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Answer every problem greedily with what is served now, and score the answers.

    Of `sampling` only lengths and stops are used. `scorer` must offer the rewards STRICT and LENIENT.
    """
    greedy = replace(sampling, num_generations=1, temperature=0.0, top_p=1.0, top_k=0)
    order = (list(scorer.reward_names).index(STRICT), list(scorer.reward_names).index(LENIENT))
    done = 0

    async def one(built: BuiltPrompt) -> tuple[float | None, float | None, Completion]:
        nonlocal done
        (completion,) = await generator.generate(built.prompt, greedy)
        (scored,) = await scorer.score(built.problem, built.text, [completion])
        done += 1
        on_progress(done, len(problems))
        return scored.rewards[order[0]], scored.rewards[order[1]], completion

    rows = await gather_or_cancel(one(built) for built in problems)
    lengths = [len(completion.token_ids) for _, _, completion in rows]
    return Evaluation(
        strict_N=tuple(strict for strict, _, _ in rows),
        lenient_N=tuple(lenient for _, lenient, _ in rows),
        num_tokens=sum(lengths),
        mean_completion_length=sum(lengths) / max(len(lengths), 1),
        completions_N=tuple(completion for _, _, completion in rows),
    )
