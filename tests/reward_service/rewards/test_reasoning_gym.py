"""The verifiers of reasoning-gym as a reward: entries as a trainer sends them, over JSON."""

from __future__ import annotations

import builtins
import json
from typing import Any

import pytest

from reward_service.registry import BUILTIN_REWARDS
from reward_service.rewards import reasoning_gym as module
from reward_service.rewards.base import InvalidReferenceError, UnavailableError
from reward_service.types import ANSWER_PREFIX

REWARD = BUILTIN_REWARDS["reasoning_gym"]
DATASETS = ("chain_sum", "leg_counting", "spell_backward", "basic_arithmetic", "word_sorting", "mini_sudoku", "rearc")
SUM = {"dataset": "chain_sum", "entry": {"question": "70 + 2 =", "answer": "72", "metadata": {}}}


@pytest.fixture(scope="session")
def gym() -> Any:
    return pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (the extra of that name)")


def entry_of(gym: Any, dataset: str) -> dict[str, Any]:
    """A reference as it arrives."""
    reference = {"dataset": dataset, "entry": gym.create_dataset(dataset, size=1, seed=3)[0]}
    decoded: dict[str, Any] = json.loads(json.dumps(reference))
    return decoded


def score(completion: str, reference: Any, **params: Any) -> Any:
    return REWARD.score(completion, reference, REWARD.params(**params))


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_entrys_own_answer_is_right_and_nonsense_is_not(gym: Any, dataset: str) -> None:
    reference = entry_of(gym, dataset)
    answer = reference["entry"]["answer"]
    assert score(answer, reference, answer_in="whole").score == 1.0
    assert score(f"So <answer>{answer}</answer>", reference, answer_in="tags").score == 1.0
    assert score("<answer>%%%</answer>", reference, answer_in="tags").score < 0.1


def test_answers_are_taken_as_other_rewards_take_them(gym: Any) -> None:
    assert score(f"70 + 2 is easy.\n{ANSWER_PREFIX} 72", SUM).score == 1.0
    assert score(f"{ANSWER_PREFIX} **72**.", SUM).score == 1.0
    assert score(r"So \boxed{72}", SUM).score == 1.0
    assert score("72", SUM).details["why"] == "no answer"
    guessed = score(f"{ANSWER_PREFIX} 72\n{ANSWER_PREFIX} 71", SUM)
    assert (guessed.score, guessed.details["why"]) == (0.0, "the verifier of chain_sum gives 0 for 71")


def test_partial_credit_is_the_verifiers(gym: Any) -> None:
    assert score(f"{ANSWER_PREFIX} it is 72", SUM).score == pytest.approx(
        2 / 8
    )  # as long as the answer, of what was said


def test_an_answer_on_which_the_verifier_fails_is_wrong_and_an_entry_on_which_it_does_is_invalid(gym: Any) -> None:
    reference = entry_of(gym, "prime_factorization")
    assert score(f"{ANSWER_PREFIX} nonsense", reference).score == 0.0
    reference["entry"] = {"question": "?", "answer": "two"}
    with pytest.raises(InvalidReferenceError, match="fails with the entry's own answer: ValueError"):
        score(f"{ANSWER_PREFIX} nonsense", reference)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (None, "dataset None is not the name"),
        ({"dataset": "chain_sum"}, "entry None is not an entry of chain_sum"),
        ({"dataset": "chain_sum", "entry": {"question": "?"}}, "is not an entry of chain_sum"),
    ],
)
def test_a_reference_that_is_no_entry(reference: Any, message: str) -> None:
    with pytest.raises(InvalidReferenceError, match=message):
        score(f"{ANSWER_PREFIX} 72", reference)


def test_there_is_no_such_data_set(gym: Any) -> None:
    for dataset in ("nonesuch", "composite"):
        with pytest.raises(InvalidReferenceError, match=f"no verifier for dataset '{dataset}'"):
            score(f"{ANSWER_PREFIX} 72", {**SUM, "dataset": dataset})


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "reasoning_gym":
            raise ModuleNotFoundError("no", name=name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    module._verifier.cache_clear()
    with pytest.raises(UnavailableError, match=r"install rlvr\[reasoning-gym\]"):
        score(f"{ANSWER_PREFIX} 72", SUM)
