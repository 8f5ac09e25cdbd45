"""A judge beside a verifier: where they differ the verifier decides, and the share is in the row."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from learner.types import ScoredCompletion, ScoredGroup, UpdateMetrics
from orchestration.errors import ConfigError
from orchestration.run.metrics import step_row
from orchestration.run.rewards import check_rewards
from orchestration.run.scorer import VerifiedScorer
from orchestration.settings.config import load_config
from orchestration.types import Problem
from reward_service.types import RewardSpec
from rollout_server.types import Completion, FinishReason

REWARDS = (RewardSpec(name="math", weight=2), RewardSpec(name="judge", weight=0.5))
SCORES: list[tuple[float | None, float | None, float | None]] = [
    (1.0, 0.9, 2.45),
    (0.0, 0.2, 0.1),
    (0.0, 0.9, 0.45),  # the judge is persuaded: counts as 0
    (1.0, 0.2, 2.1),  # the judge is too strict: counts as 1
    (None, 0.9, 0.45),
    (0.0, None, 0.0),
]


class Inner:
    """Gives the scores above."""

    reward_names = tuple(spec.name for spec in REWARDS)

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        completion = Completion(
            prompt_id="p",
            text="",
            token_ids=(1,),
            sampling_logprobs=(0.0,),
            finish_reason=FinishReason.STOP,
            adapter_version=0,
        )
        return [ScoredCompletion(completion=completion, rewards=(v, j), total=total) for v, j, total in SCORES]


def test_where_they_differ_the_verifier_decides_and_the_share_is_told() -> None:
    problem = Problem(problem_id="p", question="?", reference={})
    members = asyncio.run(VerifiedScorer(Inner(), REWARDS, "math").score(problem, "", []))
    assert [member.total for member in members] == [2.45, 0.1, 0.0, 2.5, 0.45, 0.0]
    assert [member.rewards for member in members] == [(v, j) for v, j, _ in SCORES], "what was measured stays"
    assert ["overruled" in member.reasons for member in members] == [False, False, True, True, False, False]
    row = step_row(
        [ScoredGroup(prompt_id="p", prompt_token_ids=(1,), members=tuple(members))],
        UpdateMetrics(step=1),
        Inner.reward_names,
        {},
        verifier="math",
        generated_tokens=1,
        step_seconds=1.0,
    )
    assert row["judge_overruled"] == 0.5, "two of the four that both have scored"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("reward.verifier=math", "reward.verifier='math' needs 'math' in reward.rewards"),
        ("reward.verifier=judge", "is the judge itself"),
        ("learner.multi_objective_aggregation=normalize_then_sum", "use sum_then_normalize"),
        ("reward.rewards=[{name: gsm8k_correctness}]", "needs 'judge' in reward.rewards"),
    ],
)
def test_what_does_not_fit_is_said(words: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config("judged", [words])


def test_a_judge_without_an_endpoint_is_said_before_anything_starts() -> None:
    config = load_config("judged", ["data.num_train=2", "data.num_eval=2"])
    with pytest.raises(ConfigError, match=r"judge: \{base_url: URL.*reward\.settings_file=FILE"):
        check_rewards(config, config.data.load())
