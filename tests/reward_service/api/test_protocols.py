"""The protocols of other trainers over the wire: what OpenRLHF and slime send, by the libraries they send it with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import requests

from reward_service.api.protocols import DROPPED_SCORE
from reward_service.api.rare_log import INTERVAL_S, RareLog
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
    "lost-is-an-error": Profile(rewards=GSM8K_PROFILE.rewards, unscorable="error"),
    "format": Profile(rewards=(ProfileReward(name="gsm8k_format"),)),
    "as-it-comes": Profile(rewards=GSM8K_PROFILE.rewards, end_tokens=()),
}


class Service(NamedTuple):
    url: str
    """With credentials, as these trainers have no other way to send them."""
    bare_url: str
    key: str
    log: Path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("service")
    _, key = add_key(folder / "keys.json", "trainer")
    settings = ServiceSettings(
        port=0,
        num_workers=1,
        keys_file=folder / "keys.json",
        rewards=("gsm8k_format", "gsm8k_correctness", "last_number", "length", "code", "math", "symbolic"),
        profiles=PROFILES,
        end_tokens=("<|im_end|>",),
    )
    with start_in_subprocess(settings, log_path=folder / "log") as running:
        yield Service(running.url.replace("//", f"//trainer:{key}@"), running.url, key, folder / "log")
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
        (f"{GOOD}{'</s>' * 900}", "gsm8k", 1.5),  # padding
        (f"{GOOD}<|im_end|>\n", "gsm8k", 1.5),  # as Qwen's template has it
        (f"{GOOD} <|eot_id|> \r\n\n<|endoftext|>\n", "gsm8k", 1.5),
        (f"{GOOD}<|im_end|>\n<|im_start|>user\nThank you!<|im_end|>\n", "gsm8k", 1.5),  # turns put together
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
    """By default what the trainers survive; OpenRLHF's dynamic filtering can tell by the score what to leave out."""
    response = get_reward(f"{service.url}/get_reward", [GOOD, GOOD], ["72", "nobody knows"])
    answer = response.json()
    assert (response.status_code, answer["rewards"], answer["scores"]) == (200, [1.5, 0.0], [1.0, DROPPED_SCORE])
    assert answer["extra_logs"] == {"gsm8k_format": [0.5, 0.5], "gsm8k_correctness": [1.0, 0.0]}
    assert answer["unscored"] == {
        "1": "gsm8k_correctness: invalid_reference (final_answer 'nobody knows' is not a finite number)"
    }
    assert await rm(f"{service.url}/rm", prompt="q", response=GOOD, label="nobody knows") == (200, 0.0)


async def test_unscorable_by_a_number(service: Service) -> None:
    response = get_reward(f"{service.url}/get_reward/lost-is-minus-one", [GOOD, GOOD], ["72", None])
    assert response.json()["rewards"] == [1.5, -1.0]
    assert response.json()["scores"] == [1.0, 0.0]
    assert await rm(f"{service.url}/rm/lost-is-minus-one", prompt="q", response=GOOD, label=None) == (200, -1.0)


async def test_unscorable_is_an_error_where_that_is_wanted(service: Service) -> None:
    response = get_reward(f"{service.url}/get_reward/lost-is-an-error", [GOOD, GOOD], ["72", "nobody knows"])
    assert (response.status_code, response.json()["error"]) == (409, "invalid_label")
    assert response.json()["detail"].startswith(
        "item 1 has no score for gsm8k_correctness: invalid_reference (final_answer 'nobody knows' is not"
    )
    status, answer = await rm(f"{service.url}/rm/lost-is-an-error", prompt="q", response=GOOD, label=None)
    assert (status, answer["error"]) == (409, "invalid_label")
    assert 'the reference has no "final_answer"' in answer["detail"]


def test_slime_finds_the_reason_beside_its_number(service: Service) -> None:
    bare = requests.post(f"{service.url}/rm", json={"prompt": "q", "response": GOOD, "label": "何"}, timeout=30)
    assert (bare.json(), "invalid_reference" in bare.headers["x-reward-unscored"]) == (0.0, True)


def test_what_is_unscorable_is_in_the_log_and_the_metrics(service: Service) -> None:
    """A line at once, and not one for each."""
    for _ in range(5):
        get_reward(f"{service.url}/get_reward/lost-is-minus-one", [GOOD] * 3, ["twelve"] * 3)
    lines = [line for line in service.log.read_text().splitlines() if "lost-is-minus-one: no score" in line]
    assert len(lines) == 1
    assert "gsm8k_correctness: invalid_reference (" in lines[0]
    counted = requests.get(f"{service.url}/metrics", timeout=30).text
    labels = 'profile="lost-is-minus-one",reason="invalid_reference",reward="gsm8k_correctness"'
    (count,) = [line.split()[-1] for line in counted.splitlines() if labels in line and "_total" in line]
    assert float(count) >= 15


def test_the_log_says_how_many_it_left_out(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = RareLog(clock=lambda: now)
    for _ in range(4):
        log.tell("gsm8k", "timeout", "why")
    now = INTERVAL_S
    log.tell("gsm8k", "timeout", "why")
    log.tell("gsm8k", "invalid_reference", "another")
    assert [record.getMessage() for record in caplog.records] == [
        "gsm8k: no score: why",
        "gsm8k: no score: why, and 3 more since the last line of this kind",
        "gsm8k: no score: another",
    ]


LABELS = [
    "48 + 24 = <<48+24=72>>72\n#### 72",
    "so #### 72",
    72,
    72.0,
    " 72 ",
    "$72.00",
    {"final_answer": 72},
    ["#### 72"],
]


@pytest.mark.parametrize("label", LABELS)
async def test_labels_whose_meaning_is_plain(service: Service, label: Any) -> None:
    assert get_reward(f"{service.url}/get_reward", [GOOD], [label]).json()["rewards"] == [1.5]
    assert await rm(f"{service.url}/rm", prompt="q", response=GOOD, label=label) == (200, 1.5)
    assert await rm(f"{service.url}/rm/lenient", prompt="q", response="so 71", label=label) == (200, 0.0)
    items = [{"completion": GOOD, "reference": label if isinstance(label, dict) else {"final_answer": label}}]
    names = ("gsm8k_correctness", "last_number", "math", "symbolic")
    _, scored = await rm(f"{service.url}/v1/score", rewards=[{"name": name} for name in names], items=items)
    scores = {name: reward["score"] for name, reward in scored["results"][0]["rewards"].items()}
    assert scores == dict.fromkeys(names, 1.0) | ({"symbolic": None} if label == "$72.00" else {})  # no expression


@pytest.mark.parametrize("label", ['{"final_answer": "#### 72"}', '["72"]'])
async def test_labels_that_are_json_in_a_text(service: Service, label: str) -> None:
    assert get_reward(f"{service.url}/get_reward", [GOOD], [label]).json()["rewards"] == [1.5]
    assert await rm(f"{service.url}/rm", prompt="q", response=GOOD, label=label) == (200, 1.5)


def test_slime_is_told_why_what_it_sends_cannot_be_read(service: Service) -> None:
    for sent, why in (
        ({"label": math.nan}, "NaN is no number"),
        ({"response": GOOD + "\ud800"}, "half of a surrogate"),
    ):
        body = json.dumps({"prompt": "q", "response": GOOD, "label": "72", **sent})  # as aiohttp writes it
        answer = requests.post(f"{service.url}/rm", data=body, timeout=30)
        assert (answer.status_code, answer.json()) == (200, 0.0)
        assert why in answer.headers["x-reward-unscored"]


@pytest.mark.parametrize("label", ["", " ", None, "so #### "])
async def test_an_empty_label_is_none(service: Service, label: Any) -> None:
    assert get_reward(f"{service.url}/get_reward/format", [GOOD], [label]).json()["rewards"] == [0.5]
    assert await rm(f"{service.url}/rm/format", prompt="q", response=GOOD, label=label) == (200, 0.5)
    unscored = get_reward(f"{service.url}/get_reward", [GOOD], [label]).json()["unscored"]
    assert unscored == {"0": 'gsm8k_correctness: invalid_reference (the reference has no "final_answer")'}


def test_the_query_alone(service: Service) -> None:
    """As old versions of OpenRLHF send it."""
    for more in ({}, {"prompts": None, "labels": None}, {"prompts": [], "labels": []}):
        body = {"query": [PROMPT + GOOD, PROMPT], **more}
        answer = requests.post(f"{service.url}/get_reward/format", json=body, timeout=30).json()
        assert answer["rewards"] == [0.5, 0.0]


async def test_end_tokens_of_the_plain_endpoint_by_a_setting(service: Service) -> None:
    items = [{"completion": f"{GOOD}{end}", "reference": {"final_answer": "72"}} for end in ("<|im_end|>\n", "</s>")]
    body = {"rewards": [{"name": "gsm8k_correctness"}], "items": items}
    _, scored = await rm(f"{service.url}/v1/score", **body)
    assert [result["total"] for result in scored["results"]] == [1.0, 0.0]  # the other is none of the setting's


PROGRAM = "def add(a, b):\n    return a + b\n"
ECHO = "print(int(input()) + 1)"


@pytest.mark.parametrize(
    ("path", "program", "tests", "results"),
    [
        (
            "test_program",
            PROGRAM,
            ["assert add(1, 2) == 3", "assert add(1, 2) == 4", "assert add(0, 0) == 0"],
            [1, 0, 1],
        ),
        ("test_program", PROGRAM, '["assert add(1, 2) == 3"]', [1]),
        ("test_program", PROGRAM, ["x = add(1, 2)\nassert x + 1 == 4", "assert add(1, 1) < 2"], [1, 0]),
        ("test_program", "def add(:", ["assert add(1, 2) == 3"], [0]),
        ("test_program_stdio", ECHO, [{"input": "1\n", "output": "2\n"}, {"input": "1\n", "output": "3\n"}], [1, 0]),
        ("test_program_stdio", ECHO, '[{"input": "100", "output": "101"}]', [1]),
    ],
)
def test_open_instruct(service: Service, path: str, program: str, tests: Any, results: list[int]) -> None:
    """A program and its tests: 1 or 0 for each, and how long it took."""
    body = {"program": program, "tests": tests, "max_execution_time": 5.0}
    answer = requests.post(f"{service.url}/{path}", json=body, timeout=60)
    assert (answer.status_code, answer.json()["results"]) == (200, results)
    assert [seconds >= 0 for seconds in answer.json()["runtimes"]] == [bool(passed) for passed in results]


@pytest.mark.parametrize(
    ("path", "tests", "why"),
    [
        ("test_program", "eJwBAAD//wAAAAE=", "pickled tests are not read"),
        ("test_program", [], "tests is not a list of tests"),
        ("test_program", ["assert add(1, 2) =="], "does not compile"),
        ("test_program", [3], "is no text"),
        ("test_program_stdio", ["assert True"], 'no object with a text under "output"'),
    ],
)
def test_tests_that_are_none(service: Service, path: str, tests: Any, why: str) -> None:
    answer = requests.post(f"{service.url}/{path}", json={"program": PROGRAM, "tests": tests}, timeout=30)
    assert (answer.status_code, answer.json()["error"]) == (409, "contradiction")
    assert why in answer.json()["detail"]


def test_a_label_may_be_the_whole_reference(service: Service) -> None:
    assert get_reward(f"{service.url}/get_reward", [GOOD], [{"final_answer": "72"}]).json()["rewards"] == [1.5]


def test_a_query_without_its_leading_prompt(service: Service) -> None:
    """Where the completion begins cannot be told, so nothing is guessed."""
    response = get_reward(f"{service.url}/get_reward", [GOOD, GOOD], ["72", "72"], prompts=[PROMPT, "another"])
    assert (response.status_code, response.json()["error"]) == (409, "contradiction")
    assert "query.1 does not begin with prompts.1" in response.json()["detail"]
    assert "/get_reward: no score: status 409, query.1 does not begin with" in service.log.read_text()
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
