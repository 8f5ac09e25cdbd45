"""Other people's rewards: what is taken, what is refused, and how each kind is called."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reward_service.custom import CustomRewardError, entry_point_specs, load_custom, load_spec
from reward_service.rewards.base import InvalidReferenceError, NotScorableError, Reward, Task, definition_hash
from reward_service.settings import CustomRewardSpec

SOURCE = '''
from reward_service.rewards.base import Reward, RewardParams
from reward_service.types import RewardScore

class Params(RewardParams):
    word: str = "yes"
    worth: float = 1.0

def ours(completion, reference, params):
    """What it says
    in two lines.

    More."""
    return params.worth if params.word in completion else RewardScore(score=0.0, details={"why": "no word"})

def strict(completion, reference, params):
    return RewardScore(score=params.worth if params.word in completion else 0.0)

REWARD = Reward(name="theirs", description="d", low=-1.0, high=2.0, params=Params, score=strict, deadline_s=3.0)

def trl(prompts, completions, answer, **kwargs):
    kwargs["log_metric"]("n", 1.0)
    return [float(a in c) for a, c in zip(answer, completions)]

def named(completions, answer):
    return [1.0 if completions == [answer[0]] else 0.0]

def chat(completions, **kwargs):
    return [1.0 if completions[0][0] == {"role": "assistant", "content": "hi"} else 0.0]

class Callable:
    def __call__(self, completions, **kwargs):
        return [0.5]

instance = Callable()

def nothing(completions, **kwargs): return [None]
def nan(completions, **kwargs): return [float("nan")]
def high(completions, **kwargs): return [3.0]
def two(completions, **kwargs): return [1.0, 1.0]
def text(completions, **kwargs): return ["good"]
async def later(completions, **kwargs): return [1.0]
def other(text, label): return 1.0
def star(*args, **kwargs): return 1.0
def positional(completions, /, **kwargs): return [1.0]
NUMBER = 5
'''


def load_reward(target: str, *, name: str | None = None, params: dict[str, Any] | None = None) -> Reward:
    """The reward at `module:name`, called as it is called there unless `name` says otherwise."""
    return load_spec(CustomRewardSpec(name=name or target.rpartition(":")[2], target=target, options=params or {}))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"rewards_of_{abs(hash(request.node.nodeid))}"  # a fresh one for each test: modules are cached by name
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def apply(reward: Reward, completion: str, reference: Any = None, metadata: Any = None, **params: Any) -> Any:
    return reward.apply(Task(completion, reference, "why?", metadata or {}), reward.params(**params)).score


def test_our_signature(module: str) -> None:
    reward = load_reward(f"{module}:ours", params={"worth": 0.5})
    assert (reward.name, reward.description, reward.low, reward.high) == (
        "ours",
        "What it says in two lines.",
        0.0,
        1.0,
    )
    assert apply(reward, "yes") == 0.5
    assert apply(reward, "no") == 0.0
    assert apply(reward, "no", word="no", worth=1.0) == 1.0
    assert reward.score("yes", None, reward.params()).score == 0.5
    assert reward.params.model_json_schema()["properties"]["worth"]["default"] == 0.5


def test_a_reward_object_keeps_what_is_not_configured(module: str) -> None:
    spec = CustomRewardSpec(name="mine", target=f"{module}:REWARD", high=5.0, options={"word": "no"})
    reward = load_custom([spec])["mine"]
    assert (reward.name, reward.low, reward.high, reward.deadline_s) == ("mine", -1.0, 5.0, 3.0)
    assert apply(reward, "no") == 1.0


def test_trl_signature_gets_columns_from_reference_and_metadata(module: str) -> None:
    reward = load_reward(f"{module}:trl")
    assert apply(reward, "it is 5", {"answer": "5"}) == 1.0
    assert apply(reward, "it is 5", {}, {"answer": "5"}) == 1.0
    assert apply(reward, "it is 5", {"answer": "6"}, {"answer": "5"}) == 0.0
    assert apply(load_reward(f"{module}:named"), "5", {"answer": "5", "unknown": 1}) == 1.0
    assert apply(load_reward(f"{module}:instance"), "5") == 0.5
    with pytest.raises(InvalidReferenceError, match="neither the reference nor the metadata have 'answer'"):
        apply(reward, "it is 5")


def test_conversational_completions(module: str) -> None:
    assert apply(load_reward(f"{module}:chat", params={"conversational": True}), "hi") == 1.0
    assert apply(load_reward(f"{module}:chat"), "hi", conversational=True) == 1.0


def test_a_reward_of_trl_itself() -> None:
    reward = load_reward("trl.rewards:think_format_reward", params={"conversational": True})
    assert apply(reward, "<think>\nso\n</think>\n72") == 1.0
    assert apply(reward, "72") == 0.0


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("nothing", NotScorableError, "gave None"),
        ("nan", ValueError, "gave nan, outside of"),
        ("high", ValueError, r"gave 3.0, outside of \[0.0, 1.0\]; state the range"),
        ("two", ValueError, "gave 2 scores for one completion"),
        ("text", ValueError, "'good', which is not a number"),
    ],
)
def test_what_is_no_score(module: str, function: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        apply(load_reward(f"{module}:{function}"), "x")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("later", "is async"),
        ("other", r"other\(text, label\) takes neither"),
        ("star", "takes neither"),
        ("positional", "takes neither"),
        ("NUMBER", "has no function NUMBER"),
        ("missing", "has no function missing"),
    ],
)
def test_what_is_refused(module: str, target: str, message: str) -> None:
    with pytest.raises(CustomRewardError, match=message):
        load_reward(f"{module}:{target}", name="r")


def test_modules_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_rewards.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CustomRewardError, match="broken_rewards cannot be imported: ZeroDivisionError"):
        load_reward("broken_rewards:f")
    with pytest.raises(CustomRewardError, match="no_such_module cannot be imported"):
        load_reward("no_such_module:f")


def test_options_are_checked(module: str) -> None:
    with pytest.raises(CustomRewardError, match="has no parameter wrod"):
        load_reward(f"{module}:ours", params={"wrod": "x"})
    with pytest.raises(CustomRewardError, match=r"options\.worth"):
        load_reward(f"{module}:ours", params={"worth": "much"})


@pytest.mark.parametrize("target", ["module", "module:", "os:a.b", "a b:c", ":f"])
def test_targets_are_module_and_name(target: str) -> None:
    with pytest.raises(ValidationError):
        CustomRewardSpec(name="r", target=target)


def test_names_do_not_clash(module: str) -> None:
    spec = CustomRewardSpec(name="gsm8k_format", target=f"{module}:ours")
    with pytest.raises(CustomRewardError, match="there are two rewards 'gsm8k_format'"):
        load_custom([spec], taken=["gsm8k_format"])
    with pytest.raises(CustomRewardError, match="there are two rewards"):
        load_custom([spec, spec])


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        metadata.EntryPoint("b", "pkg.mod:f", "rlvr.rewards"),
        metadata.EntryPoint("a", "m:g [x]", "rlvr.rewards"),
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "rlvr.rewards" else [])
    assert [(spec.name, spec.target) for spec in entry_point_specs()] == [("a", "m:g"), ("b", "pkg.mod:f")]
    points.append(metadata.EntryPoint("c", "pkg.mod", "rlvr.rewards"))
    with pytest.raises(CustomRewardError, match=r"bad target: 'pkg\.mod'"):
        entry_point_specs()


def test_versions_follow_the_module_the_name_and_the_options(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [
        load_reward(f"{module}:ours").version,
        load_reward(f"{module}:trl").version,
        load_reward(f"{module}:ours", params={"word": "no"}).version,
        load_reward(f"{module}:REWARD").version,
    ]
    assert len(set(versions)) == 4
    assert load_reward(f"{module}:ours").version == versions[0]
    (tmp_path / f"{module}.py").write_text(SOURCE + "# changed\n")
    assert load_reward(f"{module}:ours").version != versions[0]


def test_versions_of_libraries_count(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "reward_service.rewards.mathematics"
    before = definition_hash(module, libraries=["sympy"])
    assert before != definition_hash(module)
    monkeypatch.setattr(metadata, "version", lambda name: "999")
    assert definition_hash(module, libraries=["sympy"]) != before
