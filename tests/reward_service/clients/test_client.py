"""The client against scripted answers."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from reward_service.api.app import create_app
from reward_service.child import start_in_subprocess
from reward_service.clients.asynchronous import RewardClient
from reward_service.clients.blocking import ClientSettings
from reward_service.clients.checks import ask_for_rewards
from reward_service.clients.errors import (
    BadAnswerError,
    RequestRefusedError,
    RewardServiceError,
    RewardServiceUnavailable,
)
from reward_service.retry import retry_after_s
from reward_service.settings import ServiceSettings
from reward_service.types import ItemResult, RewardItem, RewardScore, RewardSpec
from tests.proxies import recording_proxy
from tests.waiting import until_async

URL = "http://rewards.test:8300"
ITEMS = [
    RewardItem(id="a", completion="#### The final answer is 72", reference={"final_answer": "72"}),
    RewardItem(id="b", completion="no idea", reference=None),
]
REWARDS = [RewardSpec(name="gsm8k_format"), RewardSpec(name="gsm8k_correctness", weight=2.0)]


def answer() -> dict[str, Any]:
    return {
        "results": [
            {
                "id": "a",
                "total": 2.5,
                "rewards": {
                    "gsm8k_format": {"score": 0.5, "reason": None, "details": {}},
                    "gsm8k_correctness": {"score": 1.0, "reason": None, "details": {"extracted": "72"}},
                },
            },
            {
                "id": "b",
                "total": 0.0,
                "rewards": {
                    "gsm8k_format": {"score": 0.0, "reason": None, "details": {}},
                    "gsm8k_correctness": {"score": None, "reason": "invalid_reference", "details": {}},
                },
            },
        ],
        "service": {"version": "1", "rewards": {}},
    }


Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler, **settings: Any) -> RewardClient:
    settings = {"timeout_s": 1.0, "deadline_s": 5.0, "max_concurrency": 4, **settings}
    return RewardClient(URL, transport=httpx.MockTransport(handler), **settings)


def script(*steps: httpx.Response | Exception) -> tuple[Handler, list[float]]:
    """Plays the steps in turn, the last one for ever; also gives the times of the calls."""
    times: list[float] = []

    def handler(request: httpx.Request) -> httpx.Response:
        step = steps[min(len(times), len(steps) - 1)]
        times.append(time.monotonic())
        if isinstance(step, Exception):
            raise step
        return httpx.Response(step.status_code, headers=step.headers, content=step.content)

    return handler, times


def ok() -> httpx.Response:
    return httpx.Response(200, json=answer())


async def test_a_good_answer() -> None:
    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return ok()

    async with client_of(handler, api_key="k") as client:
        results = await client.score(ITEMS, REWARDS, run_id="run", policy_version=3)
    assert results[0].total == 2.5
    assert results[0].rewards["gsm8k_correctness"] == RewardScore(score=1.0, details={"extracted": "72"})
    assert results[1].rewards["gsm8k_correctness"] == RewardScore(score=None, reason="invalid_reference")
    assert pickle.loads(pickle.dumps(results)) == results
    assert str(requests[0].url) == f"{URL}/v1/score"
    assert requests[0].headers["authorization"] == "Bearer k"
    body = msgspec.json.decode(requests[0].content)
    assert (body["run_id"], body["policy_version"]) == ("run", 3)
    assert body["rewards"][1] == {"name": "gsm8k_correctness", "weight": 2.0, "params": {}}


async def test_what_the_client_sends_is_what_the_service_takes() -> None:
    app = create_app(ServiceSettings(num_workers=1, rewards=("gsm8k_format", "gsm8k_correctness")))
    client = RewardClient(URL, transport=httpx.ASGITransport(app))
    async with app.router.lifespan_context(app), client:
        await client.health(timeout_s=10.0)
        results = await client.score(ITEMS, REWARDS, policy_version=0)
    assert [result.total for result in results] == [2.5, 0.0]
    assert results[1].rewards["gsm8k_correctness"].reason == "invalid_reference"


async def test_no_items_no_call() -> None:
    handler, times = script(httpx.Response(500))
    async with client_of(handler) as client:
        assert await client.score([], REWARDS) == []
    assert times == []


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("gone"),
        httpx.Response(500),
        httpx.Response(503, json={"error": "not_ready", "detail": "no thread"}),
        httpx.Response(429),
        httpx.Response(408),
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, json={"results": []}),
    ],
)
async def test_passing_trouble_is_retried(failure: httpx.Response | Exception) -> None:
    handler, times = script(failure, failure, ok())
    async with client_of(handler) as client:
        assert len(await client.score(ITEMS, REWARDS)) == 2
    assert len(times) == 3


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413, 422])
async def test_a_refusal_is_final(status: int) -> None:
    handler, times = script(httpx.Response(status, json={"error": "unknown_reward", "detail": "there is none"}))
    async with client_of(handler) as client:
        with pytest.raises(RewardServiceError, match=rf"{URL} .*{status}.*there is none"):
            await client.score(ITEMS, REWARDS)
    assert len(times) == 1


async def test_the_deadline_ends_it() -> None:
    handler, times = script(httpx.ConnectError("refused"))
    start = time.monotonic()
    async with client_of(handler, deadline_s=0.5) as client:
        with pytest.raises(RewardServiceUnavailable, match=rf"{URL}.*0\.5 s.*ConnectError: refused"):
            await client.score(ITEMS, REWARDS)
    assert time.monotonic() - start < 30
    assert len(times) >= 2


async def test_a_try_that_drips_is_cut_off() -> None:
    class Drip(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            while True:
                yield b" "
                await asyncio.sleep(0.01)

    async with client_of(lambda _: httpx.Response(200, stream=Drip()), timeout_s=0.1, deadline_s=0.4) as client:
        with pytest.raises(RewardServiceUnavailable, match=r"within 0\.1 s|still waiting"):
            await client.score(ITEMS, REWARDS)


async def test_a_list_of_rewards_that_drips_is_not_waited_for() -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            for letter in b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\nx: " + b"x" * 100 + b'\r\n\r\n{"rewards": []}':
                writer.write(bytes([letter]))
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await asyncio.to_thread(ask_for_rewards, ClientSettings(url=url, timeout_s=0.3)) is None


async def test_a_key_is_sent_without_what_is_around_it_and_never_shown() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(401)

    async with client_of(handler, api_key=" rlvr_key\r\n") as client:
        with pytest.raises(RequestRefusedError):
            await client.score(ITEMS, REWARDS)
    assert seen == ["Bearer rlvr_key"]
    for bad in ("", " \n", "rlvr_a\nrlvr_b", "rlvr_schlüssel", "rlvr_\0"):
        with pytest.raises(ValueError, match="api_key holds no API key") as raised:
            RewardClient(URL, api_key=bad)
        assert "rlvr_" not in str(raised.value)


async def test_retry_after_is_honoured() -> None:
    handler, times = script(httpx.Response(429, headers={"retry-after": "1"}), ok())
    async with client_of(handler) as client:
        await client.score(ITEMS, REWARDS)
    assert times[1] - times[0] >= 1.0


async def test_retry_after_beyond_the_deadline_is_not_slept_through() -> None:
    handler, times = script(httpx.Response(429, headers={"retry-after": "3600"}))
    start = time.monotonic()
    async with client_of(handler) as client:
        with pytest.raises(RewardServiceUnavailable, match="429"):
            await client.score(ITEMS, REWARDS)
    assert time.monotonic() - start < 600
    assert len(times) == 1


def test_retry_after_forms() -> None:
    now = datetime.now(UTC)
    later = format_datetime(now + timedelta(seconds=60), usegmt=True)
    assert 55 < retry_after_s({"retry-after": later}) <= 60
    theirs = format_datetime(now + timedelta(hours=1), usegmt=True)
    for date, wait_s in (theirs, 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 3.0):  # a clock that is not ours
        until = format_datetime(parsedate_to_datetime(date) + timedelta(seconds=wait_s), usegmt=True)
        assert retry_after_s({"retry-after": until, "date": date}) == wait_s
    assert retry_after_s({"retry-after": "7", "date": theirs}) == 7.0
    for value in ("", "soon", "-5", "٧", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert retry_after_s({"retry-after": value}) == 0.0
    assert retry_after_s({"retry-after": later, "date": "soon"}) == 0.0


def broken(change: Callable[[dict[str, Any]], object]) -> bytes:
    body = answer()
    change(body)
    return msgspec.json.encode(body)


NONSENSE: list[tuple[bytes, str]] = [
    (b"", "not JSON"),
    (b"<html>", "not JSON"),
    (b"[1]", "results"),
    (broken(lambda b: b.update(results="none")), "results"),
    (broken(lambda b: b["results"].pop()), "1 results for 2 items"),
    (broken(lambda b: b["results"].append(b["results"][0])), "3 results for 2 items"),
    (broken(lambda b: b["results"].reverse()), r"results\.0 has id 'b' where 'a'"),
    (broken(lambda b: b["results"][1].pop("id")), r"results\.1 has id None"),
    (broken(lambda b: b["results"].__setitem__(0, 3)), r"results\.0 is not an object"),
    (broken(lambda b: b["results"][0].update(rewards=[])), r"results\.0 has no object"),
    (broken(lambda b: b["results"][0]["rewards"].pop("gsm8k_format")), "lacks the reward gsm8k_format"),
    (broken(lambda b: b["results"][0]["rewards"]["gsm8k_format"].pop("score")), "has no score"),
    (broken(lambda b: b["results"][0]["rewards"]["gsm8k_format"].update(score="1")), "not a finite number: '1'"),
    (broken(lambda b: b["results"][0]["rewards"]["gsm8k_format"].update(score=True)), "not a finite number: True"),
    (broken(lambda b: b["results"][0]["rewards"]["gsm8k_format"].update(score=None)), "score None and the reason None"),
    (broken(lambda b: b["results"][0]["rewards"]["gsm8k_format"].update(reason=3)), "the reason 3"),
    (broken(lambda b: b["results"][0]["rewards"]["gsm8k_format"].update(details=3)), "details is not an object"),
    (broken(lambda b: b["results"][0].update(total="high")), r"results\.0\.total"),
    (broken(lambda b: b["results"][0].update(total=None)), r"results\.0\.total"),
    (msgspec.json.encode(answer()).replace(b"2.5", b"NaN"), "not JSON"),
    (msgspec.json.encode(answer()).replace(b"2.5", b"1e999"), "not"),
]


@pytest.mark.parametrize(("body", "what"), NONSENSE, ids=[what for _, what in NONSENSE])
async def test_nonsense_is_named(body: bytes, what: str) -> None:
    handler, times = script(httpx.Response(200, content=body))
    async with client_of(handler, deadline_s=0.3) as client:
        with pytest.raises(BadAnswerError, match=what) as caught:
            await client.score(ITEMS, REWARDS)
    assert URL in str(caught.value)
    assert isinstance(caught.value, RewardServiceError)
    assert times


async def test_at_most_so_many_calls_at_once() -> None:
    running = 0
    most = 0

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        return ok()

    transport = httpx.MockTransport(handler)
    async with RewardClient(URL, timeout_s=1, deadline_s=5, max_concurrency=3, transport=transport) as client:
        await asyncio.gather(*(client.score(ITEMS, REWARDS) for _ in range(20)))
    assert most == 3


async def test_waiting_for_a_place_counts_too() -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.6)
        return ok()

    settings = {"timeout_s": 1.0, "deadline_s": 1.0, "max_concurrency": 1}
    async with RewardClient(URL, transport=httpx.MockTransport(handler), **settings) as client:  # type: ignore[arg-type]
        results = await asyncio.gather(*(client.score(ITEMS, REWARDS) for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in results] == [list, RewardServiceUnavailable]


async def test_cancelling_is_not_swallowed() -> None:
    handler, times = script(httpx.ConnectError("refused"))
    async with client_of(handler) as client:
        task = asyncio.create_task(client.score(ITEMS, REWARDS))
        await until_async(lambda: len(times) >= 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_health_waits_until_ready() -> None:
    handler, times = script(httpx.ConnectError("refused"), httpx.Response(503), httpx.Response(200))
    async with client_of(handler) as client:
        await client.health(timeout_s=2.0)
    assert len(times) == 3


async def test_health_gives_up() -> None:
    handler, _ = script(httpx.ConnectError("refused"))
    async with client_of(handler) as client:
        with pytest.raises(RewardServiceUnavailable, match=rf"{URL}.*not ready.*refused"):
            await client.health(timeout_s=0.1)


@pytest.mark.parametrize("url", ["", "rewards:8300", "ftp://rewards", "http://", "http://h:x"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="reward service url"):
        RewardClient(url)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_items": 0},
        {"batch_window_s": -1},
        {"timeout_s": 0},
        {"deadline_s": -1},
        {"max_concurrency": 0},
        {"timeout_s": float("nan")},
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be (positive|in)"):
        RewardClient(URL, **settings)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """For 127.0.0.1, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("the certificate is made by openssl")
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=rewards -addext subjectAltName=IP:127.0.0.1"
    arguments = [*command.split(), "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(arguments, check=True, capture_output=True, timeout=60)
    return files


async def test_tls_with_a_certificate_of_ones_own(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    settings = ServiceSettings(
        port=0, num_workers=1, rewards=("gsm8k_format",), ssl_certfile=certificate[0], ssl_keyfile=certificate[1]
    )
    with start_in_subprocess(settings, log_path=tmp_path / "log") as service:
        assert service.url.startswith("https://")
        async with RewardClient(service.url, ca_file=certificate[0]) as client:
            results = await client.score(ITEMS, REWARDS[:1])
            assert [result.total for result in results] == [0.5, 0.0]
        async with RewardClient(service.url, deadline_s=0.3) as client:
            with pytest.raises(RewardServiceUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await client.score(ITEMS, REWARDS)


async def test_proxies_of_the_environment_see_nothing_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9"  # where nobody answers
    with recording_proxy() as proxy:
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        for use_proxy in (False, True):
            settings = ClientSettings(url=url, api_key="hunter2", use_proxy=use_proxy)
            assert await asyncio.to_thread(ask_for_rewards, settings) is None
            assert len(proxy.seen) == use_proxy
            async with RewardClient(url, api_key="hunter2", deadline_s=0.3, use_proxy=use_proxy) as client:
                with pytest.raises(RewardServiceUnavailable):
                    await client.score(ITEMS, REWARDS)
            assert bool(proxy.seen) is use_proxy
        assert all("Bearer hunter2" in line for line in proxy.seen)


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("hello")
    for path in (tmp_path / "ca.pem", tmp_path / "none.pem"):
        with pytest.raises(ValueError, match=r"ca_file '.*pem' cannot be used"):
            RewardClient("https://rewards", ca_file=path)


async def test_credentials_in_the_url_are_sent_and_not_shown() -> None:
    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(401)

    async with RewardClient("http://any:secret@rewards.test", transport=httpx.MockTransport(handler)) as client:
        with pytest.raises(RequestRefusedError, match=r"^reward service http://rewards\.test refused") as caught:
            await client.score(ITEMS, REWARDS)
    assert requests[0].headers["authorization"].startswith("Basic ")
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="//…@h:x") as raised:
        RewardClient("http://any:secret@h:x")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("kind", [RewardServiceError, RequestRefusedError, RewardServiceUnavailable, BadAnswerError])
def test_errors_survive_pickling(kind: type[Exception]) -> None:
    error = pickle.loads(pickle.dumps(kind("why")))
    assert (type(error), str(error)) == (kind, "why")


def test_results_are_plain_data() -> None:
    result = ItemResult(id="a", total=None, rewards={})
    assert pickle.loads(pickle.dumps(result)) == result
