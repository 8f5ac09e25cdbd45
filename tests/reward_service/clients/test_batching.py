"""Small calls sent together, against scripted answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from reward_service.clients.asynchronous import RewardClient
from reward_service.clients.errors import RequestRefusedError, RewardServiceUnavailable
from reward_service.types import ItemResult, RewardItem, RewardSpec
from tests.waiting import others_run, until_async

URL = "http://rewards.test:8300"
FORMAT = [RewardSpec(name="gsm8k_format")]


class Echo:
    """Answers with each completion as its score; records how many items the requests have."""

    def __init__(self, refuse: Callable[[list[dict[str, Any]]], httpx.Response | None] = lambda _: None) -> None:
        self._refuse = refuse
        self.sizes: list[int] = []
        self.heads: list[tuple[Any, ...]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = msgspec.json.decode(request.content)
        self.sizes.append(len(body["items"]))
        self.heads.append((body["rewards"][0]["name"], body["run_id"], body["policy_version"]))
        await asyncio.sleep(0.02)
        if (refusal := self._refuse(body["items"])) is not None:
            return refusal
        results = [
            {
                "id": item["id"],
                "total": score,
                "rewards": {reward["name"]: {"score": score} for reward in body["rewards"]},
            }
            for item in body["items"]
            for score in [float(item["completion"])]
        ]
        return httpx.Response(200, json={"results": results})


def numbers(*values: float) -> list[RewardItem]:
    """Items of the same ids in every call."""
    return [RewardItem(id=str(i), completion=str(value), reference={}) for i, value in enumerate(values)]


def batching(echo: Echo, **settings: Any) -> RewardClient:
    settings = {"timeout_s": 1.0, "deadline_s": 2.0, "batch_window_s": 0.02, **settings}
    return RewardClient(URL, transport=httpx.MockTransport(echo), **settings)


def totals(results: list[ItemResult]) -> list[float | None]:
    return [result.total for result in results]


async def test_small_calls_share_a_request() -> None:
    echo = Echo()
    async with batching(echo) as client:
        calls = [client.score(numbers(n, n + 0.5), FORMAT) for n in range(20)]
        assert [totals(results) for results in await asyncio.gather(*calls)] == [[n, n + 0.5] for n in range(20)]
        await client.score(numbers(1), FORMAT)
    assert echo.sizes == [40, 1]


async def test_by_default_nothing_waits() -> None:
    echo = Echo()
    async with batching(echo, batch_window_s=0) as client:
        await asyncio.gather(*(client.score(numbers(n), FORMAT) for n in range(5)))
    assert echo.sizes == [1] * 5


async def test_requests_have_a_bound() -> None:
    echo = Echo()
    async with batching(echo, batch_items=10) as client:
        sizes = [4, 4, 4, 10, 25, 1]
        results = await asyncio.gather(*(client.score(numbers(*range(size)), FORMAT) for size in sizes))
    assert [totals(one) for one in results] == [list(range(size)) for size in sizes]
    assert sorted(echo.sizes) == [5, 8, 10, 25]


async def test_what_differs_is_kept_apart() -> None:
    echo = Echo()
    async with batching(echo) as client:
        await asyncio.gather(
            client.score(numbers(1), FORMAT),
            client.score(numbers(1), FORMAT, run_id="a"),
            client.score(numbers(1), FORMAT, run_id="a", policy_version=1),
            client.score(numbers(1), [RewardSpec(name="gsm8k_format", weight=2.0)]),
            client.score(numbers(1), FORMAT, run_id="a"),
        )
    assert sorted(echo.sizes) == [1, 1, 1, 2]
    assert ("gsm8k_format", "a", 1) in echo.heads


async def test_an_error_goes_to_every_caller() -> None:
    echo = Echo(lambda _: httpx.Response(401, json={"error": "unauthorized", "detail": "no key"}))
    async with batching(echo) as client:
        caught = await asyncio.gather(*(client.score(numbers(1), FORMAT) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in caught] == [RequestRefusedError] * 3
    assert len({id(error) for error in caught}) == 3
    assert [error.status for error in caught if isinstance(error, RequestRefusedError)] == [401] * 3
    assert echo.sizes == [3]


@pytest.mark.parametrize("status", [413, 422])
async def test_one_bad_item_costs_the_others_nothing(status: int) -> None:
    echo = Echo(lambda items: httpx.Response(status) if any(item["completion"] == "13" for item in items) else None)
    async with batching(echo) as client:
        calls = (client.score(numbers(n), FORMAT) for n in (12, 13, 14))
        first, second, third = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(second, RequestRefusedError)
    assert isinstance(first, list)
    assert isinstance(third, list)
    assert (totals(first), totals(third)) == ([12], [14])
    assert echo.sizes == [3, 1, 1, 1]


async def test_what_is_not_for_json_costs_the_others_nothing() -> None:
    async with batching(Echo()) as client:
        bad = RewardItem(completion="1", reference={"picture": object()})
        calls = client.score(numbers(1), FORMAT), client.score([bad], FORMAT)
        good, error = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(good, list)
    assert isinstance(error, ValueError)
    assert "cannot be put into JSON: <object object" in str(error)


async def test_a_caller_that_gives_up_takes_nothing_from_the_others() -> None:
    echo = Echo()
    async with batching(echo) as client:
        tasks = [asyncio.create_task(client.score(numbers(n), FORMAT)) for n in range(3)]
        await others_run()
        tasks[0].cancel()  # before it is sent
        await until_async(lambda: echo.sizes)
        tasks[1].cancel()  # while it is
        assert totals(await tasks[2]) == [2]
    assert echo.sizes == [2]


async def test_a_request_that_nobody_waits_for_ends() -> None:
    echo = Echo(lambda _: httpx.Response(503))
    async with batching(echo) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.score(numbers(1), FORMAT), 0.1)
        tried = len(echo.sizes)
        await asyncio.sleep(0.3)
        assert len(echo.sizes) == tried > 0


async def test_the_deadline_holds_for_what_is_sent_together() -> None:
    echo = Echo(lambda _: httpx.Response(503))
    began = time.monotonic()
    async with batching(echo, deadline_s=0.3) as client:
        caught = await asyncio.gather(*(client.score(numbers(1), FORMAT) for _ in range(2)), return_exceptions=True)
    assert [type(error) for error in caught] == [RewardServiceUnavailable] * 2
    assert time.monotonic() - began < 30


async def test_closing_sends_what_waits() -> None:
    client = batching(Echo(), batch_window_s=1.0)
    task = asyncio.create_task(client.score(numbers(7), FORMAT))
    await others_run()
    await client.aclose()
    assert totals(await task) == [7]
