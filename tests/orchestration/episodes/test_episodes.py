"""Episodes token by token: a scripted engine, real environments and the tiny model's own tokenizer and template."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from learner.types import ScoredCompletion, ScoredGroup
from orchestration.bench.runs.episodes import recomputed
from orchestration.concurrency import gather_or_cancel
from orchestration.data.prompts import PromptBuilder
from orchestration.data.task import PromptLayout
from orchestration.data.tasks.guess import Guess
from orchestration.environments.environment import Conversation, Environment, Step
from orchestration.episodes.generator import EpisodeGenerator, acting
from orchestration.episodes.lockstep import Lockstep
from orchestration.episodes.rendering import TurnRenderer
from orchestration.errors import ConfigError, WorkerDiedError
from orchestration.models.prompting import make_prompt_builder
from orchestration.models.resolve import resolve_model
from orchestration.models.tokenizer import load_tokenizer
from orchestration.run.ledger.records import packed, unpacked
from orchestration.run.ledger.tables import completions_table
from orchestration.run.metrics import hit_share
from orchestration.run.rewards import answer_of, check_rewards, episode_of, reward_item
from orchestration.run.scorer import TurnCreditScorer
from orchestration.settings.config import load_config
from orchestration.settings.episodes import EpisodeConfig
from orchestration.trace.audit import Decided, differences
from orchestration.types import Problem
from reward_service.commands import score_one
from reward_service.rewards.environment import Params, paid
from reward_service.settings import ServiceSettings
from reward_service.types import RewardSpec
from rollout_server.arrays import TokenIds
from rollout_server.types import Completion, FinishReason, Prompt, SamplingParams, Turn
from tests.orchestration.fakes import record_of
from tests.waiting import others_run

PROBLEM = Problem(problem_id="p", question="The number is 1, 2 or 3.", reference={"final_answer": "3"})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(Path(resolve_model("tiny", None)))


class Scripted:
    """An engine that says what it is told to, and remembers what it was asked."""

    def __init__(
        self,
        tokenizer: Any,
        *turns: Sequence[str],
        cached: int = 0,
        version: int | None = None,
        end: str = "<|end|>",
    ) -> None:
        self.tokenizer, self.turns, self.asked = tokenizer, list(turns), list[Prompt]()
        self.cached, self.version, self.end = cached, version, end

    max_sequences = None

    async def publish(self, adapter: Any) -> Sequence[Any]:
        return []

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        self.asked.append(prompt)
        said = self.turns.pop(0)
        assert len(said) == sampling.num_generations
        return [self._completion(text, sampling) for text in said]

    def _completion(self, text: str, sampling: SamplingParams) -> Completion:
        ids = self.tokenizer.encode(text + self.end, add_special_tokens=False)
        cut = len(ids) > sampling.max_completion_length
        ids = ids[: sampling.max_completion_length]
        return Completion(
            prompt_id="p",
            token_ids=TokenIds(ids),
            sampling_logprobs=[-1.0] * len(ids),
            text=text,
            finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
            adapter_version=len(self.asked) if self.version is None else self.version,
            num_cached_tokens=self.cached if len(self.asked) > 1 else 0,
            cache_block=4,
        )


def played(
    engine: Scripted,
    *,
    environment: Callable[[], Environment] = lambda: Guess().environment(),
    num_generations: int = 1,
    max_length: int = 200,
    **settings: Any,
) -> Sequence[Completion]:
    builder = PromptBuilder(engine.tokenizer, layout=PromptLayout())
    generator = new_generator(engine, builder, environment, **settings)
    sampling = SamplingParams(num_generations=num_generations, max_completion_length=max_length)
    return asyncio.run(generator.generate(prompt_of(builder), sampling))


def prompt_of(builder: PromptBuilder) -> Prompt:
    built = builder.build(PROBLEM)
    assert built is not None
    return replace(built.prompt, seed=5)


def new_generator(
    engine: Scripted,
    builder: PromptBuilder,
    environment: Callable[[], Environment],
    *,
    lockstep: Lockstep | None = None,
    **settings: Any,
) -> EpisodeGenerator:
    return EpisodeGenerator(
        engine,
        problems={"p": PROBLEM},
        open_environment=environment,
        builder=builder,
        settings=EpisodeConfig(**settings),
        lockstep=lockstep,
    )


def test_two_turns_are_the_tokens_that_were_sampled_and_what_the_template_puts_between(tokenizer: Any) -> None:
    engine = Scripted(tokenizer, ["2"], ["3"])
    (episode,) = played(engine)
    assert episode.text == "2<|end|><|user|>It is higher.<|assistant|>3<|end|>"
    said = [tokenizer.decode(list(episode.token_ids[start:stop])) for start, stop in episode.sampled]
    assert said == ["2<|end|>", "3<|end|>"]
    first, second = engine.asked
    assert tuple(second.token_ids) == (*first.token_ids, *episode.token_ids[: episode.sampled[1][0]])
    assert first.affinity == second.affinity
    assert first.seed != second.seed
    whole = [{"role": "user", "content": PROBLEM.text}, {"role": "assistant", "content": "2"}]
    whole += [{"role": "user", "content": "It is higher."}]
    assert tokenizer.decode(list(second.token_ids)) == tokenizer.apply_chat_template(
        whole, tokenize=False, add_generation_prompt=True
    )
    given = [value for value in episode.sampling_logprobs if value == 0]
    assert len(given) == len(episode.token_ids) - episode.num_sampled > 0
    assert [turn.reward for turn in episode.turns] == [None, 1.0]
    assert (episode.finish_reason, episode.num_retokenised) == (FinishReason.STOP, 0)
    assert (episode.adapter_version, [turn.adapter_version for turn in episode.turns]) == (1, [1, 2])
    changed = replace(episode, token_ids=[token + 1 for token in episode.token_ids])
    assert changed.num_retokenised == episode.num_sampled


def test_the_first_turn_of_a_group_is_one_call_and_each_episode_goes_its_own_way(tokenizer: Any) -> None:
    engine = Scripted(tokenizer, ["3", "2", "none"], ["1"], ["3"])
    episodes = played(engine, num_generations=3)
    assert [len(episode.turns) for episode in episodes] == [1, 2, 2]
    assert [episode.turns[-1].reward for episode in episodes] == [1.0, 0.0, 1.0]
    assert "Say a number." in episodes[2].text


class Counting:
    """Answers at length, pays for each turn, and never ends."""

    closed = 0

    def __init__(self, fail: str = "", delay_s: float = 0.0, begins: str | None = None) -> None:
        self.fail, self.delay_s, self.begins = fail, delay_s, begins

    async def reset(self, problem: Problem) -> str | None:
        if self.fail == "reset":
            raise RuntimeError("no world")
        return self.begins

    async def step(self, action: str) -> Step:
        await asyncio.sleep(self.delay_s)
        if self.fail == "step":
            raise ValueError("no\nanswer")
        return Step("Go on.", reward=0.5)

    async def close(self) -> None:
        type(self).closed += 1
        raise RuntimeError("nobody minds")


@pytest.mark.parametrize(
    ("settings", "reason", "num_turns"),
    [
        ({"max_turns": 3}, FinishReason.TURNS, 3),
        ({"max_length": 14}, FinishReason.LENGTH, 2),
        ({"timeout_s": 1e-9}, FinishReason.TIME, 1),
    ],
    ids=["turns", "tokens", "time"],
)
def test_limits_end_an_episode_each_with_its_reason(
    tokenizer: Any, settings: dict[str, Any], reason: FinishReason, num_turns: int
) -> None:
    (episode,) = played(Scripted(tokenizer, *[["7"]] * 9), environment=Counting, **settings)
    assert (episode.finish_reason, len(episode.turns)) == (reason, num_turns)
    assert episode.sampled[-1][1] == len(episode.token_ids)  # it ends with what was sampled
    assert episode.turns[-1].observation == ""


def test_a_turn_that_is_cut_ends_with_the_templates_own_end(tokenizer: Any) -> None:
    (episode,) = played(Scripted(tokenizer, ["7777777"], ["7"]), environment=Counting, max_turns=2, max_turn_length=3)
    assert episode.text == "777<|end|><|user|>Go on.<|assistant|>7<|end|>"
    assert [stop - start for start, stop in episode.sampled] == [3, 2]


@pytest.mark.parametrize("what", ["reset", "step", "slow"])
def test_an_environment_that_fails_is_its_own_episodes_null_with_a_reason(tokenizer: Any, what: str) -> None:
    worlds = [Counting(), Counting(what, delay_s=60 if what == "slow" else 0)]
    engine = Scripted(tokenizer, ["1", "2"])
    before = Counting.closed
    good, bad = played(engine, environment=lambda: worlds.pop(0), num_generations=2, max_turns=1, step_timeout_s=0.2)
    assert Counting.closed == before + 2
    assert (good.failure, bad.finish_reason) == (None, FinishReason.FAILED)
    assert {"reset": "no world", "step": "no answer", "slow": "episodes.step_timeout_s=0.2"}[what] in str(bad.failure)
    scores = [
        score_one(
            [RewardSpec(name="environment")],
            reward_item(PROBLEM, prompt="", completion="", episode=episode_of(one)),
            ServiceSettings(rewards=("environment",)),
        ).rewards["environment"]
        for one in (good, bad)
    ]
    assert [one.score for one in scores] == [0.5, None]
    assert bad.failure in str(scores[1].details)


def test_hosts_that_die_too_often_end_the_run_and_not_the_episode_alone(tokenizer: Any) -> None:
    class Lost(Counting):
        async def step(self, action: str) -> Step:
            raise WorkerDiedError("6 failures within 600 s are more than max_restarts=5 allows")

    with pytest.raises(WorkerDiedError, match="max_restarts=5"):
        played(Scripted(tokenizer, ["1"]), environment=Lost)


def test_what_an_environment_shows_at_first_is_part_of_that_episodes_prompt(tokenizer: Any) -> None:
    engine = Scripted(tokenizer, ["1"], ["2"])
    begins = ["Once.", "Twice."]
    episodes = played(engine, environment=lambda: Counting(begins=begins.pop(0)), num_generations=2, max_turns=1)
    for episode, shown, prompt in zip(episodes, ("Once.", "Twice."), engine.asked, strict=True):
        assert episode.own_prompt_token_ids == prompt.token_ids
        assert tokenizer.decode(list(prompt.token_ids)).endswith(f"<|user|>{PROBLEM.text}\n{shown}<|assistant|>")


FORGETFUL = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% else %}<|assistant|>{{ m.content.split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(("said", "rewritten"), [("<think>1 or 2</think>2", True), ("2", False), (" 2 \n", False)])
def test_a_template_that_rewrites_history_is_noticed(tokenizer: Any, said: str, rewritten: bool) -> None:
    own, tokenizer.chat_template = tokenizer.chat_template, FORGETFUL
    try:
        renderer = TurnRenderer(PromptBuilder(tokenizer, layout=PromptLayout()))
        history = [{"role": "user", "content": "Q"}]
        end = tokenizer.convert_tokens_to_ids("<|end|>")
        given = renderer.between(history, said, end, "Go on.")
        assert tokenizer.decode(list(given.token_ids)) == "<|user|>Go on.<|assistant|>"
        assert given.rewrites_history is rewritten
    finally:
        tokenizer.chat_template = own


def test_what_a_turn_can_find_in_the_cache_is_what_the_turn_before_computed_in_whole_blocks(tokenizer: Any) -> None:
    engine = Scripted(tokenizer, ["2"], ["3"], cached=8)
    (episode,) = played(engine)
    first, second = engine.asked
    computed = len(first.token_ids) + 1  # the second of the two sampled tokens was not put in
    assert [turn.num_cacheable for turn in episode.turns] == [0, 0]  # another version has other keys and values
    engine = Scripted(tokenizer, ["2"], ["3"], cached=8, version=1)
    (episode,) = played(engine)
    assert [turn.num_cacheable for turn in episode.turns] == [0, computed // 4 * 4]
    assert hit_share([episode]) == 8 / (computed // 4 * 4)
    assert recomputed(first, episode) == computed - 8
    assert len(second.token_ids) > computed


@pytest.mark.parametrize("said", ["<think>1 or 2</think>2", "2"])
def test_a_history_that_a_real_template_rewrites_is_gone_on_from_as_a_fork(tokenizer: Any, said: str) -> None:
    folder = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    own, tokenizer.chat_template = tokenizer.chat_template, (folder / "qwen3.jinja").read_text()
    try:
        engine = Scripted(tokenizer, [said], ["<think>3!</think>1"], ["3"], end="<|im_end|>")
        (episode,) = played(engine, environment=lambda: Counting(), max_turns=3, max_length=300)
        asked = [tokenizer.decode(list(prompt.token_ids)) for prompt in engine.asked]
        assert [len(prompt) < 2000 for prompt in asked] == [True] * 3
        thinks = "think" in said
        assert ["1 or 2" in prompt for prompt in asked] == [False] * 3  # the engine sees what the template gives
        assert [len(episode.forks), "3!" in asked[2]] == [1 + thinks, False]
        pieces = episode.pieces(engine.asked[0].token_ids)
        assert len(pieces) == 2 + thinks
        ends = [tokenizer.decode(list(prompt + episode.token_ids[start:stop])) for prompt, start, stop in pieces]
        assert said in ends[0]
        assert "3!" in ends[-2]
        sampled = [tokenizer.decode(list(episode.token_ids[start:stop])) for start, stop in episode.sampled]
        assert sampled == [f"{text}<|im_end|>" for text in (said, "<think>3!</think>1", "3")]
        assert episode.num_retokenised == 0
        group = ScoredGroup(
            prompt_id="p",
            prompt_token_ids=engine.asked[0].token_ids,
            members=(ScoredCompletion(completion=episode, rewards=(1.0,), total=1.0),),
        )
        assert unpacked(packed(group), ScoredGroup) == group  # forks are in a step's record
    finally:
        tokenizer.chat_template = own


def test_an_environment_that_keeps_the_conversation_itself_may_put_it_anew(tokenizer: Any) -> None:
    class Forgetful(Counting):
        async def step(self, action: str) -> Step:
            done = (await super().step(action)).done
            return Step(Conversation(({"role": "user", "content": f"You said {action}."},)), done=done)

    engine = Scripted(tokenizer, ["1"], ["2"])
    (episode,) = played(engine, environment=Forgetful, max_turns=2)
    first, second = (tokenizer.decode(list(prompt.token_ids)) for prompt in engine.asked)
    assert "You said 1." in second
    assert "1, 2 or 3" in first
    assert "1, 2 or 3" not in second
    assert [len(episode.forks), len(episode.turns), episode.num_retokenised] == [1, 2, 0]


def test_a_row_of_a_runs_table_is_scored_again_as_the_episode_that_it_was(tokenizer: Any) -> None:
    good, bad = Counting(), Counting("step")
    worlds = [good, bad]
    episodes = played(
        Scripted(tokenizer, ["1", "2"], ["3"]), environment=lambda: worlds.pop(0), num_generations=2, max_turns=2
    )
    members = tuple(
        ScoredCompletion(completion=one, rewards=(total,), total=total, turn_totals=turns)
        for one, total, turns in zip(episodes, (1.0, None), ((1.0, 0.5), ()), strict=True)
    )
    group = ScoredGroup(prompt_id="p", prompt_token_ids=(1,), members=members)
    rows = completions_table(record_of(1, [group], {"p": "Q"}, ("environment",))).to_pylist()
    assert [answer_of(row) for row in rows] == [(one.last_text, episode_of(one)) for one in episodes]
    assert [turn["total"] for turn in rows[0]["turns"]] == [1.0, 0.5]
    question, said = (sha256(text.encode()).hexdigest() for text in ("Q", episodes[0].last_text))
    decided = Decided(1, None, prompt_sha256=question, completion_sha256=said, rewards={}, total=1.0)
    assert differences(rows[0], decided, control=False) == []  # what the audit log has of an episode is its last turn
    assert answer_of({"completion": "7", "turns": [], "failure": None}) == ("7", None)


def test_environments_beyond_the_bound_wait_and_a_group_takes_its_places_together(tokenizer: Any) -> None:
    class Counted(Counting):
        here = most = 0

        async def reset(self, problem: Problem) -> None:
            Counted.here += 1
            Counted.most = max(Counted.most, Counted.here)
            await others_run()

        async def close(self) -> None:
            Counted.here -= 1

    engine = Scripted(tokenizer, *[["1", "2"]] * 5, *[])
    builder = PromptBuilder(tokenizer, layout=PromptLayout())
    generator = new_generator(engine, builder, Counted, max_turns=1, max_concurrent=3)
    assert generator.max_sequences == 3
    sampling = SamplingParams(num_generations=2, max_completion_length=50)

    async def five() -> list[Sequence[Completion]]:
        return await gather_or_cancel(generator.generate(prompt_of(builder), sampling) for _ in range(5))

    assert len(asyncio.run(five())) == 5
    assert (Counted.here, Counted.most) == (0, 2)


@pytest.mark.parametrize(("places", "together"), [(3, False), (4, True)])
def test_groups_that_have_no_places_together_do_not_wait_to_begin_together(
    tokenizer: Any, places: int, together: bool
) -> None:
    engine = Scripted(tokenizer, ["1", "2"], ["1", "2"])
    builder = PromptBuilder(tokenizer, layout=PromptLayout())
    generator = new_generator(engine, builder, Counting, max_turns=1, max_concurrent=places, lockstep=Lockstep())
    turns = [Turn(key="k", index=index, size=2) for index in range(2)]
    sampling = SamplingParams(num_generations=2, max_completion_length=50)

    async def both() -> None:
        await gather_or_cancel(generator.generate(replace(prompt_of(builder), turn=one), sampling) for one in turns)

    asyncio.run(both())
    assert [prompt.turn for prompt in engine.asked] == (turns if together else [None, None])


def test_in_a_mixture_each_task_is_played_or_asked_in_its_own_way(tokenizer: Any) -> None:
    tasks = "data.tasks={copy: {}, guess: {}, sums: {kind: calculator, num_shots: 0}}"
    config = load_config("tiny", ["data=mixture", tasks, "episodes.max_turns=2", "rollout.max_model_len=640"])
    problems = config.data.load()
    builder = make_prompt_builder(config, problems, Path(resolve_model("tiny", None)))
    one_of = {problem.part: problem for problem in problems.train}
    engine = Scripted(tokenizer, ["a"], ["0"], ["0"], ["a"])
    generator = acting(engine, config, problems, builder, device="cpu")
    sampling = SamplingParams(num_generations=1, max_completion_length=80)

    async def drawn(part: str) -> Completion:
        built = builder.build(one_of[part])
        assert built is not None
        (found,) = await generator.generate(replace(built.prompt, turn=Turn(key="k", index=0, size=3)), sampling)
        return found

    found = {part: asyncio.run(drawn(part)) for part in ("copy", "guess", "sums")}
    assert {part: len(one.turns) for part, one in found.items()} == {"copy": 0, "guess": 2, "sums": 1}
    assert generator.max_sequences is None
    assert not any(prompt.turn for prompt in engine.asked)  # who waits for an environment is not waited for
    assert "calculator" in tokenizer.decode(list(engine.asked[-1].token_ids))
    assert "calculator" not in tokenizer.decode(list(engine.asked[0].token_ids))
    check_rewards(config, problems)


def test_later_turns_of_groups_that_began_together_begin_together_on_their_workers(tokenizer: Any) -> None:
    engine = Scripted(tokenizer, ["1", "1"], ["1", "1"], *[["1"]] * 20)
    worlds = iter([Counting(delay_s=wait) for wait in (0.2, 0.0, 0.1, 0.0)])
    builder = PromptBuilder(tokenizer, layout=PromptLayout())
    generator = new_generator(engine, builder, lambda: next(worlds), lockstep=Lockstep(), max_turns=3)
    sampling = SamplingParams(num_generations=2, max_completion_length=100)

    async def both() -> None:
        turns = [Turn(key="k", index=index, size=2) for index in range(2)]
        await gather_or_cancel(generator.generate(replace(prompt_of(builder), turn=one), sampling) for one in turns)

    asyncio.run(both())
    later = [prompt.turn for prompt in engine.asked[2:]]
    assert len(later) == 8
    for number in (1, 2):
        places = [turn for turn in later if turn is not None and turn.key == f"k-turn-{number}"]
        assert [turn.index for turn in places] == [0, 1, 2, 3]  # in order, however long each environment took
        assert {(turn.size, turn.homes) for turn in places} == {(4, (0, 0, 1, 1))}


def test_groups_that_fail_or_end_are_waited_for_no_longer() -> None:
    async def played() -> list[Turn]:
        lockstep, turns = Lockstep(), [Turn(key="k", index=index, size=3) for index in range(3)]
        waiting = asyncio.create_task(lockstep.places(turns[0], 1, 2))
        await others_run()
        lockstep.leave(turns[1])
        assert await lockstep.places(turns[2], 1, 0) == []
        places = await waiting
        for turn in turns:
            lockstep.leave(turn)
        assert not lockstep._keys
        return places

    assert [(turn.index, turn.homes) for turn in asyncio.run(played())] == [(0, (0, 0)), (1, (0, 0))]


class Paid:
    """Scores an episode by what its environment paid, discounted by a half, and one for a good form."""

    reward_names = ("environment", "form")

    async def score(self, problem: Problem, prompt: str, completions: Sequence[Completion]) -> list[ScoredCompletion]:
        scores = [paid([turn.reward for turn in one.turns], Params(discount=0.5)) for one in completions]
        return [
            ScoredCompletion(completion=one, rewards=(score, 1.0), total=2 * score + 1)
            for one, score in zip(completions, scores, strict=True)
        ]


def test_a_turn_answers_for_what_is_paid_from_it_on_and_for_what_the_other_rewards_say(tokenizer: Any) -> None:
    (episode,) = played(Scripted(tokenizer, *[["7"]] * 3), environment=Counting, max_turns=3)
    rewards = (RewardSpec(name="environment", weight=2, params={"discount": 0.5}), RewardSpec(name="form"))
    (member,) = asyncio.run(TurnCreditScorer(Paid(), rewards).score(PROBLEM, "", [episode]))
    assert member.total == pytest.approx(2 * (0.5 + 0.25 + 0.125) + 1)
    assert member.turn_totals == pytest.approx((2 * 0.875 + 1, 2 * 0.75 + 1, 2 * 0.5 + 1))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reward.rewards=[{name: exact}]"], "needs the reward 'environment'"),
        (["reward.rewards=[{name: environment, params: {credit: last}}]"], "credit=sum"),
        (["learner.overlong_cache=8"], "overlong_cache"),
    ],
)
def test_credit_by_turns_is_refused_where_nothing_says_what_a_turn_is_paid(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("guess", ["episodes.credit=turn", *words])
    assert load_config("guess", ["episodes.credit=turn"]).episodes.credit == "turn"
    with pytest.raises(ConfigError, match=r"episodes\.max_concurrent=15 has no room for the 16 episodes"):
        load_config("guess", ["episodes.max_concurrent=15"])
