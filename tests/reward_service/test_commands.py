"""The door that other rooms use in their own process: rewards described, one item scored, what it lacks."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from reward_service.commands import describe_rewards, find_lacks, score_one
from reward_service.custom import CustomRewardError, load_spec
from reward_service.errors import InvalidParamsError, InvalidRequestError, UnknownRewardError
from reward_service.judging.settings import JudgeSettings
from reward_service.settings import CustomRewardSpec, ServiceSettings
from reward_service.types import Reason, ReferenceKeys, RewardItem, RewardSpec

JUDGE = ServiceSettings(judge=JudgeSettings(base_url="http://127.0.0.1:9/v1", model="m"))

# (reward, params, keys of a reference that it reads)
KEYS: list[tuple[str, dict[str, Any], ReferenceKeys]] = [
    ("gsm8k_format", {}, ReferenceKeys()),
    ("gsm8k_correctness", {}, ReferenceKeys(required=("final_answer",))),
    ("last_number", {}, ReferenceKeys(required=("final_answer",))),
    ("math", {}, ReferenceKeys(required=("final_answer",))),
    ("symbolic", {}, ReferenceKeys(required=("final_answer",), optional=("form",))),
    ("exact", {}, ReferenceKeys(required=("final_answer",))),
    ("choice", {}, ReferenceKeys(required=("final_answer",), optional=("options",))),
    ("regex", {}, ReferenceKeys(required=("pattern",), optional=("final_answer",))),
    ("regex", {"pattern": "a"}, ReferenceKeys(optional=("final_answer",))),
    ("regex", {"pattern": "(7)2", "group": 1}, ReferenceKeys(required=("final_answer",))),
    ("regex", {"group": 1}, ReferenceKeys(required=("pattern", "final_answer"))),
    ("json_schema", {}, ReferenceKeys(required=("schema",))),
    ("json_schema", {"schema": {"type": "object"}}, ReferenceKeys()),
    ("code", {}, ReferenceKeys(any_of=("stdio", "calls", "asserts", "tests"), optional=("entry_point", "setup"))),
    ("python", {}, ReferenceKeys()),
    ("length", {}, ReferenceKeys()),
    ("length", {"unit": "tokens"}, ReferenceKeys(metadata=("num_tokens",))),
    ("repetition", {}, ReferenceKeys()),
    ("environment", {}, ReferenceKeys(metadata=("episode",))),
    ("reasoning_gym", {}, ReferenceKeys(required=("dataset", "entry"))),
    ("judge", {"rubric": "Good?"}, ReferenceKeys()),
]
MAY_BE_MISSING = ("judge", "reasoning_gym")
"""An endpoint, and a library."""
FULL: dict[str, Any] = {
    "final_answer": "72",
    "options": {"B": "72"},
    "pattern": "(72)",
    "schema": True,
    "asserts": ["assert f() == 72"],
    "dataset": "chain_sum",
    "entry": {"question": "70 + 2 =", "answer": "72", "metadata": {}},
}


def item(reference: dict[str, Any] | None, completion: str = "72", **metadata: Any) -> RewardItem:
    return RewardItem(completion=completion, reference=reference, metadata=metadata)


def test_every_reward_says_what_it_reads() -> None:
    described = describe_rewards(JUDGE)
    assert set(described) == {name for name, _, _ in KEYS}
    defaults = {name: keys for name, params, keys in KEYS if not params or name == "judge"}
    assert {name: reward.reference for name, reward in described.items()} == defaults


@pytest.mark.parametrize(("name", "params", "keys"), KEYS)
def test_what_a_reward_says_it_needs_is_what_it_needs(name: str, params: dict[str, Any], keys: ReferenceKeys) -> None:
    """With the declared keys the reference fits; without any one of them both the check and the reward say so."""
    spec = [RewardSpec(name=name, params=params)]
    needed = [*keys.required, *(("asserts",) if keys.any_of else ())]
    metadata: dict[str, Any] = {key: {"rewards": []} if key == "episode" else 5 for key in keys.metadata}
    given = {key: "B" if name == "choice" else FULL[key] for key in needed}
    assert find_lacks(spec, item(given, **metadata), JUDGE) == []
    assert reason(spec, item(given, **metadata)) in (None, Reason.UNAVAILABLE if name in MAY_BE_MISSING else None)
    for gone in [*needed, *keys.metadata]:
        poorer = item({k: v for k, v in given.items() if k != gone}, **{k: v for k, v in metadata.items() if k != gone})
        (lack,) = find_lacks(spec, poorer, JUDGE)
        assert lack.reward == name
        assert gone in lack.key
        assert reason(spec, poorer) == Reason.INVALID_REFERENCE


def reason(spec: list[RewardSpec], given: RewardItem) -> str | None:
    (score,) = score_one(spec, given, JUDGE).rewards.values()
    return score.reason


def test_one_item_is_scored_by_several_rewards_with_weights() -> None:
    solution = "```python\ndef f():\n    return 72\n```\n#### The final answer is 72"
    result = score_one(
        [RewardSpec(name="gsm8k_correctness", weight=2.0), RewardSpec(name="code"), RewardSpec(name="gsm8k_format")],
        item({"final_answer": 72, "asserts": ["assert f() == 72"]}, solution),
    )
    assert result.total == 3.5
    assert {name: score.score for name, score in result.rewards.items()} == {
        "gsm8k_correctness": 1.0,
        "code": 1.0,
        "gsm8k_format": 0.5,
    }


def test_an_item_goes_the_way_over_json() -> None:
    assert score_one(
        [RewardSpec(name="exact", params={"answer_in": "whole"})], item({"final_answer": ("71", "72")})
    ).total
    with pytest.raises(InvalidRequestError, match="cannot be sent as JSON"):
        score_one([RewardSpec(name="exact")], item({"final_answer": object()}))


def test_what_no_service_would_take_is_refused() -> None:
    with pytest.raises(UnknownRewardError, match="there is no reward 'nonesuch'"):
        find_lacks([RewardSpec(name="nonesuch")], item({}))
    with pytest.raises(InvalidParamsError, match="rule"):
        score_one([RewardSpec(name="gsm8k_format", params={"rule": "none"})], item({}))


OWN = """
from reward_service.types import ReferenceKeys

def declared(completion, reference, params):
    return float(reference["word"] in completion)
declared.reference_keys = ReferenceKeys(required=("word",))

def by_params(completions, **columns):
    return [1.0]
by_params.reference_keys = lambda params: ReferenceKeys(required=("chat",) if params.conversational else ("text",))

def silent(completion, reference, params):
    return float(reference["word"] in completion)

def wrong(completion, reference, params):
    return 1.0
wrong.reference_keys = "word"
"""


def test_rewards_of_ones_own_may_say_what_they_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_keys_rewards.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(tmp_path)
    names = ("declared", "by_params", "silent")
    settings = ServiceSettings(
        custom_rewards=tuple(CustomRewardSpec(name=name, target=f"own_keys_rewards:{name}") for name in names)
    )
    described = describe_rewards(settings)
    assert [described[name].reference for name in names] == [
        ReferenceKeys(required=("word",)),
        ReferenceKeys(required=("text",)),
        None,
    ]
    chat = RewardSpec(name="by_params", params={"conversational": True})
    specs = [RewardSpec(name="declared"), chat, RewardSpec(name="silent")]
    assert [(lack.reward, lack.key) for lack in find_lacks(specs, item({"text": "x"}), settings)] == [
        ("declared", '"word"'),
        ("by_params", '"chat"'),
    ]
    with pytest.raises(CustomRewardError, match="reference_keys is 'word'"):
        load_spec(CustomRewardSpec(name="wrong", target="own_keys_rewards:wrong"))
