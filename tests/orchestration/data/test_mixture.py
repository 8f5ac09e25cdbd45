"""Several tasks in one run: each problem asked, rewarded and judged as its own task says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from learner.types import ScoredCompletion
from orchestration.errors import ConfigError
from orchestration.run.rewards import check_rewards
from orchestration.run.scorer import make_scorers
from orchestration.settings.config import RunConfig, dump_config, load_config
from orchestration.types import Problem
from reward_service.commands import score_one
from reward_service.types import ItemResult, RewardItem, RewardSpec
from rollout_server.types import Completion, FinishReason

TASKS = "{arithmetic: {num_train: 20, num_eval: 4}, code: {kind: programs, num_train: 10, num_eval: 4}, symbolic: {}}"
MIXED = ("data=mixture", f"data.tasks={TASKS}", "data.weights={code: 2}")


class Service:
    """The reward service's own scoring, in this process."""

    async def score(
        self,
        items: Sequence[RewardItem],
        rewards: Sequence[RewardSpec],
        run_id: str | None = None,
        policy_version: int | None = None,
    ) -> list[ItemResult]:
        return [score_one(rewards, item) for item in items]


def mixed(*words: str) -> RunConfig:
    return load_config("tiny", [*MIXED, *words])


def test_problems_carry_their_task_and_the_settings_read_back(tmp_path: Path) -> None:
    config = mixed()
    problems = config.data.load()
    assert {(p.part, p.category) for p in problems.train} == {
        (name, name) for name in ("arithmetic", "code", "symbolic")
    }
    assert len(problems.eval) == 4 + 4 + 20
    assert [spec.name for spec in config.rewards] == [
        "gsm8k_format", "gsm8k_correctness", "code", "symbolic", "regex", "repetition"
    ]  # fmt: skip
    assert config.data.category_weights() == {"arithmetic": 1, "code": 2, "symbolic": 1}
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(str(tmp_path / "again.yaml")).data == config.data
    check_rewards(config, problems)


def answered(problem: Problem) -> Completion:
    return Completion(
        prompt_id=problem.problem_id,
        text=problem.solution,
        token_ids=(1,),
        sampling_logprobs=(0.0,),
        finish_reason=FinishReason.STOP,
        adapter_version=0,
    )


def test_each_problem_has_its_own_rewards_and_judges() -> None:
    config = mixed("reward.rewards=[{name: gsm8k_correctness}, {name: code}, {name: symbolic}, {name: repetition}]")
    scorer, judges = make_scorers(config, Service(), run_id="test")
    problems = {problem.part: problem for problem in config.data.load().eval}

    async def scored(name: str) -> tuple[ScoredCompletion, list[float | None]]:
        problem = problems[name]
        (member,) = await scorer.score(problem, "", [answered(problem)])
        verdicts = [(await judge.score(problem, "", [answered(problem)]))[0].rewards[0] for judge in judges.values()]
        return member, verdicts

    found = {name: asyncio.run(scored(name)) for name in problems}
    assert {name: member.rewards for name, (member, _) in found.items()} == {
        "arithmetic": (1.0, None, None, None),
        "code": (None, 1.0, None, None),
        "symbolic": (None, None, 1.0, 0.0),
    }
    assert {name: member.total for name, (member, _) in found.items()} == dict.fromkeys(problems, 1.0)
    assert {name: verdicts for name, (_, verdicts) in found.items()} == {name: [1.0, 1.0] for name in problems}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("data.tasks={}",), "data.kind=mixture needs tasks"),
        (("data.weights={chess: 1}",), "data.weights names 'chess'; the tasks are: arithmetic, code, symbolic"),
        (("data.weights={code: 0}",), "data.weights: code=0 must be above 0"),
        (("data.tasks={a: {kind: chess}}",), "data.tasks.a: unknown task 'chess'"),
        (("data.tasks={code: {num_trains: 3}}",), "data.tasks.code.num_trains: Extra inputs are not permitted"),
        (("data.num_shots=2",), "data.num_shots=2"),
        (("data.tools=[calculator]",), "data.tools: each task of a mixture has tools of its own"),
        (
            ("data.tasks={guess: {}, copy: {}}", "episodes.credit=turn"),
            "episodes.credit=turn compares the turns of one",
        ),
        (("reward.rewards=[{name: code}]",), "none of reward.rewards is for the task 'arithmetic'"),
    ],
)
def test_what_is_wrong_is_one_sentence(words: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config("tiny", [*MIXED[:2], *words])
    assert complaint in str(raised.value)
