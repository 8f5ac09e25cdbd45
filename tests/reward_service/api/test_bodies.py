"""Bodies that parsers read in different ways, and items that cannot be read: which of them cost the whole request."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from reward_service.api import bodies, reading
from reward_service.api.app import create_app
from reward_service.settings import ServiceSettings
from tests.reward_service.api.test_app import FEW, connect, error_of

REWARDS = '[{"name": "gsm8k_correctness"}]'
GOOD = '{"id": "good", "completion": "#### The final answer is 72", "reference": {"final_answer": "72"}}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with connect(create_app(ServiceSettings(**FEW))) as client:
        yield client


DEEP = "[" * 250 + '{"b": 1, "b": 2}' + "]" * 250
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def post(client: httpx.AsyncClient, body: str | bytes, path: str = "/v1/score") -> httpx.Response:
    return await client.post(path, content=body if isinstance(body, bytes) else body.encode())


@pytest.mark.parametrize(
    "body",
    [
        f'{{"rewards": {REWARDS}, "items": [{GOOD}], "items": []}}',
        f'{{"rewards": {REWARDS}, "items": [{GOOD[:-1]}, "completion": "x"}}]}}',
        f'{{"rewards": {REWARDS}, "items": [{GOOD[:-1]}, "metadata": {{"a": {{"b": 1, "b" : 1}}}}}}]}}',
        f'{{"rewards": {REWARDS}, "items": [{GOOD[:-1]}, "metadata": {{"a": 1, "\\u0061": 1}}}}]}}',
        f'{{"rewards": {REWARDS}, "items": [{GOOD}, {{"completion": "\\ud800", "id": "", "id": ""}}]}}',
        f'{{"rewards": {REWARDS}, "items": [{GOOD[:-1]}, "metadata": {{"z": {DEEP}}}}}]}}',
    ],
    ids=["top", "item", "deep", "escaped", "beside what cannot be read", "very deep"],
)
async def test_a_key_that_is_there_twice_is_refused(client: httpx.AsyncClient, body: str) -> None:
    response = await post(client, body)
    assert (response.status_code, error_of(response)) == (422, "invalid_request")
    assert "twice" in response.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/get_reward", '{"query": ["a"], "query": ["b"], "prompts": [""], "labels": ["1"]}'),
        ("/rm", '{"prompt": "", "response": "", "label": {"final_answer": "1", "final_answer": "2"}}'),
    ],
)
async def test_other_protocols_refuse_it_too(client: httpx.AsyncClient, path: str, body: str) -> None:
    assert (await post(client, body, path)).status_code == 422


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (b'{"completion": "\\ud800 half", "id": "bad"}', "surrogate"),
        (b'{"completion": "x", "prompt": "\\udfff", "id": "bad"}', "surrogate"),
        (b'{"completion": "x", "reference": {"\\ud800": 1}, "id": "bad"}', "surrogate"),
        (b'{"completion": "bytes \xff", "id": "bad"}', "UTF-8"),
        (b'{"completion": "x", "reference": {"final_answer": 1%b}, "id": "bad"}' % (b"0" * 5000), "5001 digits"),
        (b'{"completion": "x", "reference": {"final_answer": -1e999}, "id": "bad"}', "-1e999 is out of range"),
        (b'{"completion": "x", "metadata": {"a": [{"b": [1e999]}]}, "id": "bad"}', "1e999 is out of range"),
        (b'{"completion": "x", "reference": {"final_answer": NaN}, "id": "bad"}', "NaN is no number"),
        (b'{"completion": "x", "metadata": {"a": -Infinity}, "id": "bad"}', "-Infinity is no number"),
    ],
    ids=["half", "other half", "key", "bytes", "digits", "range", "deep", "NaN", "infinity"],
)
async def test_one_item_that_cannot_be_read_has_no_score_and_the_others_have(
    client: httpx.AsyncClient, bad: bytes, told: str
) -> None:
    body = b'{"rewards": %b, "items": [%b, %b, %b]}' % (REWARDS.encode(), GOOD.encode(), bad, GOOD.encode())
    response = await post(client, body)
    assert response.status_code == 200
    first, second, third = response.json()["results"]
    assert first["total"] == third["total"] == 1.0
    assert (second["id"], second["total"]) == ("bad", None)
    reward = second["rewards"]["gsm8k_correctness"]
    assert (reward["score"], reward["reason"]) == (None, "unreadable_item")
    assert told in reward["details"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score", f'{{"rewards": {REWARDS}, "items": [{GOOD}]}}'),
        ("/v1/score", f'{{"rewards": {REWARDS}, "items": [{GOOD}, {{"completion": "\\ud800"}}]}}'),
        ("/get_reward", '{"query": ["a"], "labels": ["1"]}'),
        ("/rm", '{"prompt": "", "response": "", "label": "1"}'),
    ],
    ids=["score", "rescued", "openrlhf", "slime"],
)
async def test_a_byte_order_mark_is_passed_over(client: httpx.AsyncClient, path: str, body: str) -> None:
    marked, plain = await post(client, f"\ufeff{body}", path), await post(client, body, path)
    assert (marked.status_code, marked.content) == (200, plain.content)
    assert (await post(client, f"\ufeff\ufeff{body}", path)).status_code == 422


async def test_an_identifier_that_cannot_be_read_comes_back_as_it_can(client: httpx.AsyncClient) -> None:
    body = f'{{"rewards": {REWARDS}, "items": [{{"completion": "", "id": "a\\ud800"}}]}}'
    (result,) = (await post(client, body)).json()["results"]
    assert (result["id"], result["total"]) == ("a?", None)


@pytest.mark.parametrize(
    "items",
    ['[{"completion": "\\ud800"}, {"completion": 1}]', '[{"completion": "\\ud800"}, {"no": ""}]', "NaN", "[1e999"],
)
async def test_other_faults_stay_faults_of_the_request(client: httpx.AsyncClient, items: str) -> None:
    response = await post(client, f'{{"rewards": {REWARDS}, "items": {items}}}')
    assert (response.status_code, error_of(response)) == (422, "invalid_request")


@pytest.mark.parametrize("number", ["1" + "0" * 3999, "0.1e-999", "1e308", "-0", "1.0e+2"])
async def test_numbers_that_can_be_read_are(client: httpx.AsyncClient, number: str) -> None:
    items: Any = f'[{{"completion": "x", "reference": {{"final_answer": {number}}}}}, {GOOD}]'
    response = await post(client, f'{{"rewards": {REWARDS}, "items": {items}}}')
    assert response.status_code == 200
    assert response.json()["results"][1]["total"] == 1.0


async def test_openrlhf_loses_one_item_of_a_batch(client: httpx.AsyncClient) -> None:
    body = '{"query": ["\\ud800", "#### The final answer is 7"], "prompts": ["", ""], "labels": ["7", "7"], "more": 1}'
    app = create_app(ServiceSettings(**FEW, profiles={"p": {"rewards": [{"name": "last_number"}], "unscorable": -1}}))
    async with connect(app) as other:
        response = await post(other, body, "/get_reward/p")
        assert response.json()["rewards"] == [-1.0, 1.0]


async def test_others_are_answered_while_a_large_body_is_looked_at(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, read = threading.Event(), reading.read

    def slow_read(body: bytes) -> Any:
        assert answered.wait(60)
        return read(body)

    monkeypatch.setattr(bodies, "_SMALL_BYTES", 100)
    monkeypatch.setattr(reading, "read", slow_read)
    queries = ["x" * 200, "\ud800"]
    items = [{"id": "long", "completion": "x" * 200}, {"id": "bad", "completion": "\ud800"}]
    looks = [
        asyncio.create_task(post(client, json.dumps({"rewards": [{"name": "gsm8k_format"}], "items": items}))),
        asyncio.create_task(post(client, json.dumps({"query": queries, "labels": ["1", "2"]}), "/get_reward")),
    ]
    assert (await client.get("/healthz")).status_code == 200
    assert not any(look.done() for look in looks)
    answered.set()
    scored, rewarded = await asyncio.gather(*looks)
    totals = [result["total"] for result in scored.json()["results"]]
    assert totals == [0.0, None]
    assert list(rewarded.json()["unscored"]) == ["1"]
