"""The application in process, through its ASGI interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from reward_service.api.app import create_app
from reward_service.custom import load_spec
from reward_service.errors import QueueFullError
from reward_service.pool.pool import WorkerPool
from reward_service.registry import BUILTIN_REWARDS, is_light
from reward_service.schemas import SCORE_REQUEST_EXAMPLE, SCORE_RESPONSE_EXAMPLE, ErrorBody, RewardList, ScoreResponse
from reward_service.settings import CustomRewardSpec, ServiceSettings
from tests.waiting import until_async

GOOD = "#### The final answer is 72"
PAIR = [{"name": "gsm8k_format"}, {"name": "gsm8k_correctness"}]


FEW = {"rewards": ("gsm8k_format", "gsm8k_correctness", "last_number"), "num_workers": 2}


async def is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).is_success


@asynccontextmanager
async def connect(app: FastAPI, *, ready: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, whose workers live as long as the block."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        if ready:
            await until_async(lambda: is_ready(client))
        yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with connect(create_app(ServiceSettings(**FEW))) as client:
        yield client


def item(completion: str = GOOD, answer: Any = "72", **fields: Any) -> dict[str, Any]:
    return {"completion": completion, "reference": {"final_answer": answer}, **fields}


def hostile(name: str, **settings: Any) -> dict[str, Any]:
    """Settings of a service that has the reward `name` of pool/hostile.py beside the usual ones."""
    spec = CustomRewardSpec(name=name, target=f"tests.reward_service.pool.hostile:{name}", low=-9, high=9)
    return {"num_workers": 2, "custom_rewards": (spec,), "rewards": (*FEW["rewards"], name), **settings}


def error_of(response: httpx.Response) -> str:
    return msgspec.json.decode(response.content, type=ErrorBody).error


@pytest.mark.parametrize("version", [12, 12.0])
async def test_the_documented_example(client: httpx.AsyncClient, version: float) -> None:
    body = {
        "rewards": [{"name": "gsm8k_format"}, {"name": "gsm8k_correctness", "weight": 1.0, "params": {}}],
        "items": [
            {
                "prompt": "…",
                "completion": "… #### …\n#### The final answer is 72",
                "reference": {"final_answer": "72"},
                "id": "any string",
                "group": "p17",
                "metadata": {},
            }
        ],
        "run_id": "optional",
        "policy_version": version,  # JSON knows no integers: 12.0 is one
    }
    response = await client.post("/v1/score", json=body)
    assert response.status_code == 200
    assert response.json()["results"] == [
        {
            "id": "any string",
            "total": 1.5,
            "rewards": {
                "gsm8k_format": {"score": 0.5, "reason": None, "details": {}},
                "gsm8k_correctness": {"score": 1.0, "reason": None, "details": {"extracted": "72"}},
            },
        }
    ]
    service = response.json()["service"]
    assert service["version"]
    assert service["rewards"]["gsm8k_correctness"] == BUILTIN_REWARDS["gsm8k_correctness"].version


async def test_the_examples_of_the_api_document(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/score", json=SCORE_REQUEST_EXAMPLE)
    assert response.json()["results"] == SCORE_RESPONSE_EXAMPLE["results"]
    msgspec.json.decode(response.content, type=ScoreResponse)
    msgspec.convert(SCORE_RESPONSE_EXAMPLE, ScoreResponse)


async def test_order_and_number_are_those_of_the_items(client: httpx.AsyncClient) -> None:
    # 700 items are more than five chunks; each third is right, each seventh cannot be scored
    items = [
        item(f"#### The final answer is {72 if n % 3 == 0 else n + 100}", None if n % 7 == 0 else 72, id=str(n))
        for n in range(700)
    ]
    response = await client.post("/v1/score", json={"rewards": PAIR, "items": items})
    results = response.json()["results"]
    assert [result["id"] for result in results] == [str(n) for n in range(700)]
    for n, result in enumerate(results):
        correctness = result["rewards"]["gsm8k_correctness"]
        if n % 7 == 0:
            assert (correctness["score"], correctness["reason"]) == (None, "invalid_reference")
            assert result["total"] == 0.5  # what was scored: the format
        else:
            assert correctness["score"] == (1.0 if n % 3 == 0 else 0.0)


async def test_weights(client: httpx.AsyncClient) -> None:
    rewards = [{"name": "gsm8k_format", "weight": 2}, {"name": "gsm8k_correctness", "weight": -0.25}]
    response = await client.post("/v1/score", json={"rewards": rewards, "items": [item()]})
    assert response.json()["results"][0]["total"] == 2 * 0.5 - 0.25 * 1.0


async def test_total_is_null_if_nothing_was_scored(client: httpx.AsyncClient) -> None:
    body = {"rewards": [{"name": "last_number"}], "items": [item(answer="many"), {"completion": "72"}]}
    for result in (await client.post("/v1/score", json=body)).json()["results"]:
        assert result["total"] is None
        assert result["rewards"]["last_number"]["reason"] == "invalid_reference"
        assert result["rewards"]["last_number"]["details"]["message"]


async def test_references_may_hold_any_json(client: httpx.AsyncClient) -> None:
    reference = {"final_answer": 10**40, "more": [2**64, -(2**70), 1e-320, None, {"\x00": "\U0001f600"}]}
    body = {"rewards": PAIR, "items": [{"completion": f"#### The final answer is {10**40}", "reference": reference}]}
    assert (await client.post("/v1/score", json=body)).json()["results"][0]["total"] == 1.5


async def test_no_items_no_results(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/score", json={"rewards": PAIR, "items": []})).json()["results"] == []


@pytest.mark.parametrize("bad", ["raises", "nan", "inf", "text", "sys.exit", "recursion"])
async def test_a_reward_that_fails_costs_only_its_own_score(bad: str) -> None:
    body = {"rewards": [*PAIR, {"name": "fails"}], "items": [item(), item(f"{bad}\n{GOOD}"), item()]}
    async with connect(create_app(ServiceSettings(**hostile("fails")))) as client:
        first, second, third = (await client.post("/v1/score", json=body)).json()["results"]
    assert first["total"] == third["total"] == 2.5
    assert second["total"] == 1.5
    assert second["rewards"]["fails"]["score"] is None
    assert second["rewards"]["fails"]["reason"] == "verifier_error"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "invalid_request"),
        (b"not json", "invalid_request"),
        (b"[]", "invalid_request"),
        (b"\xff\xfe", "invalid_request"),
        (b"[" * 100_000, "invalid_request"),
        ({"rewards": [], "items": []}, "invalid_request"),
        ({"rewards": PAIR}, "invalid_request"),
        ({"rewards": PAIR, "items": [{"prompt": "p"}]}, "invalid_request"),
        ({"rewards": PAIR, "items": [item(7)]}, "invalid_request"),  # type: ignore[arg-type]
        ({"rewards": PAIR, "items": [item(id=7)]}, "invalid_request"),
        ({"rewards": PAIR, "items": [item(refrence={})]}, "invalid_request"),
        ({"rewards": PAIR, "items": [], "policy_version": -1}, "invalid_request"),
        ({"rewards": PAIR, "items": [], "policy_version": 1.5}, "invalid_request"),
        ({"rewards": [PAIR[0], PAIR[0]], "items": []}, "contradiction"),
        (b'{"rewards": [{"name": "gsm8k_format", "weight": NaN}], "items": []}', "invalid_request"),
        ({"rewards": [{"name": "gsm8k_format", "weight": 1e300}], "items": []}, "invalid_request"),
        ({"rewards": [{"name": "nonesuch"}], "items": []}, "unknown_reward"),
        ({"rewards": [{"name": "os:system"}], "items": []}, "unknown_reward"),
        ({"rewards": [{"name": "gsm8k_format", "params": {"rule": "none"}}], "items": []}, "invalid_params"),
        ({"rewards": [{"name": "last_number", "params": {"x": 1}}], "items": []}, "invalid_params"),
    ],
)
async def test_bad_requests(client: httpx.AsyncClient, body: Any, error: str) -> None:
    response = await client.post("/v1/score", content=body if isinstance(body, bytes) else msgspec.json.encode(body))
    assert response.status_code == {"contradiction": 409, "unknown_reward": 404}.get(error, 422)
    assert error_of(response) == error
    assert len(response.content) < 2000


async def test_errors_name_the_place_and_keep_the_input_to_themselves(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/score", json={"rewards": PAIR, "items": [item(secret="hush")]})
    assert "`secret` - at `$.items[0]`" in response.json()["detail"]
    assert "hush" not in response.text


@pytest.mark.parametrize(
    ("settings", "items", "status", "limit"),
    [
        ({"max_body_bytes": 1024}, [item("x" * 1024)], 413, "max_body_bytes = 1024"),
        (
            {"max_body_keys": 99},
            [item(metadata=dict.fromkeys(map(str, range(100)), 0))],
            413,
            "keys, more than max_body_keys",
        ),
        ({"max_bodies_bytes": 1024}, [item("x" * 1024)], 429, "max_bodies_bytes = 1024"),
        ({"max_items": 2}, [item()] * 3, 422, "max_items = 2"),
        ({"max_text_chars": 100}, [item(), item("x" * 101)], 422, "max_text_chars = 100"),
        ({"max_text_chars": 100}, [item(prompt="x" * 101)], 422, "max_text_chars = 100"),
    ],
)
@pytest.mark.parametrize("declared", [True, False], ids=["with length", "chunked"])
async def test_limits_are_named(
    settings: dict[str, int], items: list[Any], status: int, limit: str, declared: bool
) -> None:
    body = msgspec.json.encode({"rewards": PAIR, "items": items})

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    async with connect(create_app(ServiceSettings(**FEW, **settings))) as client:
        response = await client.post("/v1/score", content=body if declared else pieces())
    assert response.status_code == status
    assert limit in response.json()["detail"]


async def test_small_requests_for_light_rewards_need_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any) -> Any:
        raise QueueFullError("nobody is free")

    app = create_app(ServiceSettings(**hostile("hangs", rewards=None)))
    monkeypatch.setattr(app.state.service.pool, "score", refuse)
    names = app.state.service.rewards.keys() - {"environment", "judge"}
    async with connect(app) as client:

        async def needs_none(names: Sequence[str], items: list[dict[str, Any]], padding: int = 0) -> bool:
            body = msgspec.json.encode({"rewards": [{"name": name} for name in names], "items": items})
            return (await client.post("/v1/score", content=body + b" " * padding)).is_success

        assert {name for name in names if await needs_none([name], [item()])} == {
            *("gsm8k_format", "gsm8k_correctness", "last_number", "exact", "length")
        }
        assert not await needs_none(["exact", "math"], [item()])
        assert not await needs_none(["exact"], [item()], padding=40_000)
        assert not await needs_none(["exact"], [item()] * 20)
        monkeypatch.setattr(WorkerPool, "has_idle_worker", False)
        assert await needs_none(["exact"], [item()] * 20)
        assert not await needs_none(["exact"], [item()] * 20, padding=40_000)
        assert not await needs_none(["exact", "math"], [item()] * 20)
        [spec] = app.state.service.settings.custom_rewards
        own = load_spec(spec.model_copy(update={"target": "reward_service.rewards.exact:REWARD"}))
        assert not is_light(own, own.params())
        assert not is_light(BUILTIN_REWARDS["exact"], BUILTIN_REWARDS["exact"].params(nfkc=True))


def test_a_reward_may_have_a_deadline_of_its_own() -> None:
    settings = ServiceSettings(**FEW, deadline_s=5.0, deadlines_s={"gsm8k_format": 0.5})
    assert settings.deadline_of("gsm8k_format", 20.0) == 0.5
    assert settings.deadline_of("another", 20.0) == 20.0  # what the reward itself asks for
    assert settings.deadline_of("another", None) == 5.0


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with connect(create_app(ServiceSettings(**FEW, body_timeout_s=0.05))) as client:
        response = await client.post("/v1/score", content=pieces())
    assert response.status_code == 408
    assert error_of(response) == "body_timeout"


async def test_list_of_rewards(client: httpx.AsyncClient) -> None:
    listed = msgspec.json.decode((await client.get("/v1/rewards")).content, type=RewardList)
    assert [info.name for info in listed.rewards] == ["gsm8k_format", "gsm8k_correctness", "last_number"]
    assert listed.rewards[0].range == (0.0, 0.5)
    assert "rule" in listed.rewards[0].params["properties"]
    assert all(info.description and info.version for info in listed.rewards)


async def test_health(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz"):
        response = await client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_a_prefix_of_a_proxy_and_a_slash_at_the_end(client: httpx.AsyncClient) -> None:
    body = {"rewards": PAIR, "items": [item()]}
    for path in ("/v1/score/", "/v1/score"):
        assert (await client.post(path, json=body)).status_code == 200
    told = (await client.post("/rewards/v1/score", json=body)).json()["detail"]
    assert told.startswith("there is nothing at the path '/rewards/v1/score'; GET / says")
    async with connect(create_app(ServiceSettings(**FEW, root_path="/rewards"))) as behind:
        for path in ("/rewards/v1/score", "/v1/score", "/rewards/v1/score/"):
            assert (await behind.post(path, json=body)).status_code == 200
            assert (await behind.get(path)).status_code == 405
        assert (await behind.get("/rewards/v1/rewards")).status_code == 200
        assert (await behind.post("/rewardsv1/score", json=body)).status_code == 404
        assert (await behind.get("/rewards/openapi.json")).json()["servers"] == [{"url": "/rewards"}]
    packed = await client.post("/v1/score", json=body, headers={"content-encoding": "gzip"})
    assert (packed.status_code, error_of(packed)) == (415, "unsupported_encoding")


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [("GET", "/nowhere", 404, "not_found"), ("GET", "/v1/score", 405, "method_not_allowed")],
)
async def test_unknown_paths(client: httpx.AsyncClient, method: str, path: str, status: int, error: str) -> None:
    response = await client.request(method, path)
    assert (response.status_code, error_of(response)) == (status, error)


async def test_faults_of_the_service_are_500_in_the_same_form() -> None:
    app = create_app(ServiceSettings(**FEW))
    async with connect(app) as client:
        del app.state.service
        response = await client.post("/v1/score", json={"rewards": PAIR, "items": []})
    assert (response.status_code, error_of(response)) == (500, "internal_error")


async def test_api_document(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/score"]["post"]
    request = operation["requestBody"]["content"]["application/json"]["schema"]
    assert request == {"$ref": "#/components/schemas/ScoreRequest"}
    schemas = document["components"]["schemas"]
    assert schemas["ScoreRequest"]["examples"] == [SCORE_REQUEST_EXAMPLE]
    assert schemas["ScoreResponse"]["examples"] == [SCORE_RESPONSE_EXAMPLE]
    assert {"200", "408", "413", "422", "500"} <= set(operation["responses"])
    missing = [ref for ref in references(document) if ref.rpartition("/")[2] not in schemas]
    assert missing == []


def references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [ref for part in node for ref in references(part)]
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for part in node.values() for ref in references(part)]
    return []
