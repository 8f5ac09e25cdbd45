"""verl's adapter against the real service, called as verl's managers call it; verl itself is in test_callers_verl."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import math
import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from reward_service.audit.settings import AuditSettings
from reward_service.child import RunningService, start_in_subprocess
from reward_service.clients import verl
from reward_service.clients.errors import RewardServiceUnavailable, UnscorableError
from reward_service.clients.verl import (
    compute_score,
    compute_score_async,
    compute_score_batch,
    make_compute_score,
    read_settings,
)
from reward_service.settings import ServiceSettings

GSM8K = "openai/gsm8k"
GOOD = "48 + 24 = 72\n#### The final answer is 72"
PERFECT = {"score": 1.5, "gsm8k_format": 0.5, "gsm8k_correctness": 1.0}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("service")
    settings = ServiceSettings(
        port=0,
        num_workers=1,
        rewards=("gsm8k_format", "gsm8k_correctness", "last_number", "length"),
        audit=AuditSettings(database=f"sqlite:///{folder}/audit.db"),
    )
    with start_in_subprocess(settings, log_path=folder / "log") as running:
        yield running


@pytest.fixture
def url(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RLVR_REWARD_URL", service.url)
    return service.url


def test_as_naive_and_dapo_call_it(url: str) -> None:
    extra = {"split": "train", "index": 3, "question": "How many?", "num_turns": None}
    result = compute_score(data_source=GSM8K, solution_str=GOOD, ground_truth="72", extra_info=extra)
    assert result == PERFECT
    assert compute_score(GSM8K, "no idea", "72")["score"] == 0.0


def test_where_an_item_comes_from_is_recorded(url: str) -> None:
    compute = make_compute_score(url, run_id="verl")
    compute(GSM8K, GOOD, "72", {"split": "train", "index": 3})
    answer = httpx.get(f"{url}/v1/audit", params={"run_id": "verl", "id": "train/3"}, trust_env=False).json()
    assert [record["total"] for record in answer["records"]] == [1.5]


def test_as_batch_calls_it(url: str) -> None:
    results = compute_score_batch(
        data_sources=np.array([GSM8K] * 3, dtype=object),
        solution_strs=[GOOD, "no idea", GOOD],
        ground_truths=["72", "72", "73"],
        extra_infos=np.array([None, {}, {"index": np.int64(2)}], dtype=object),
        batch_window_s=0,
    )
    assert [result["score"] for result in results] == [1.5, 0.0, 0.5]
    assert compute_score_batch([], [], [], []) == []
    with pytest.raises(ValueError, match="argument 3 is shorter"):
        compute_score_batch([GSM8K] * 2, [GOOD] * 2, ["72"])


async def test_as_the_reward_loop_calls_it(url: str) -> None:
    assert inspect.iscoroutinefunction(compute_score_async)
    calls = [
        compute_score_async(
            data_source=GSM8K, solution_str=GOOD, ground_truth=truth, extra_info={}, reward_router_address=None
        )
        for truth in ("72", "73", "72")
    ]
    assert [result["score"] for result in await asyncio.gather(*calls)] == [1.5, 0.5, 1.5]


def test_many_threads_share_requests(url: str) -> None:
    def num_requests() -> float:
        text = httpx.get(f"{url}/metrics", trust_env=False).text
        (count,) = [line.split()[-1] for line in text.splitlines() if 'requests_total{endpoint="/v1/score"' in line]
        return float(count)

    compute = make_compute_score(url, batch_window_s=0.05)
    compute(GSM8K, GOOD, "72")
    before = num_requests()
    with ThreadPoolExecutor(32) as threads:
        results = list(threads.map(lambda n: compute(GSM8K, GOOD, str(n))["score"], range(64, 96)))
    assert results == [1.5 if n == 72 else 0.5 for n in range(64, 96)]
    assert num_requests() - before < 8


def test_it_travels_to_other_processes(url: str) -> None:
    """As the manager `prime` calls it, positionally."""
    compute_score(GSM8K, GOOD, "72")
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        for function in (compute_score, make_compute_score(url)):
            futures = [pool.submit(partial(function, GSM8K, GOOD, "72", None)) for _ in range(4)]
            assert [future.result(timeout=30) for future in futures] == [PERFECT] * 4


def test_rewards_by_data_source_have_the_same_keys(url: str) -> None:
    choices: dict[str, Any] = {
        GSM8K: ["gsm8k_correctness"],
        "*": [{"name": "last_number", "weight": 2.0}, {"name": "length", "params": {"max_length": 10, "cache": 10}}],
    }
    compute = make_compute_score(url, rewards=choices)
    first, second = compute.batch([GSM8K, "other"], [GOOD, "so 72"], ["72", np.array([72], dtype=object)[0]])
    assert first == pytest.approx(
        {"score": 1.0, "gsm8k_correctness": 1, "last_number": math.nan, "length": math.nan}, nan_ok=True
    )
    assert second == pytest.approx(
        {"score": 1.5, "gsm8k_correctness": math.nan, "last_number": 1, "length": -0.5}, nan_ok=True
    )
    assert list(first) == list(second)
    with pytest.raises(ValueError, match=r"none for the data source 'lighteval/MATH', only for openai/gsm8k; .*'\*'"):
        compute_score("lighteval/MATH", GOOD, "72")


def test_a_ground_truth_that_is_the_whole_reference(url: str) -> None:
    assert compute_score(GSM8K, GOOD, {"final_answer": 72}) == PERFECT
    assert make_compute_score(url, label_key="x", unscorable=0.0)(GSM8K, GOOD, "72")["score"] == 0.0


def test_no_score_is_an_error_or_a_chosen_number(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnscorableError, match=r"no score for gsm8k_correctness: invalid_reference .*`unscorable`"):
        compute_score(GSM8K, GOOD, "nobody knows")
    monkeypatch.setenv("RLVR_REWARD_UNSCORABLE", "-1")
    result = compute_score(GSM8K, GOOD, "nobody knows")
    assert result == pytest.approx({"score": -1, "gsm8k_format": 0.5, "gsm8k_correctness": math.nan}, nan_ok=True)


def test_a_service_that_is_down_is_no_zero() -> None:
    with pytest.raises(RewardServiceUnavailable, match="no usable answer"):
        make_compute_score("http://127.0.0.1:9", deadline_s=0.3)(GSM8K, GOOD, "72")


def test_what_a_path_loads_can_be_pickled(url: str) -> None:
    """As verl ≥ 0.7 loads `custom_reward_function.path`: under a name that nobody can import."""
    spec = importlib.util.spec_from_file_location("custom_module_123", Path(verl.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for function in (module.compute_score, pickle.loads(pickle.dumps(module.compute_score))):
        assert function(GSM8K, GOOD, "72") == PERFECT


@pytest.mark.parametrize("truth", ["72", 72, np.int64(72), "48 + 24 = <<48+24=72>>72\n#### 72", {"final_answer": "72"}])
def test_ground_truths_whose_meaning_is_plain(url: str, truth: Any) -> None:
    assert compute_score(GSM8K, GOOD, truth) == PERFECT


@pytest.mark.parametrize("truth", ["", None])
def test_an_empty_ground_truth_is_none(url: str, truth: Any) -> None:
    assert make_compute_score(url, rewards={"*": ["gsm8k_format"]})(GSM8K, GOOD, truth)["score"] == 0.5
    with pytest.raises(UnscorableError, match='the reference has no "final_answer"'):
        compute_score(GSM8K, GOOD, truth)


def test_settings() -> None:
    environment = {
        "RLVR_REWARD_URL": "http://env",
        "RLVR_REWARD_DEADLINE_S": "12.5",
        "RLVR_REWARD_MAX_CONCURRENCY": "3",
        "RLVR_REWARD_REWARDS": '{"*": ["math"]}',
        "RLVR_REWARD_API_KEY": "k",
    }
    read = read_settings({}, environment)
    assert (read.url, read.deadline_s, read.max_concurrency, read.rewards) == ("http://env", 12.5, 3, {"*": ["math"]})
    assert read_settings({"url": "http://given", "reward_model_tokenizer": object()}, environment).url == "http://given"
    with pytest.raises(ValueError, match="RLVR_REWARD_URL"):
        read_settings({}, {})
    with pytest.raises(ValueError, match="no setting 'rewrads'; there are url, rewards"):
        read_settings({"rewrads": {}}, environment)
    with pytest.raises(ValueError, match="RLVR_REWARD_REWARDS is not JSON"):
        read_settings({}, {**environment, "RLVR_REWARD_REWARDS": "math"})
    with pytest.raises(ValueError, match="Expected `float"):
        read_settings({"timeout_s": "soon"}, environment)
