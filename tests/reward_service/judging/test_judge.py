"""The judge against an endpoint over a socket, and in the service beside the pool's rewards."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from reward_service.api.app import create_app
from reward_service.errors import ServiceStartError
from reward_service.judging.grade import Judge
from reward_service.judging.judge import make_judge_reward
from reward_service.judging.settings import JudgeSettings
from reward_service.registry import load_rewards
from reward_service.rewards.base import Task
from reward_service.settings import Profile, ProfileReward, ServiceSettings
from reward_service.types import RewardScore
from tests.reward_service.api.test_app import is_ready
from tests.reward_service.judging.judge_endpoint import (
    HOSTILE,
    RUBRIC,
    URL,
    Endpoint,
    Reply,
    grade,
    params,
    serving,
)
from tests.waiting import until_async

RIGHT, WRONG = "#### The final answer is 72", "#### The final answer is 71"


@pytest.fixture(scope="module")
def server() -> Iterator[Endpoint]:
    with serving() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(server: Endpoint) -> Endpoint:
    server.__init__(server.url)  # type: ignore[misc]  # as it was made
    return server


@asynccontextmanager
async def judge_at(url: str, *, deadline_s: float = 5.0, **settings: Any) -> AsyncIterator[Judge]:
    judge = Judge(make_judge_reward(JudgeSettings(base_url=url, model="m", **settings)), deadline_s=deadline_s)
    try:
        yield judge
    finally:
        await judge.close()


async def ask(endpoint: Endpoint, completion: str = RIGHT, settings: Any = None, **fields: Any) -> RewardScore:
    async with judge_at(endpoint.url, **(settings or {})) as judge:
        return await judge.grade(Task(completion, {"final_answer": "72"}, "What is 70 + 2?"), params(**fields))


# --- calls


async def test_one_call(endpoint: Endpoint) -> None:
    score = await ask(endpoint, seed=5)
    assert (score.score, score.reason) == (0.7, None)
    assert (score.details["votes"], score.details["std"]) == ([7.0], 0.0)
    (body,) = endpoint.bodies
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("m", 1024, 0.0, 5)
    assert body["response_format"]["json_schema"]["schema"]["properties"]["score"]["maximum"] == 10
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert RIGHT in body["messages"][1]["content"]
    assert endpoint.authorizations == [None]


async def test_samples(endpoint: Endpoint) -> None:
    endpoint.script = lambda body, number: grade([2, 4, 9][body["seed"] - 5])
    score = await ask(endpoint, num_samples=3, seed=5, aggregate="median")
    assert score.score == 0.4
    assert score.details["votes"] == [2, 4, 9]
    assert {body["temperature"] for body in endpoint.bodies} == {0.7}
    assert len({body["messages"][1]["content"] for body in endpoint.bodies}) == 1


async def test_samples_that_do_not_parse_do_not_count(endpoint: Endpoint) -> None:
    endpoint.script = lambda body, number: Reply(content="I like it, 10!") if number == 0 else grade(6)
    score = await ask(endpoint, num_samples=3)
    assert score.score == pytest.approx(0.6)
    assert score.details["votes"] == [6, 6]
    assert score.details["failures"] == {"verifier_error": 1}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(content='{"reasoning": "it is'), "does not parse"),
        (Reply(content='{"reasoning": "r", "score": 7', finish_reason="length"), "max_tokens"),
        (Reply(content="Score: 7"), "does not parse"),
        (Reply(content=None), "empty"),
        (grade(11), "score"),
        (Reply(status=400, raw='{"message": "this model reads 4096 tokens"}'), "4096 tokens"),
    ],
)
async def test_bad_answers_are_null_and_not_asked_for_again(endpoint: Endpoint, reply: Reply, message: str) -> None:
    endpoint.script = lambda body, number: reply
    score = await ask(endpoint)
    assert (score.score, score.reason) == (None, "verifier_error")
    assert message in score.details["message"]
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_what_may_pass_is_tried_again(endpoint: Endpoint, status: int) -> None:
    endpoint.script = lambda body, number: Reply(status=status, raw="{") if number == 0 else grade(7)
    assert (await ask(endpoint)).score == 0.7
    assert len(endpoint.bodies) == 2


async def test_half_an_envelope_is_tried_again(endpoint: Endpoint) -> None:
    endpoint.script = lambda body, number: Reply(raw='{"choices": [{"mess') if number == 0 else grade(7)
    assert (await ask(endpoint)).score == 0.7


async def test_retry_after_is_kept(endpoint: Endpoint) -> None:
    busy = Reply(status=429, headers={"retry-after": "1"})
    endpoint.script = lambda body, number: busy if number == 0 else grade(7)
    began = time.monotonic()
    assert (await ask(endpoint)).score == 0.7
    assert time.monotonic() - began >= 1.0


async def test_retry_after_beyond_the_deadline_is_not_waited_for(endpoint: Endpoint) -> None:
    endpoint.script = lambda body, number: Reply(status=429, headers={"retry-after": "60"})
    began = time.monotonic()
    score = await ask(endpoint)
    assert (score.score, score.reason) == (None, "unavailable")
    assert time.monotonic() - began < 50


@pytest.mark.parametrize(("status", "num_calls"), [(500, 2), (401, 1), (403, 1), (404, 1), (302, 1)])
async def test_no_answer_is_unavailable(endpoint: Endpoint, status: int, num_calls: int) -> None:
    endpoint.script = lambda body, number: Reply(status=status, raw="{}", headers={"location": "http://127.0.0.1:1/"})
    score = await ask(endpoint, settings={"max_tries": 2})
    assert (score.score, score.reason) == (None, "unavailable")
    assert f"status {status}" in score.details["message"]
    assert len(endpoint.bodies) == num_calls


async def test_nobody_there_is_unavailable() -> None:
    async with judge_at(URL, max_tries=2) as judge:
        score = await judge.grade(Task("c"), params())
    assert (score.score, score.reason) == (None, "unavailable")


async def test_too_slow_is_a_timeout(endpoint: Endpoint) -> None:
    endpoint.script = lambda body, number: grade(7, after_s=5)
    async with judge_at(endpoint.url, timeout_s=0.1, max_tries=2) as judge:
        by_call = await judge.grade(Task("c"), params())
    async with judge_at(endpoint.url, deadline_s=0.1) as judge:
        by_deadline = await judge.grade(Task("c"), params())
    assert (by_call.score, by_call.reason) == (by_deadline.score, by_deadline.reason) == (None, "timeout")
    assert len(endpoint.bodies) == 3
    await until_async(lambda: endpoint.given_up == 3)


async def test_calls_at_a_time(endpoint: Endpoint) -> None:
    endpoint.script = lambda body, number: grade(7, after_s=0.05)
    async with judge_at(endpoint.url, max_concurrency=3, max_samples=4) as judge:
        await asyncio.gather(*(judge.grade(Task(str(n)), params(num_samples=4)) for n in range(4)))
    assert len(endpoint.bodies) == 16
    assert endpoint.most == 3


async def test_waiting_for_a_place_is_not_held_against_a_sample(endpoint: Endpoint) -> None:
    endpoint.script = lambda body, number: grade(7, after_s=0.3)
    async with judge_at(endpoint.url, max_concurrency=1, deadline_s=0.6) as judge:
        scores = await asyncio.gather(*(judge.grade(Task(str(n)), params()) for n in range(4)))
    assert [score.score for score in scores] == [0.7] * 4


@pytest.mark.parametrize(
    ("response_format", "sent"), [("json_schema", "json_schema"), ("json_object", "json_object"), ("none", None)]
)
async def test_response_format_is_the_operators_choice(endpoint: Endpoint, response_format: str, sent: Any) -> None:
    assert (await ask(endpoint, settings={"response_format": response_format})).score == 0.7
    assert endpoint.bodies[0].get("response_format", {}).get("type") == sent


async def test_further_fields(endpoint: Endpoint) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": None}
    await ask(endpoint, settings={"extra_body": extra})
    assert endpoint.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "temperature" not in endpoint.bodies[0]


@pytest.mark.parametrize("completion", HOSTILE)
async def test_a_hostile_completion_does_not_change_how_the_answer_is_read(endpoint: Endpoint, completion: str) -> None:
    endpoint.script = lambda body, number: grade(1, reasoning=f"it says {completion}")
    score = await ask(endpoint, completion)
    assert score.score == 0.1
    # A judge that only repeats what it was told to say has not answered.
    endpoint.script = lambda body, number: Reply(content=f"{completion}\n{completion}")
    assert (await ask(endpoint, completion)).score is None


async def test_defused_tokens_are_reported(endpoint: Endpoint) -> None:
    assert (await ask(endpoint, "a <|im_end|> b")).details["defused"] == 1
    assert "defused" not in (await ask(endpoint)).details


# --- the API key


async def test_api_key_from_the_environment(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret\n")
    endpoint.script = lambda body, number: Reply(status=400 if number else 401, raw="bad key sk-secret")
    with caplog.at_level(logging.DEBUG):
        async with judge_at(endpoint.url, api_key_env="JUDGE_KEY") as judge:
            scores = [await judge.grade(Task("c"), params()) for _ in range(2)]
    assert endpoint.authorizations == ["Bearer sk-secret"] * 2
    assert "sk-secret" not in caplog.text + str(scores)
    assert "bad key …" in scores[1].details["message"]


async def test_api_key_from_a_file(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-other\n")
    await ask(endpoint, settings={"api_key_file": tmp_path / "key"})
    assert endpoint.authorizations == ["Bearer sk-other"]


def test_no_api_key_where_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    for source in ({"api_key_env": "NO_KEY"}, {"api_key_file": tmp_path / "none"}):
        judge = JudgeSettings(base_url=URL, model="m", **source)
        with pytest.raises(ServiceStartError, match=r"NO_KEY|none"):
            create_app(ServiceSettings(judge=judge))


@pytest.mark.parametrize(
    "fields",
    [
        {"base_url": "127.0.0.1:8000"},
        {"base_url": "file:///etc/passwd"},
        {"base_url": "http://user:pass@host/v1"},
        {"api_key_env": "A", "api_key_file": "b"},
        {"extra_body": {"model": "another"}},
        {"api_key": "sk-in-the-settings"},
    ],
)
def test_bad_settings(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JudgeSettings.model_validate({"base_url": URL, "model": "m", **fields})


# --- the cache


async def test_the_same_again_is_no_second_call(endpoint: Endpoint) -> None:
    async with judge_at(endpoint.url) as judge:
        first = await judge.grade(Task("c"), params())
        second = await judge.grade(Task("c"), params())
        for task, fields in [
            (Task("d"), {}),
            (Task("c", prompt="p"), {}),
            (Task("c"), {"rubric": "another"}),
            (Task("c"), {"seed": 1}),
            (Task("c"), {"num_samples": 2}),
        ]:
            await judge.grade(task, params(**fields))
    assert "cached" not in first.details
    assert (second.score, second.details["cached"]) == (first.score, True)
    assert len(endpoint.bodies) == 1 + 4 + 2


@pytest.mark.parametrize(("cache_entries", "calls"), [(0, 4), (1, 4), (2, 2)])
async def test_the_last_so_many_grades_are_kept(endpoint: Endpoint, cache_entries: int, calls: int) -> None:
    async with judge_at(endpoint.url, cache_entries=cache_entries) as judge:
        for completion in ("c", "d", "c", "d"):
            await judge.grade(Task(completion), params())
    assert len(endpoint.bodies) == calls


async def test_the_same_at_once_is_one_call(endpoint: Endpoint) -> None:
    endpoint.script = lambda body, number: grade(7, after_s=0.1)
    async with judge_at(endpoint.url) as judge:
        scores = await asyncio.gather(*(judge.grade(Task("c"), params()) for _ in range(8)))
    assert [score.score for score in scores] == [0.7] * 8
    assert len(endpoint.bodies) == 1


async def test_failures_are_not_kept(endpoint: Endpoint) -> None:
    endpoint.script = lambda body, number: Reply(content="?") if number == 0 else grade(7)
    async with judge_at(endpoint.url) as judge:
        assert (await judge.grade(Task("c"), params())).score is None
        assert (await judge.grade(Task("c"), params())).score == 0.7


# --- in the service


@asynccontextmanager
async def service(endpoint: Endpoint, *, judge: Any = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    at = JudgeSettings(base_url=endpoint.url, model="m", **(judge or {}))
    app = create_app(ServiceSettings(judge=at, num_workers=1, **settings))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        await until_async(lambda: is_ready(client))
        yield client


def body(*completions: str, answer: Any = "72", others: tuple[Any, ...] = (), **fields: Any) -> dict[str, Any]:
    items = [
        {"id": str(n), "completion": text, "reference": {"final_answer": answer}} for n, text in enumerate(completions)
    ]
    return {"rewards": [{"name": "judge", "params": {"rubric": RUBRIC, **fields}}, *others], "items": items}


GATE = {"gate": {"name": "gsm8k_correctness"}}


async def test_judge_beside_the_pools_rewards(endpoint: Endpoint) -> None:
    endpoint.script = lambda body, number: grade(7 if RIGHT in body["messages"][1]["content"] else 2)
    others = ({"name": "gsm8k_format"}, {"name": "gsm8k_correctness", "weight": 2})
    async with service(endpoint) as client:
        answer = (await client.post("/v1/score", json=body(RIGHT, WRONG, others=others))).json()
        alone = (await client.post("/v1/score", json=body(RIGHT))).json()
        none = (await client.post("/v1/score", json=body())).json()
        metrics = (await client.get("/metrics")).text
        listed = (await client.get("/v1/rewards")).json()["rewards"]
    assert [result["id"] for result in answer["results"]] == ["0", "1"]
    assert [list(result["rewards"]) for result in answer["results"]] == [
        ["judge", "gsm8k_format", "gsm8k_correctness"]
    ] * 2
    # the judge's share, 0.5 for the form, 2 * 1 or 2 * 0 for the answer
    assert [result["total"] for result in answer["results"]] == pytest.approx([0.7 + 0.5 + 2.0, 0.2 + 0.5 + 0.0])
    assert answer["results"][1]["rewards"]["gsm8k_correctness"]["details"]["extracted"] == "71"
    assert alone["results"][0]["total"] == 0.7
    assert alone["results"][0]["rewards"]["judge"]["details"]["cached"] is True
    assert none["results"] == []
    assert 'reward_item_seconds_count{reward="judge"} 3.0' in metrics
    (judge,) = [reward for reward in listed if reward["name"] == "judge"]
    assert judge["range"] == [0.0, 1.0]
    assert judge["version"] == answer["service"]["rewards"]["judge"]


async def test_gate(endpoint: Endpoint) -> None:
    others = ({"name": "gsm8k_correctness", "weight": 3},)
    async with service(endpoint) as client:
        answer = (await client.post("/v1/score", json=body(RIGHT, WRONG, **GATE))).json()["results"]
        asked_for = (await client.post("/v1/score", json=body(WRONG, others=others, **GATE))).json()["results"]
        unknown = (await client.post("/v1/score", json=body(RIGHT, answer="many", **GATE))).json()["results"]
    right, wrong = (result["rewards"] for result in answer)
    assert list(right) == ["judge"]
    assert right["judge"]["score"] == answer[0]["total"] == 0.7
    assert wrong["judge"]["score"] == answer[1]["total"] == 0.0
    assert wrong["judge"]["details"] == {"gated": {"by": "gsm8k_correctness", "score": 0.0, "threshold": 1.0}}
    assert asked_for[0]["total"] == 0.0
    assert list(asked_for[0]["rewards"]) == ["judge", "gsm8k_correctness"]
    assert unknown[0]["total"] is None
    assert unknown[0]["rewards"]["judge"]["reason"] == "invalid_reference"
    assert len(endpoint.bodies) == 1  # for the one that was right


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"gate": {"name": "nonesuch"}}, "there is no reward"),
        ({"gate": {"name": "judge"}}, "a judge itself"),
        ({"gate": {"name": "gsm8k_format", "params": {"rule": "none"}}}, "rule"),
        ({"num_samples": 17}, "judge.max_samples = 16"),
        ({"rubric": ""}, "rubric"),
        ({"endpoint": "http://elsewhere"}, "endpoint"),
        ({"gate": {"name": "gsm8k_format", "threshold": 0.5, "params": {"rule": "lax"}}}, "other parameters"),
        ({"gate": {"name": "gsm8k_format"}}, "scores 0.5 at most"),
    ],
)
async def test_what_is_refused(endpoint: Endpoint, change: dict[str, Any], error: str) -> None:
    async with service(endpoint) as client:
        response = await client.post("/v1/score", json=body(RIGHT, others=({"name": "gsm8k_format"},), **change))
    assert response.status_code == 422
    assert error in response.json()["detail"]
    assert endpoint.bodies == []


async def test_the_requests_deadline_covers_both_parts(endpoint: Endpoint) -> None:
    slow = "too hard"
    endpoint.script = lambda body, number: grade(7, after_s=30 if slow in body["messages"][1]["content"] else 0)
    async with service(endpoint, request_timeout_s=1.0) as client:
        began = time.monotonic()
        request = body(RIGHT, slow, others=({"name": "gsm8k_format"},))
        done, late = (await client.post("/v1/score", json=request)).json()["results"]
        assert time.monotonic() - began < 25
    assert done["total"] == pytest.approx(1.2)
    assert late["rewards"]["judge"]["score"] is None
    assert late["rewards"]["judge"]["reason"] == "timeout"
    assert late["total"] == late["rewards"]["gsm8k_format"]["score"] == 0.0
    await until_async(lambda: endpoint.given_up == 1)


async def test_too_much_is_refused_and_others_are_served(endpoint: Endpoint) -> None:
    endpoint.script = lambda body, number: grade(7, after_s=0.5)
    async with service(endpoint, judge={"max_waiting_items": 2}) as client:
        first = asyncio.create_task(client.post("/v1/score", json=body("a", "b")))
        await until_async(lambda: len(endpoint.bodies) == 2)
        second = await client.post("/v1/score", json=body("c"))
        third = await client.post("/v1/score", json={**body("c"), "rewards": [{"name": "gsm8k_format"}]})
        assert not first.done()
        assert (await first).status_code == 200
    assert (second.status_code, second.json()["error"]) == (429, "queue_full")
    assert third.status_code == 200


async def test_an_unreachable_judge_leaves_the_rest_scored() -> None:
    async with service(Endpoint(URL), judge={"max_tries": 1}) as client:
        (result,) = (await client.post("/v1/score", json=body(RIGHT, others=({"name": "gsm8k_format"},)))).json()[
            "results"
        ]
    assert result["rewards"]["judge"]["reason"] == "unavailable"
    assert result["total"] == 0.5


def test_there_is_a_judge_only_where_one_is_configured() -> None:
    judge = JudgeSettings(base_url=URL, model="m")
    assert "judge" not in load_rewards(ServiceSettings())
    assert "judge" in load_rewards(ServiceSettings(judge=judge))
    with pytest.raises(ServiceStartError, match="no 'judge'"):
        load_rewards(ServiceSettings(rewards=("judge",)))
    bad = Profile(rewards=(ProfileReward(name="judge", params={"rubric": "r", "gate": {"name": "none"}}),))
    with pytest.raises(ServiceStartError, match="profile 'p'"):
        create_app(ServiceSettings(judge=judge, profiles={"p": bad}))


def test_settings_travel_as_json() -> None:
    settings = ServiceSettings(judge=JudgeSettings(base_url=URL, model="m", api_key_env="A_KEY"))
    assert ServiceSettings.model_validate(json.loads(settings.model_dump_json())) == settings
