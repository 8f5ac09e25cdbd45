"""An evaluation's parts without an engine: rules, figures, the folder that it goes on from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.types import ScoredCompletion
from orchestration.errors import ConfigError
from orchestration.evals import lm_eval
from orchestration.evals.answers import ADAPTER, BASE, GREEDY, HELD_OUT, SAMPLED, Answer, Ended
from orchestration.evals.asking import Manner, ask, batches
from orchestration.evals.evaluation import Wanted, check_final_answers, check_turns, local_judges
from orchestration.evals.figures import ks, measures, pass_at_k, summary
from orchestration.evals.rules import article_score, last_integer, own_part, vote
from orchestration.evals.store import Store, as_json, locked
from orchestration.evals.table import table_of
from orchestration.run.intervals import mcnemar_exact
from orchestration.settings.config import load_config
from orchestration.types import BuiltPrompt, Problem
from rollout_server.types import Completion, EpisodeTurn, FinishReason, Prompt, SamplingParams


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_all_draws_of_k(num_samples: int, data: Any) -> None:
    right = data.draw(st.lists(st.booleans(), min_size=num_samples, max_size=num_samples))
    for k in range(1, num_samples + 1):
        draws = [any(draw) for draw in itertools.combinations(right, k)]
        assert pass_at_k(num_samples, sum(right), k) == pytest.approx(mean(draws))


def test_pass_at_k_without_meaning() -> None:
    with pytest.raises(ValueError, match="pass@3 of 1 right among 2"):
        pass_at_k(2, 1, 3)
    assert (ks(1), ks(8), ks(10)) == ([1], [1, 2, 4, 8], [1, 2, 4, 8, 10])


@pytest.mark.parametrize(
    ("texts", "speaker"),
    [
        (["it is 7", "6", "so 6.0", "no"], 1),
        (["#### 1,234", "7", "1234"], 0),
        (["none", "here"], None),
        (["3", "4"], 0),
    ],
)
def test_the_majority_has_a_speaker(texts: list[str], speaker: int | None) -> None:
    assert vote(texts) == speaker


def test_mcnemar_is_the_binomial_tail() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 0) == pytest.approx(2 * 0.5**5)
    assert mcnemar_exact(3, 3) == 1.0


def completion(text: str, tokens: int, finish: FinishReason = FinishReason.STOP) -> Completion:
    return Completion(
        prompt_id="p",
        token_ids=tuple(range(tokens)),
        sampling_logprobs=(0.0,) * tokens,
        text=text,
        finish_reason=finish,
        adapter_version=0,
    )


ASKED = SamplingParams(num_generations=1, max_completion_length=4, stop=("\n\n",), stop_token_ids=(2,))


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        (completion("ab", 2), ("ab", 2, "end")),
        (completion("abcde", 5), ("abc", 3, "end")),  # token 2 ends a turn
        (completion("a\n\nb", 2), ("a\n\n", 2, "stop")),
        (completion("ab", 2, FinishReason.LENGTH), ("ab", 2, "length")),
    ],
)
def test_what_would_have_been_judged_of_a_completion_that_ran_on(
    whole: Completion, part: tuple[str, int, Ended]
) -> None:
    assert own_part(whole, ASKED, lambda ids: "abcdefg"[: len(ids)]) == part


def test_the_limit_cuts_what_ran_on() -> None:
    asked = replace(ASKED, stop_token_ids=())
    assert own_part(completion("abcde", 5), asked, lambda ids: "abcdefg"[: len(ids)]) == ("abcd", 4, "length")


@pytest.mark.parametrize(
    ("finish", "last", "ended"),
    [
        (FinishReason.STOP, FinishReason.STOP, "end"),
        (FinishReason.STOP, FinishReason.LENGTH, "length"),  # the world took what was cut off as an answer
        (FinishReason.LENGTH, FinishReason.STOP, "length"),
        (FinishReason.TURNS, FinishReason.STOP, "turns"),
        (FinishReason.TIME, FinishReason.STOP, "time"),
    ],
)
def test_an_episode_is_judged_whole(finish: FinishReason, last: FinishReason, ended: Ended) -> None:
    turns = [
        EpisodeTurn(
            start=start, stop=stop, text="a\n\n", finish_reason=last, adapter_version=0, checksum=0, observation="no"
        )
        for start, stop in ((0, 2), (4, 6))
    ]
    whole = replace(completion("a\n\nno a\n\n", 6, finish), turns=tuple(turns))
    assert own_part(whole, ASKED, lambda ids: "") == ("a\n\nno a\n\n", 4, ended)


def test_an_episode_that_failed_says_so() -> None:
    assert own_part(replace(completion("", 0, FinishReason.FAILED), failure="gone"), ASKED, str)[1:] == (0, "failed")


@pytest.mark.parametrize(
    ("words", "wanted", "said"),
    [
        ([], Wanted(adapter=None, as_lm_eval=True), "'guess' is played in turns; leave it out"),
        (["episodes.max_concurrent=16"], Wanted(adapter=None, num_samples=17), "--samples 17 .* raise it, or ask for"),
    ],
)
def test_what_only_single_answers_have_is_refused_of_episodes(words: list[str], wanted: Wanted, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_turns(load_config("guess", words), wanted)


def test_the_articles_rule_reads_the_whole_text() -> None:
    answer = "4 + 3 = 7\n#### The final answer is 7"
    assert article_score("Question: 4 + 3?", answer, "7") == 1.0
    assert article_score("Question: 4 + 3?", f"{answer}\n\nQuestion: 5 + 5?", "7") == 0.0  # it ran on, and is misread
    assert article_score("Question: 4 + 3?", "no idea", "3") == 1.0  # the prompt's own last number
    assert article_score("", "it is 1,234.", "1,234") == 1.0
    assert article_score("", "0.5", "0.5") is None
    assert last_integer("none") is None


def answer(side: str, number: int, score: float | None, *, draw: str = GREEDY, sample: int = 0) -> Answer:
    return Answer(
        side=side,
        part=HELD_OUT,
        draw=draw,
        problem_id=f"p/{number}",
        category="even" if number % 2 == 0 else "odd",
        sample=sample,
        text=f"it is {sample % 2}",
        num_tokens=3,
        ended="end",
        scores={"strict": score},
    )


def test_figures_by_model_and_category_with_the_paired_difference() -> None:
    greedy = [answer(BASE, n, float(n < 2)) for n in range(10)] + [answer(ADAPTER, n, float(n < 7)) for n in range(10)]
    sampled = [
        answer(side, n, float(sample % 2 == 0), draw=SAMPLED, sample=sample)
        for side in (BASE, ADAPTER)
        for n in range(10)
        for sample in range(3)
    ]
    found = summary([*greedy, *sampled], seed=1)
    assert found["sides"][BASE][GREEDY]["strict"]["estimate"] == 0.2
    changed = found["difference"][GREEDY]["strict"]
    assert (changed["estimate"], changed["won"], changed["lost"]) == (0.5, 5, 0)
    assert changed["p"] == mcnemar_exact(5, 0)
    assert changed["low"] <= 0.5 <= changed["high"]
    assert found["sides"][BASE][SAMPLED]["strict pass@1"]["estimate"] == pytest.approx(2 / 3)
    assert found["sides"][BASE][SAMPLED]["strict maj@3"]["estimate"] == 1.0  # two of three say 0, which is right
    assert found["by_category"]["even"][ADAPTER]["strict"]["estimate"] == pytest.approx(4 / 5)
    table = table_of(
        {"model": "m", "adapter": "a", "num_shots": 2, "judges": ["strict"], "method": "", HELD_OUT: found}
    )
    assert "+50.0 [" in table
    assert "strict, odd" in table


def test_what_could_not_be_scored_is_not_wrong() -> None:
    found = measures([answer(BASE, 0, None), answer(BASE, 1, 1.0), answer(BASE, 2, None, draw=SAMPLED)])
    assert found[GREEDY]["strict"] == {"p/1": 1.0}
    assert SAMPLED not in found
    assert summary([answer(BASE, 0, None), answer(BASE, 1, 1.0)], seed=0)["unscored"] == 1


class Script:
    """An engine that says what it is told to, and a judge that keeps what it is shown."""

    reward_names = ("seen",)

    def __init__(self, *texts: str) -> None:
        self._texts = iter(texts)
        self.shown: list[str] = []
        self.asked: list[tuple[Prompt, SamplingParams]] = []

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        self.asked.append((prompt, sampling))
        return [completion(next(self._texts), 1) for _ in range(sampling.num_generations)]

    async def drop_prefix_cache(self) -> None: ...

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        self.shown += [one.text for one in completions]
        return [ScoredCompletion(completion=one, rewards=(1.0,), total=1.0) for one in completions]


def prompts(*answers: Any) -> list[BuiltPrompt]:
    problems = [Problem(problem_id=f"p/{one}", question=f"{one}?", reference={"final_answer": one}) for one in answers]
    return [
        BuiltPrompt(problem=one, text=one.text, prompt=Prompt(prompt_id=one.problem_id, token_ids=(1,)))
        for one in problems
    ]


async def test_answers_end_where_lm_evals_do_and_its_filters_judge_them() -> None:
    built, script, store = (
        prompts("72", "5"),
        Script("#### 72\n\nQuestion: 1?\n#### 2", "it is 5.<|im_end|>6"),
        Store(None),
    )
    manner = Manner(asked=replace(ASKED, stop=lm_eval.STOPS), seed=0, cut=lm_eval.cut)
    (batch,) = batches(BASE, {HELD_OUT: built}, manner, max_num_seqs=8)
    judges = local_judges(Wanted(adapter=None, as_lm_eval=True))
    await ask(
        [batch], script, script.drop_prefix_cache, {"seen": script}, judges, manner, str, store, on_problem=lambda: None
    )
    assert script.shown == ["#### 72\n\n", "it is 5."]
    found = store.read(batch.name) or []
    assert [one.scores for one in found] == [
        {"seen": 1.0, "strict_match": 1.0, "flexible_extract": 1.0},
        {"seen": 1.0, "strict_match": 0.0, "flexible_extract": 1.0},
    ]
    assert [one.ended for one in found] == ["stop", "stop"]


async def test_what_runs_on_is_asked_without_stops_and_judged_by_both_rules() -> None:
    built, script, store = prompts("7"), Script("7\n\nQuestion: 9"), Store(None)
    manner = Manner(asked=ASKED, seed=0, run_on_tokens=64)
    (batch,) = batches(BASE, {HELD_OUT: built}, manner, max_num_seqs=8)
    judges = local_judges(Wanted(adapter=None, article_tokens=64))
    await ask(
        [batch], script, script.drop_prefix_cache, {"seen": script}, judges, manner, str, store, on_problem=lambda: None
    )
    ((_, sampling),) = script.asked
    assert (sampling.stop, sampling.stop_token_ids, sampling.max_completion_length) == ((), (), 64)
    (found,) = store.read(batch.name) or []
    scores = {"seen": 1.0, "strict_match": 0.0, "flexible_extract": 1.0, "article": 0.0}
    assert (found.text, found.run_on, found.scores) == ("7\n\n", "7\n\nQuestion: 9", scores)


def test_batches_hold_what_an_engine_decodes_at_once() -> None:
    manner = Manner(asked=ASKED, seed=0, num_samples=4)
    found = list(batches(ADAPTER, {HELD_OUT: prompts(*range(10))}, manner, max_num_seqs=8))
    assert [(one.draw, len(one.prompts)) for one in found] == [(GREEDY, 8), (GREEDY, 2), *[(SAMPLED, 2)] * 5]
    assert len({one.name for one in found}) == len(found)


def test_a_task_without_final_answers_cannot_be_compared_with_lm_eval() -> None:
    with pytest.raises(ConfigError, match="--lm-eval-compatible compares final answers, and p/None has none"):
        check_final_answers([prompts(None)[0].problem])


def test_a_folder_goes_on_and_refuses_another_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    answers = [answer(BASE, 0, 1.0), answer(BASE, 1, None)]
    with locked(folder) as store:
        store.begin({"seed": 1})
        store.write("base-0", answers)
        with pytest.raises(ConfigError, match="another process evaluates into"), locked(folder):
            pass
    with locked(folder) as store:
        store.begin({"seed": 1})
        assert store.read("base-0") == answers
        assert store.read("base-1") is None
        store.end(answers, {"n": 1}, "table")
        with pytest.raises(ConfigError, match="holds an evaluation with another seed"):
            Store(folder).begin({"seed": 2})
    assert pyarrow.parquet.read_table(folder / "answers.parquet")["score_strict"].to_pylist() == [1.0, None]
    assert (folder / "results.json").read_bytes() == as_json({"n": 1})
    (folder / "answers" / "base-0.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        Store(folder).read("base-0")
    with pytest.raises(ConfigError, match="holds no evaluation"):
        Store(tmp_path).begin({})
