"""Tasks and environments, ours and other people's, to an update: one real engine, learner and service for all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from learner.types import ScoredCompletion, ScoredGroup
from orchestration.cluster.local import LocalGenerator, local_generator
from orchestration.cluster.local_learner import LocalLearner, local_learner
from orchestration.environments.environment import Enters, Step, Surroundings
from orchestration.episodes.generator import acting
from orchestration.models.prompting import make_prompt_builder, training_sampling
from orchestration.models.resolve import resolve_model
from orchestration.models.tokenizer import load_tokenizer
from orchestration.run.evaluation import evaluate
from orchestration.run.rewards import check_rewards
from orchestration.run.scorer import make_scorers
from orchestration.settings.config import load_config
from reward_service.child import start_in_subprocess
from reward_service.clients.asynchronous import RewardClient
from reward_service.settings import ServiceSettings
from tests.orchestration.environments.packages import openenv_server, use_gymnasium, use_verifiers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

ENGINE = (
    *("model.name=tiny", "prompts_per_step=2", "max_steps=9", "data.num_shots=0", "learner.lora.r=16"),
    *("rollout.num_generations=4", "rollout.max_completion_length=640", "rollout.max_model_len=1152"),
    *("rollout.kv_cache_gib=0.1", "episodes.max_turn_length=16", "episodes.max_turns=3"),
)


@dataclass(frozen=True)
class Rooms:
    """What runs of many tasks share."""

    model_path: Path
    generator: LocalGenerator
    learner: LocalLearner
    client: RewardClient
    tokenizer: Any

    def decoded(self, member: ScoredCompletion) -> str:
        """The prompt of an episode that began by itself."""
        return str(self.tokenizer.decode(list(member.completion.own_prompt_token_ids or ())))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rooms(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rooms]:
    config = load_config("guess", ENGINE)
    model_path = Path(resolve_model("tiny", None))
    names = ("environment", "code", "python", "symbolic", "regex", "repetition", "math")
    names += ("gsm8k_correctness", "last_number", "reasoning_gym")
    served = ServiceSettings(port=0, rewards=names)
    log = tmp_path_factory.mktemp("service") / "service.log"
    async with AsyncExitStack() as stack:
        service = stack.enter_context(start_in_subprocess(served, log_path=log))
        client = await stack.enter_async_context(RewardClient(service.url))
        learner = await stack.enter_async_context(local_learner(model_path=model_path, config=config, device="cpu"))
        generator = await stack.enter_async_context(
            local_generator(model_path=model_path, config=config.rollout, device="cpu")
        )
        yield Rooms(model_path, generator, learner, client, load_tokenizer(model_path))


@dataclass(frozen=True)
class Stepped:
    """What came of one step on a task."""

    members: Sequence[ScoredCompletion]
    accuracies: dict[str, float]


async def stepped(rooms: Rooms, recipe: str, *words: str) -> Stepped:
    """Two groups are played, scored, learned from and published; then held-out problems are played."""
    config = load_config(recipe, [*ENGINE, *words])
    problems = config.data.load()
    check_rewards(config, problems)
    builder = make_prompt_builder(config, problems, rooms.model_path)
    playing = acting(rooms.generator, config, problems, builder, rooms.client, device="cpu")
    scorer, judges = make_scorers(config, rooms.client, run_id="test")
    sampling = training_sampling(config, builder)
    groups = []
    for number, built in enumerate(builder.build_all(problems.train[:2]).prompts):
        completions = await playing.generate(replace(built.prompt, seed=number), sampling)
        members = tuple(await scorer.score(built.problem, built.text, completions))
        groups.append(
            ScoredGroup(prompt_id=built.prompt.prompt_id, prompt_token_ids=built.prompt.token_ids, members=members)
        )
    members = [member for group in groups for member in group.members]
    assert [member.completion.failure for member in members] == [None] * len(members)
    assert sum(member.completion.num_retokenised for member in members) == 0
    update = await rooms.learner.update(groups)
    assert update.values["sampling_logprob_difference_max"] < 1e-3  # of all turns: served is trained
    (report,) = await playing.publish(await rooms.learner.export_adapter())
    assert report.probe_difference is not None
    held_out = await evaluate(
        generator=playing, judges=judges, problems=builder.build_all(problems.eval[:2]).prompts, sampling=sampling
    )
    return Stepped(members, held_out.accuracies())


async def test_a_calculator_is_at_hand(rooms: Rooms) -> None:
    step = await stepped(rooms, "calculator")
    assert step.accuracies.keys() == {"strict", "lenient"}
    assert all(member.total is not None for member in step.members)


async def test_code_has_a_second_try(rooms: Rooms) -> None:
    step = await stepped(rooms, "code-repair", "data.num_eval=2", "data.num_train=20", "data.difficulty=[1]")
    assert step.accuracies == {"strict": 0, "first_try": 0}
    for member in step.members:
        assert len(member.completion.turns) == 2
        assert [turn.reward for turn in member.completion.turns] == [0, 0]
        assert "tests pass.\n" in member.completion.turns[0].observation


async def test_gymnasiums_frozen_lake_is_walked_on(rooms: Rooms) -> None:
    use_gymnasium()
    step = await stepped(rooms, "guess", "data=gymnasium:FrozenLake-v1", "data.options={render_mode: ansi}")
    shown = rooms.decoded(step.members[0])
    assert "Game " in shown
    assert "SFFF" in shown.replace("\x1b[41mS\x1b[0m", "S")


async def test_a_class_for_trls_environment_factory_is_played_as_it_is(rooms: Rooms) -> None:
    step = await stepped(rooms, "guess", "data=trl:tests.orchestration.environments.trl_world:Counter")
    assert "Bring it to 3." in rooms.decoded(step.members[0])
    assert [member.rewards for member in step.members] == [(0.0,)] * 8  # asked of get_reward, at the end
    assert all(member.completion.turns[-1].reward == 0.0 for member in step.members)


async def test_an_openenv_server_is_played_by_its_url(rooms: Rooms, tmp_path: Path) -> None:
    with openenv_server(tmp_path / "server.log") as url:
        step = await stepped(rooms, "guess", f"data=openenv:{url}", "data.observation_field=text")
    assert "Seed " in rooms.decoded(step.members[0])
    for member in step.members:
        assert len(member.completion.turns) == 2
        assert member.completion.turns[0].observation.startswith("Heard ")
        paid = [1 / (1 + len(turn.text)) for turn in member.completion.turns]
        assert member.rewards == pytest.approx([sum(paid)])


async def test_an_environment_of_verifiers_plays_by_itself(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    use_verifiers(monkeypatch)
    words = ("data=verifiers:rlvr_sums", "data.num_train=20", "data.num_eval=4")
    step = await stepped(rooms, "guess", *words)
    assert step.accuracies.keys() == {"strict"}
    for member in step.members:
        (turn,) = member.completion.turns  # a model of a million parameters calls nothing
        assert not member.completion.own_prompt_token_ids
        assert member.rewards[0] in (pytest.approx(paid + 0.5 / (1 + len(turn.text.strip()))) for paid in (0, 1))
    task = load_config("guess", words).data
    problem = task.load().train[0]
    world = task.environment()
    assert isinstance(world, Enters)
    world.enter(Surroundings(max_turns=2))
    assert await world.reset(problem) is None  # what the prompt says already
    heard = await world.step('So:\n```sums_add\n{"a": 2, "b": 3}\n```')
    assert heard == Step(({"role": "tool", "name": "sums_add", "content": "5"},))
    cut = await world.step('```sums_add\n{"a": 2\n```')
    assert cut.done  # its last turn: the environment says what that is worth
    assert cut.reward is not None
    await world.close()


@pytest.mark.parametrize("task", ["code", "symbolic"])
async def test_code_and_expressions_are_learned_from(rooms: Rooms, task: str) -> None:
    step = await stepped(rooms, "tiny", f"data={task}", "data.num_eval=4", "rollout.max_completion_length=24")
    assert len(step.members) == 8
    assert all(member.rewards[0] is not None and member.total is not None for member in step.members)
    assert "strict" in step.accuracies


async def test_a_data_set_of_reasoning_gym_is_named_in_one_word(rooms: Rooms) -> None:
    pytest.importorskip("reasoning_gym")
    step = await stepped(rooms, "tiny", "data=reasoning_gym:basic_arithmetic", "data.num_train=4", "data.num_eval=2")
    assert all(member.rewards[0] is not None for member in step.members)
