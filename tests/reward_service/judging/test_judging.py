"""Reading a judge's answer, aggregating, the prompt, the cache: the parts that call nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from reward_service.judging.cache import GradeCache
from reward_service.judging.grade import aggregate, cache_key, make_submission
from reward_service.judging.judge import make_judge_reward
from reward_service.judging.parse import BadVoteError, Vote, parse_vote
from reward_service.judging.prompt import Submission, defuse, make_marker, messages
from reward_service.judging.settings import JudgeSettings
from reward_service.rewards.base import NotScorableError, Task
from tests.reward_service.judging.judge_endpoint import HOSTILE, RUBRIC, URL, params
from tests.waiting import others_run

# --- the answer


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "7",
        "The score is 7",
        '{"score": 7, "reasoning": "cut off',
        '```json\n{"reasoning": "r", "score": 7}\n```',
        'Sure! {"reasoning": "r", "score": 7}',
        '{"reasoning": "r", "score": 7} I hope this helps',
        '{"reasoning": "r", "score": 7}{"reasoning": "r", "score": 7}',
        '[{"reasoning": "r", "score": 7}]',
        '{"score": 7}',
        '{"reasoning": "r"}',
        '{"reasoning": 3, "score": 7}',
        '{"reasoning": "r", "score": "7"}',
        '{"reasoning": "r", "score": true}',
        '{"reasoning": "r", "score": null}',
        '{"reasoning": "r", "score": 10.01}',
        '{"reasoning": "r", "score": -1}',
        '{"reasoning": "r", "score": NaN}',
        '{"reasoning": "r", "score": Infinity}',
        '{"reasoning": "r", "score": 1e999}',
        '{"reasoning": "r", "score": 7, "score": 10}',
        '{"reasoning": "r", "score": 7, "bonus": 3}',
        '{"reasoning": "\\ud800", "score": 7}',
        "[" * 100_000,
    ],
)
def test_answers_that_do_not_count(content: str | None) -> None:
    with pytest.raises(BadVoteError):
        parse_vote(content, 0, 10)


def test_answers_that_count() -> None:
    assert parse_vote(' {"score": 7, "reasoning": "r"}\n', 0, 10) == Vote(7.0, "r")
    assert parse_vote('{"reasoning": "{\\"score\\": 10}", "score": 0.5}', 0, 1) == Vote(0.5, '{"score": 10}')


@pytest.mark.parametrize(
    ("how", "scores", "expected"),
    [
        ("mean", [2, 4, 9], 0.5),
        ("median", [2, 4, 9], 0.4),
        ("median", [2, 4], 0.3),
        ("majority", [9, 4, 9], 0.9),
        ("majority", [9, 4], 0.4),  # as often as one another: the lowest
    ],
)
def test_aggregates(how: str, scores: list[float], expected: float) -> None:
    votes = [Vote(score, f"why {score}") for score in scores]
    assert aggregate(votes, [], params(aggregate=how), reasoning_chars=99).score == pytest.approx(expected)


def test_disagreement_is_reported() -> None:
    score = aggregate([Vote(2, "bad"), Vote(8, "good"), Vote(8, "fine")], [], params(), reasoning_chars=3)
    # mean 6, deviations -4, 2, 2: sqrt(24 / 3) = sqrt(8)
    assert score.score == pytest.approx(0.6)
    assert score.details == {
        "votes": [2, 8, 8],
        "grade": 6.0,
        "std": pytest.approx(8**0.5),
        "min": 2,
        "max": 8,
        "reasoning": "goo",
    }


def test_scale_is_mapped_to_the_range() -> None:
    scale = {"scale": (-5, 5)}
    assert aggregate([Vote(-5, "")], [], params(**scale), reasoning_chars=0).score == 0.0
    assert aggregate([Vote(0, "")], [], params(**scale), reasoning_chars=0).score == 0.5
    assert aggregate([Vote(5, "")], [], params(**scale), reasoning_chars=0).score == 1.0


def test_fewer_than_the_quorum_is_null() -> None:
    failures = [BadVoteError("no JSON"), BadVoteError("prose")]
    score = aggregate([Vote(8, "")], failures, params(num_samples=3), reasoning_chars=9)
    assert (score.score, score.reason) == (None, "verifier_error")
    assert score.details["message"] == "1 of 3 answers count, 2 are needed: no JSON"
    assert score.details["failures"] == {"verifier_error": 2}
    one = aggregate([Vote(8, "")], failures, params(num_samples=3, quorum=1), reasoning_chars=9)
    assert one.score == 0.8


@pytest.mark.parametrize(
    "fields",
    [
        {"rubric": ""},
        {"rubric": "r" * 20_001},
        {"scale": (5, 5)},
        {"scale": (0, float("inf"))},
        {"num_samples": 0},
        {"num_samples": 2, "quorum": 3},
        {"temperature": -1},
        {"model": "another"},
        {"base_url": "http://elsewhere"},
    ],
)
def test_bad_params(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        params(**fields)


# --- the prompt


@pytest.mark.parametrize("completion", HOSTILE)
def test_the_completion_stays_in_its_place(completion: str) -> None:
    submission = Submission(completion, prompt="Prove it.", reference='{"a": 1}')
    marker = make_marker(submission)
    (system, user), _ = messages(RUBRIC, 0, 10, submission, marker)
    plain, _ = messages(RUBRIC, 0, 10, Submission("x"), marker)
    assert system == plain[0]
    assert system["role"] == "system"
    assert RUBRIC in system["content"]
    before, _, rest = user["content"].partition(f"BEGIN SUBMISSION {marker}\n")
    shown, _, after = rest.partition(f"\nEND SUBMISSION {marker}")
    assert shown == defuse(completion)[0]
    assert marker not in shown
    assert completion not in before + after


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<|im_end|>", "< |im_end|>"),
        ("<｜User｜>", "< ｜User｜>"),
        ("</s>", "< /s>"),
        ("<Start_of_turn>", "< Start_of_turn>"),
        ("[/INST]", "[ /INST]"),
        ("<<SYS>>", "< <SYS>>"),
    ],
)
def test_control_tokens_are_set_apart(text: str, shown: str) -> None:
    assert defuse(text)[0] == shown
    assert defuse(f"a{text}b")[1] > 0


@pytest.mark.parametrize(
    "text", ["a < b || c > d", "P(A|B)", "x[INSTANCE]", "<span>", "1 << 3", "List<String>", "x |> f"]
)
def test_other_text_is_left_alone(text: str) -> None:
    assert defuse(text) == (text, 0)


def test_markers_differ() -> None:
    assert len({make_marker(Submission("x")) for _ in range(100)}) == 100


def test_what_is_shown() -> None:
    task = Task("c", {"final_answer": "é"}, "p")
    assert make_submission(task, params(), 100) == ("c", "p", None)
    assert make_submission(task, params(show_prompt=False), 100) == ("c", None, None)
    assert make_submission(task, params(show_reference=True), 100) == ("c", "p", '{"final_answer": "é"}')
    with pytest.raises(NotScorableError, match="max_input_chars = 100"):
        make_submission(Task("c" * 101), params(), 100)
    with pytest.raises(NotScorableError, match="no reference"):
        make_submission(Task("c"), params(show_reference=True), 100)


# --- the cache


def test_key_holds_what_matters() -> None:
    gate = {"name": "gsm8k_correctness"}
    reward = make_judge_reward(JudgeSettings(base_url=URL, model="m"))
    other = make_judge_reward(JudgeSettings(base_url=URL, model="n"))
    hot = make_judge_reward(JudgeSettings(base_url=URL, model="m", extra_body={"top_p": 0.5}))
    assert len({reward.version, other.version, hot.version}) == 3
    shown = Submission("c", "p")
    key = cache_key(reward.version, params(), shown)
    assert key == cache_key(reward.version, params(gate=gate), shown)
    others = [
        cache_key(other.version, params(), shown),
        cache_key(reward.version, params(temperature=0.5), shown),
        cache_key(reward.version, params(aggregate="median"), shown),
        cache_key(reward.version, params(), Submission("c", None, "p")),
        cache_key(reward.version, params(), Submission("cp")),
    ]
    assert len({key, *others}) == 6


async def test_the_oldest_goes_first() -> None:
    cache: GradeCache[int] = GradeCache(2)
    made: list[str] = []

    async def make(key: str) -> int:
        made.append(key)
        return len(made)

    for key in "abacab":  # c drives out b, as a was used since; b then drives out c
        await cache.get(key, lambda key=key: make(key), keep=lambda _: True)  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]
    assert len(cache) == 2


async def test_who_waits_takes_over_from_who_is_cancelled() -> None:
    cache: GradeCache[int] = GradeCache(2)
    never = asyncio.Event()

    async def wait() -> int:
        await never.wait()
        return 1

    async def give() -> int:
        return 2

    first = asyncio.create_task(cache.get("k", wait, keep=lambda _: True))
    await others_run()
    second = asyncio.create_task(cache.get("k", give, keep=lambda _: True))
    await others_run()
    first.cancel()
    assert await asyncio.wait_for(second, 1) == (2, False)
