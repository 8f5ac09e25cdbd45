"""The protocols of other trainers over the wire: what OpenRLHF and slime send, by the libraries they send it with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import requests

from reward_service.child import start_in_subprocess
from reward_service.keys import add_key
from reward_service.settings import GSM8K_PROFILE, Profile, ProfileReward, ServiceSettings

PROMPT = "<|im_start|>user\nWhat is 48 + 24?<|im_end|>\n<|im_start|>assistant\n"
GOOD = "48 + 24 = 72\n#### The final answer is 72"
LENIENT = (ProfileReward(name="last_number", weight=2.0),)
PROFILES = {
    "gsm8k": GSM8K_PROFILE,
    "lenient": Profile(rewards=LENIENT),
    "shaped": Profile(
        rewards=(*LENIENT, ProfileReward(name="length", weight=0.5, params={"max_length": 10, "cache": 10}))
    ),
    "lost-is-minus-one": Profile(rewards=GSM8K_PROFILE.rewards, unscorable=-1.0),
    "as-it-comes": Profile(rewards=GSM8K_PROFILE.rewards, end_tokens=()),
}


class Service(NamedTuple):
    url: str
    """With credentials, as these trainers have no other way to send them."""
    bare_url: str
    key: str


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("service")
    _, key = add_key(folder / "keys.json", "trainer")
    settings = ServiceSettings(
        port=0,
        num_workers=1,
        keys_file=folder / "keys.json",
        rewards=("gsm8k_format", "gsm8k_correctness", "last_number", "length"),
        profiles=PROFILES,
    )
    with start_in_subprocess(settings, log_path=folder / "log") as running:
        yield Service(running.url.replace("//", f"//trainer:{key}@"), running.url, key)
    assert key not in (folder / "log").read_text()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def get_reward(url: str, completions: list[str], labels: list[Any], prompts: list[str] | None = None) -> Any:
    """OpenRLHF's request, by requests; its agents send the same by aiohttp."""
    prompts = [PROMPT] * len(completions) if prompts is None else prompts
    queries = [PROMPT + completion for completion in completions]
    body = {"query": queries, "prompts": prompts, "labels": labels}
    return requests.post(url=url, json=body, headers={"Content-Type": "application/json"}, timeout=30)


async def rm(url: str, **body: Any) -> tuple[int, Any]:
    """slime's request."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
        session.post(url, json=body) as answer,
    ):
        return answer.status, await answer.json()


def test_openrlhf(service: Service) -> None:
    response = get_reward(f"{service.url}/get_reward", [GOOD, "72", "#### The final answer is 7"], ["72", "72", "72"])
    response.raise_for_status()
    assert response.json() == {
        "rewards": [1.5, 0.0, 0.5],
        "scores": pytest.approx([1.0, 0.0, 1 / 3]),
        "extra_logs": {"gsm8k_format": [0.5, 0.0, 0.5], "gsm8k_correctness": [1.0, 0.0, 0.0]},
    }


async def test_openrlhf_agents(service: Service) -> None:
    """One at a time, the completion with the token that ended it."""
    body = {"query": [f"{PROMPT}{GOOD}<|im_end|>"], "prompts": [PROMPT], "labels": ["72"]}
    status, answer = await rm(f"{service.url}/get_reward", **body)
    assert (status, answer["rewards"], answer["scores"]) == (200, [1.5], [1.0])
    assert answer["extra_logs"] == {"gsm8k_format": [0.5], "gsm8k_correctness": [1.0]}


async def test_slime(service: Service) -> None:
    for response, label, expected in [(GOOD, "72", 1.5), (GOOD, "73", 0.5), (GOOD, 72, 1.5), ("72", "72", 0.0)]:
        body = {"prompt": "What is 48 + 24?", "response": response, "label": label}
        assert await rm(f"{service.url}/rm", **body) == (200, expected)


async def test_slime_with_chat_messages_and_end_token(service: Service) -> None:
    prompt = [{"role": "user", "content": "What is 48 + 24?"}]
    assert await rm(f"{service.url}/rm", prompt=prompt, response=f"{GOOD}<|eot_id|>", label="72") == (200, 1.5)


@pytest.mark.parametrize(
    ("completion", "profile", "expected"),
    [
        (f"{GOOD}</s>", "gsm8k", 1.5),
        (f"{GOOD}<|im_end|><|endoftext|>", "gsm8k", 1.5),
        (f"{GOOD}<|im_end|>", "as-it-comes", 0.0),
        (f"{GOOD}<|im_end|>\n#### The final answer is 71", "gsm8k", 0.0),  # nothing is hidden in the middle
        (f"{GOOD}{'</s>' * 9}", "gsm8k", 0.0),
    ],
)
def test_end_tokens(service: Service, completion: str, profile: str, expected: float) -> None:
    assert get_reward(f"{service.url}/get_reward/{profile}", [completion], ["72"]).json()["rewards"] == [expected]


async def test_profiles(service: Service) -> None:
    response = get_reward(f"{service.url}/get_reward/lenient", ["it is 72", "no"], ["72", "72"])
    assert response.json() == {"rewards": [2.0, 0.0], "scores": [1.0, 0.0], "extra_logs": {"last_number": [1.0, 0.0]}}
    # 2 * 1 - 0.5 * 5 / 10, of what lies between -0.5 and 2
    response = get_reward(f"{service.url}/get_reward/shaped", ["so 72"], ["72"])
    assert (response.json()["rewards"], response.json()["scores"]) == ([1.75], [pytest.approx(0.9)])
    assert await rm(f"{service.url}/rm/lenient", prompt="q", response="it is 72", label="72") == (200, 2.0)


async def test_unknown_profile(service: Service) -> None:
    response = get_reward(f"{service.url}/get_reward/nope", [GOOD], ["72"])
    assert (response.status_code, response.json()["error"]) == (404, "unknown_profile")
    assert "gsm8k, lenient" in response.json()["detail"]
    status, answer = await rm(f"{service.url}/rm/nope", prompt="q", response=GOOD, label="72")
    assert (status, answer["error"]) == (404, "unknown_profile")


async def test_unscorable(service: Service) -> None:
    response = get_reward(f"{service.url}/get_reward", [GOOD, GOOD], ["72", "nobody knows"])
    assert (response.status_code, response.json()["error"]) == (409, "invalid_label")
    assert response.json()["detail"].startswith("item 1 has no score for gsm8k_correctness")
    response = get_reward(f"{service.url}/get_reward/lost-is-minus-one", [GOOD, GOOD], ["72", None])
    assert response.json()["rewards"] == [1.5, -1.0]
    assert response.json()["scores"] == [1.0, 0.0]
    status, answer = await rm(f"{service.url}/rm", prompt="q", response=GOOD, label=None)
    assert (status, answer["error"]) == (409, "invalid_label")
    assert await rm(f"{service.url}/rm/lost-is-minus-one", prompt="q", response=GOOD, label=None) == (200, -1.0)


def test_a_label_may_be_the_whole_reference(service: Service) -> None:
    assert get_reward(f"{service.url}/get_reward", [GOOD], [{"final_answer": "72"}]).json()["rewards"] == [1.5]


def test_a_query_without_its_leading_prompt(service: Service) -> None:
    """Where the completion begins cannot be told, so nothing is guessed."""
    response = get_reward(f"{service.url}/get_reward", [GOOD, GOOD], ["72", "72"], prompts=[PROMPT, "another"])
    assert (response.status_code, response.json()["error"]) == (409, "contradiction")
    assert "query.1 does not begin with prompts.1" in response.json()["detail"]
    response = get_reward(f"{service.url}/get_reward", [GOOD], ["72"], prompts=[""])
    assert response.json()["rewards"] == [1.5]  # no prompt leads everything


def test_lists_of_other_lengths(service: Service) -> None:
    response = get_reward(f"{service.url}/get_reward", [GOOD], ["72", "72"])
    assert response.status_code == 409
    assert "they have 1, 1 and 2 entries" in response.json()["detail"]
    assert get_reward(f"{service.url}/get_reward", [], []).json()["rewards"] == []


async def test_who_may(service: Service) -> None:
    for url in (service.bare_url, service.url.replace(service.key, service.key[:-1] + "!")):
        response = get_reward(f"{url}/get_reward", [GOOD], ["72"])
        assert response.status_code == 401
        assert "Basic" in response.headers["WWW-Authenticate"]
        status, answer = await rm(f"{url}/rm", prompt="q", response=GOOD, label="72")
        assert (status, answer["error"]) == (401, "unauthorized")
