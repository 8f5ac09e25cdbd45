"""Rewards and tasks meet before anything starts, and a run learns from any reward of the service.

pytest tests/orchestration/run/test_rewards.py -k table -s     prints all tasks × all rewards
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.cluster.reward.deployment import reward_client
from orchestration.concurrency import in_thread
from orchestration.data.problems import Problems
from orchestration.data.task import registered_tasks
from orchestration.errors import ConfigError, DataError
from orchestration.run.ledger.folder import RunFolder
from orchestration.run.loop import Rooms, TrainingLoop
from orchestration.run.rewards import check_rewards, reward_item
from orchestration.run.scorer import make_scorers
from orchestration.settings.config import RunConfig, load_config
from orchestration.types import BuiltPrompt, Problem
from reward_service.commands import describe_rewards, find_lacks, score_one
from reward_service.types import RewardSpec
from rollout_server.types import Completion, Prompt, SamplingParams
from tests.orchestration.fakes import FakeLearner, FakeSource, PublishingGenerator, RecordingReporter

NOT_SCORED_HERE = {"judge", "environment"}
"""The first asks a language model, which no test has; the second needs an episode: see test_episodes."""

REWARDS: Mapping[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    # name: parameters, reference, a completion that earns more, one that earns less
    "choice": ({}, {"final_answer": "B"}, "#### The final answer is B", "#### The final answer is A"),
    "code": (
        {},
        {"asserts": ["assert f(1) == 2"]},
        "```python\ndef f(x):\n    return 2 * x\n```",
        "```python\ndef f(x):\n    return 3 * x\n```",
    ),
    "exact": ({}, {"final_answer": "Rome"}, "#### The final answer is Rome", "#### The final answer is Oslo"),
    "gsm8k_correctness": ({}, {"final_answer": "7"}, "#### The final answer is 7", "#### The final answer is 8"),
    "gsm8k_format": ({}, {}, "#### The final answer is 7", "7"),
    "json_schema": ({}, {"schema": {"type": "integer"}}, "3", "[]"),
    "last_number": ({}, {"final_answer": "7"}, "so 7", "so 8"),
    "length": ({"max_length": 8, "cache": 8}, {}, "ab", "abcdefgh"),
    "math": ({}, {"final_answer": "1/2"}, r"\boxed{0.5}", r"\boxed{0.6}"),
    "reasoning_gym": (
        {"answer_in": "tags"},
        {
            "dataset": "basic_arithmetic",
            "entry": {"question": "1 + 1?", "answer": "2", "metadata": {"source_dataset": "basic_arithmetic"}},
        },
        "<answer>2</answer>",
        "<answer>3</answer>",
    ),
    "python": ({}, {}, "```python\nprint(1)\n```", "```python\n1 / 0\n```"),
    "regex": ({"pattern": r"answer: (\d+)", "group": 1}, {"final_answer": "7"}, "answer: 7", "answer: 8"),
    "repetition": ({}, {}, "one two three four five", "one one one one one one one one"),
    "symbolic": ({}, {"final_answer": "x^2"}, "#### The final answer is x*x", "#### The final answer is x"),
}


def present_rewards() -> list[str]:
    return [name for name in describe_rewards() if name not in NOT_SCORED_HERE]


def problem_for(name: str) -> Problem:
    return Problem(problem_id=f"p-{name}", question="?", reference=REWARDS[name][1])


@pytest.mark.parametrize("name", present_rewards())
def test_every_reward_scores_an_item_in_process(name: str) -> None:
    params, _, better, worse = REWARDS[name]
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    spec = RewardSpec(name=name, params=params)
    totals = [
        score_one([spec], reward_item(problem_for(name), prompt="?", completion=text)).total for text in (better, worse)
    ]
    assert None not in totals
    assert totals[0] > totals[1]  # type: ignore[operator]


def some_of_every_task(tmp_path: Path) -> dict[str, RunConfig]:
    (tmp_path / "gsm8k.jsonl").write_text(
        "".join(json.dumps({"question": f"{n}?", "answer": f"#### {n}"}) + "\n" for n in range(20))
    )
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"question": "99?", "answer": "#### 99"}) + "\n")
    (tmp_path / "table.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}?", "answer": str(n)}) + "\n" for n in range(20))
    )
    words = {
        "gsm8k": [f"data.train_file={tmp_path}/gsm8k.jsonl", f"data.eval_file={tmp_path}/held_out.jsonl"],
        "table": [f"data.train_file={tmp_path}/table.jsonl", "data.num_eval=2"],
        "reasoning_gym": ["data.num_train=5", "data.num_eval=2"],
    }
    return {
        name: load_config("tiny", [f"data={name}", *words.get(name, [])])
        for name in registered_tasks()
        if name != "mixture"
    }


def test_the_table_of_all_tasks_and_all_rewards_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each pair that fits scores one item of the task in this process; each task's own rewards are among them."""
    pytest.importorskip("reasoning_gym")
    names, rows = present_rewards(), []
    for task, config in some_of_every_task(tmp_path).items():
        if config.data.has_turns():  # its answers are turns, which the environment pays
            continue
        problem = config.data.load().train[0]
        item = reward_item(problem, prompt=problem.text, completion=problem.solution)
        fits = {}
        for name in names:
            spec = RewardSpec(name=name, params=REWARDS[name][0])
            if not find_lacks([spec], item):
                fits[name] = score_one([spec], item).rewards[name]
        own = {spec.name for spec in config.rewards}
        assert own <= fits.keys(), task
        assert all(fits[name].score is not None for name in own), (task, fits)
        for name, judge in config.judges.items():  # a task's own worked solution is right
            assert score_one([judge], item).rewards[judge.name].score == 1.0, (task, name)
        rows.append((task, fits))
    with capsys.disabled():
        print()
        for task, fits in rows:
            shown = (f"{name} {'null' if one.score is None else f'{one.score:g}'}" for name, one in fits.items())
            print(f"  {task:14} {', '.join(shown)}")


@pytest.mark.parametrize("recipe", ["arithmetic", "tiny"])
def test_every_recipe_scores_an_item_of_its_own(recipe: str) -> None:
    config = load_config(recipe)
    check_rewards(config, config.data.load())


@pytest.mark.parametrize(
    ("rewards", "error", "message"),
    [
        ("[{name: code}]", DataError, r"the reward 'code' reads one of .*\"tests\".* of a reference, and the problem "),
        ("[{name: json_schema}]", DataError, r"reads \"schema\" of a reference.*task 'copy' gives \"final_answer\""),
        ("[{name: no_such}]", ConfigError, "no_such"),
        ("[{name: regex}]", DataError, "'regex' reads \"pattern\""),
        ("[{name: length, params: {maximum: 3}}]", ConfigError, "length.*maximum"),
    ],
)
def test_what_a_reward_needs_and_a_task_does_not_give_is_said(
    rewards: str, error: type[Exception], message: str
) -> None:
    config = load_config("tiny", [f"reward.rewards={rewards}"])
    with pytest.raises(error, match=message):
        check_rewards(config, config.data.load())


def test_one_problem_of_many_that_lacks_a_key_is_found() -> None:
    config = load_config("tiny")
    problems = config.data.load()
    broken = replace(problems.train[7], reference={})
    with pytest.raises(DataError, match=rf"{broken.problem_id} of the task 'copy' gives nothing"):
        check_rewards(config, Problems(train=(*problems.train[:7], broken), eval=problems.eval))


def test_a_reference_that_no_verifier_understands_is_found() -> None:
    config = load_config("tiny")
    problems = config.data.load()
    broken = replace(problems.train[0], reference={"final_answer": "many"})
    with pytest.raises(DataError, match=r"'gsm8k_correctness' cannot score .*'many' is not a finite number"):
        check_rewards(config, Problems(train=(broken,), eval=problems.eval))


def test_a_reference_that_json_does_not_have_is_found() -> None:
    first = Problem(problem_id="1", question="?", reference={"final_answer": "3"})
    other = Problem(problem_id="2", question="?", reference={"final_answer": "3"}, metadata={"world": object()})
    problems = Problems(train=(first, other), eval=(replace(first, problem_id="3", question="!"),))
    with pytest.raises(DataError, match=r"problem 2 of the task 'arithmetic' cannot be sent as JSON: .* type object"):
        check_rewards(load_config("arithmetic"), problems)


@pytest.mark.parametrize("raised", [SystemExit(3), StopIteration(3)])
async def test_whatever_a_thread_ends_with_is_heard(raised: BaseException) -> None:
    def leave() -> None:
        raise raised

    with pytest.raises(RuntimeError, match="3"):
        await in_thread(leave)


@pytest.mark.parametrize("written", ["length", "[length]", "[{name: length}]"])
def test_a_reward_may_be_its_name_alone(written: str) -> None:
    assert load_config("tiny", [f"reward.rewards={written}"]).rewards == (RewardSpec(name="length"),)


def test_of_a_service_that_runs_already_only_what_is_known_here_is_checked() -> None:
    words = ["reward.url=http://127.0.0.1:9", "reward.rewards=[{name: theirs}, {name: json_schema}]"]
    config = load_config("tiny", words)
    with pytest.raises(DataError, match="'json_schema' reads"):
        check_rewards(config, config.data.load())


class Written(PublishingGenerator):
    """Writes the better and the worse completion of a reward in turn."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__()
        self._texts = texts

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        drawn = await super().generate(prompt, sampling)
        return [replace(one, text=self._texts[index % 2]) for index, one in enumerate(drawn)]


class OneProblem(FakeSource):
    """The same problem for ever."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self._problem = problem

    def next(self) -> BuiltPrompt:
        return replace(super().next(), problem=self._problem)


@asynccontextmanager
async def rooms_for(
    config: RunConfig, problem: Problem, texts: Sequence[str], logs: Path
) -> AsyncIterator[tuple[Rooms, FakeLearner]]:
    learner = FakeLearner()
    async with reward_client(config, logs) as client:
        scorer, judges = make_scorers(config, client, run_id="test")
        yield (
            Rooms(
                generator=Written(texts),
                learner=learner,
                scorer=scorer,
                judges=judges,
                source=OneProblem(problem),
                held_out=[OneProblem(problem).next()],
                sampling=SamplingParams(num_generations=2),
            ),
            learner,
        )


async def run_loop(config: RunConfig, problem: Problem, texts: Sequence[str]) -> list[Mapping[str, Any]]:
    """The rows of a run with a real reward service and nothing else real."""
    reporter = RecordingReporter()
    folder = RunFolder.create(config)
    try:
        async with rooms_for(config, problem, texts, folder.path / "logs") as (rooms, _):
            await TrainingLoop(config, rooms, folder, reporter, asyncio.Event()).run()
    finally:
        folder.close()
    return reporter.rows


def config_for(run: Path, rewards: Sequence[Mapping[str, Any]], **reward: Any) -> RunConfig:
    sizes = {"max_steps": 2, "prompts_per_step": 1, "eval_at_ends": False, "rollout": {"num_generations": 2}}
    return RunConfig.model_validate({"run_dir": str(run), **sizes, "reward": {"rewards": rewards, **reward}})


@pytest.mark.parametrize("name", present_rewards())
async def test_a_run_learns_from_every_reward(name: str, tmp_path: Path) -> None:
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    params, _, better, worse = REWARDS[name]
    config = config_for(tmp_path / "run", [{"name": name, "params": params}], timeout_s=60)
    problem = replace(problem_for(name), reference={"final_answer": "7", **REWARDS[name][1]})
    rows = await run_loop(config, problem, (better, worse))
    assert len(rows) == 2
    for row in rows:
        assert row["num_unscored"] == 0
        assert row[f"reward_{name}_std"] > 0


async def test_several_rewards_are_weighted_and_parametrised(tmp_path: Path) -> None:
    rewards = [
        {"name": "gsm8k_correctness", "weight": 2.0},
        {"name": "gsm8k_format", "weight": 0.5},
        {"name": "length", "weight": 1.0, "params": {"max_length": 40, "cache": 40}},
    ]
    config = config_for(tmp_path / "run", rewards)
    problem = Problem(problem_id="p", question="?", reference={"final_answer": "7"})
    (first, _) = await run_loop(config, problem, ("#### The final answer is 7", "#### The final answer is 8"))
    parts = 2 * first["reward_gsm8k_correctness_mean"] + 0.5 * first["reward_gsm8k_format_mean"]
    assert first["reward_mean"] == pytest.approx(parts + first["reward_length_mean"])
    assert first["accuracy"] == 0.5
    assert first["reward_length_mean"] < 0


async def test_a_reward_of_ones_own_is_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vowel_reward.py").write_text(
        "from reward_service.rewards.base import RewardParams\n"
        "class Params(RewardParams):\n"
        "    word: str = 'a'\n"
        "def vowels(completion, reference, params):\n"
        "    return completion.count(params.word) / reference['most']\n"
    )
    (tmp_path / "service.yaml").write_text(
        "custom_rewards: [{name: vowels, target: 'vowel_reward:vowels', low: 0, high: 1}]"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    rewards = [{"name": "vowels", "params": {"word": "e"}}]
    config = config_for(tmp_path / "run", rewards, settings_file=tmp_path / "service.yaml")
    problem = Problem(problem_id="p", question="?", reference={"most": 4, "final_answer": "7"})
    problems = Problems(train=(problem,), eval=(replace(problem, problem_id="e", question="!"),))
    check_rewards(config, problems)
    rows = await run_loop(config, problem, ("eel", "tree e"))
    assert [row["reward_vowels_mean"] for row in rows] == [pytest.approx((2 / 4 + 3 / 4) / 2)] * 2
