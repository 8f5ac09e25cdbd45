"""regex, json_schema, length and repetition: what earns what."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from pydantic import ValidationError

from reward_service.registry import BUILTIN_REWARDS
from reward_service.rewards.base import InvalidReferenceError, Task
from reward_service.types import RewardScore

MEGABYTE = 2**20


def run(name: str, completion: str, reference: Any = None, **params: Any) -> RewardScore:
    reward = BUILTIN_REWARDS[name]
    result = reward.score(completion, reference, reward.params(**params))
    assert result.score is not None
    assert reward.low <= result.score <= reward.high
    assert len(str(result.details)) < 1000
    return result


@pytest.mark.parametrize(
    ("completion", "params", "score"),
    [
        ("abc", {"pattern": "a.c"}, 1.0),
        (" abc\n", {"pattern": "a.c"}, 1.0),
        ("abcd", {"pattern": "a.c"}, 0.0),
        ("ABC", {"pattern": "a.c"}, 0.0),
        ("ABC", {"pattern": "a.c", "ignore_case": True}, 1.0),
        ("x abc", {"pattern": "a.c", "mode": "search"}, 1.0),
        ("a\nc", {"pattern": "a.c"}, 0.0),
        ("a\nc", {"pattern": "a.c", "dotall": True}, 1.0),
        ("x\nabc", {"pattern": "^abc$", "mode": "search"}, 0.0),
        ("x\nabc", {"pattern": "^abc$", "mode": "search", "multiline": True}, 1.0),
        ("A: 72", {"pattern": r"A: (\d+)", "group": 1}, 1.0),
        ("A: 73", {"pattern": r"A: (\d+)", "group": 1}, 0.0),
        ("A: 72", {"pattern": r"A: (?P<n>\d+)", "group": "n"}, 1.0),
        ("A:", {"pattern": r"A:(\d+)?", "group": 1}, 0.0),
        ("A: 72 A: 73", {"pattern": r"A: (\d+)", "group": 1, "mode": "search"}, 0.0),
        ("A: 72 A: 72", {"pattern": r"A: (\d+)", "group": 1, "mode": "search"}, 1.0),
    ],
)
def test_regex(completion: str, params: dict[str, Any], score: float) -> None:
    assert run("regex", completion, {"final_answer": "72"}, **params).score == score


def test_the_pattern_may_stand_in_the_reference() -> None:
    assert run("regex", "abc", {"pattern": "a.c"}).score == 1.0
    assert run("regex", "abc", {"pattern": "a.c"}, pattern="x").score == 0.0  # the caller's own comes first


@pytest.mark.parametrize("pattern", ["(", "a" * 1001, "", "(?P<n>a)(?P<n>b)", "a{99999999999}"])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(ValidationError):
        run("regex", "abc", None, pattern=pattern)
    with pytest.raises(InvalidReferenceError):
        run("regex", "abc", {"pattern": pattern})


@pytest.mark.parametrize("group", [2, -1, -2, "no"])
def test_groups_that_are_none(group: Any) -> None:
    with pytest.raises(InvalidReferenceError, match="has no group"):
        run("regex", "abc", {"final_answer": "a"}, pattern="(a)bc", group=group)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GOOD = '{"a": 1}'


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        (GOOD, 1.0),
        (f"\n{GOOD}\n", 1.0),
        (f"Here:\n```json\n{GOOD}\n```\nDone.", 1.0),
        (f"```\n{GOOD}\n```", 1.0),
        (f"~~~json\n{GOOD}\n~~~", 1.0),
        (f"Here: {GOOD}", 0.0),
        (f"{GOOD} {GOOD}", 0.0),
        (f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```", 0.0),
        (f"```python\n{GOOD}\n```", 0.0),
        (f"```json\n{GOOD}", 0.0),
        (f"{GOOD}\n```json\n{{}}\n```", 0.0),
        ('{"a": 1, "a": 2}', 0.0),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', 0.0),
        ('{"a": NaN}', 0.0),
        ('{"a": 1, "b": Infinity}', 0.0),
        ('{"a": 1, "b": 1e999}', 0.0),
        ('{"a": ' + "9" * 5000 + "}", 0.0),
        ("{'a': 1}", 0.0),
        ('{"a": 1,}', 0.0),
        ('{"a": "1"}', 0.0),
        ("{}", 0.0),
        ("[]", 0.0),
        ("", 0.0),
        ("\ufeff" + GOOD, 0.0),
        ("[" * 100_000, 0.0),
        ('{"a": 1, "b": ' + "[" * 100 + "]" * 100 + "}", 0.0),
        ('{"a": 1, "b": "' + "x" * 100_000 + '"}', 0.0),
    ],
)
def test_json_schema(completion: str, score: float) -> None:
    assert run("json_schema", completion, {"schema": SCHEMA}).score == score


def test_json_schema_params() -> None:
    assert run("json_schema", GOOD, None, schema=SCHEMA).score == 1.0
    assert run("json_schema", "{}", None, schema=SCHEMA, parse_credit=0.2).score == 0.2
    assert run("json_schema", "{", None, schema=SCHEMA, parse_credit=0.2).score == 0.0
    assert run("json_schema", GOOD, None, schema=SCHEMA, document_in="fenced").score == 0.0
    assert run("json_schema", f"```\n{GOOD}\n```", None, schema=SCHEMA, document_in="whole").score == 0.0
    assert run("json_schema", "{}", {"schema": SCHEMA}).details["why"] == "$: 'a' is a required property"
    assert "schema" in BUILTIN_REWARDS["json_schema"].params.model_json_schema()["properties"]


def test_no_schema_is_ever_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    for reference in ("http://localhost/x.json", "https://localhost/x.json", "file:///etc/passwd", "other.json"):
        with pytest.raises(InvalidReferenceError, match="refers to what is not in it"):
            run("json_schema", GOOD, {"schema": {"$ref": reference}})
    assert run("json_schema", "{}", {"schema": {"$ref": "https://json-schema.org/draft/2020-12/schema"}}).score == 1.0


@pytest.mark.parametrize(
    "schema",
    [None, "{}", [], {"type": "nope"}, {"$ref": "#"}, {"$ref": "#/$defs/none"}, {"description": "x" * 100_001}],
    ids=lambda schema: str(schema)[:30],
)
def test_schemas_that_are_none(schema: Any) -> None:
    with pytest.raises(InvalidReferenceError):
        run("json_schema", GOOD, {"schema": schema})


@pytest.mark.parametrize(
    ("length", "score"),
    # max_length 100, cache 20: -(length - 80) / 20
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0), (10**6, -1.0)],
)
def test_length(length: int, score: float) -> None:
    assert run("length", "x" * length, max_length=100, cache=20).score == pytest.approx(score)
    assert run("length", "x " * length, unit="words", max_length=100, cache=20).score == pytest.approx(score)
    reward = BUILTIN_REWARDS["length"]
    params = reward.params.model_validate({"unit": "tokens", "max_length": 100, "cache": 20})
    assert reward.apply(Task("x", None, "", {"num_tokens": length}), params).score == pytest.approx(score)


def test_length_without_a_slope_is_a_step() -> None:
    assert [run("length", "x" * n, max_length=10, cache=0).score for n in (10, 11)] == [0.0, -1.0]
    with pytest.raises(ValidationError, match="cache 11 is larger than max_length 10"):
        run("length", "", max_length=10, cache=11)


@pytest.mark.parametrize("metadata", [{}, {"num_tokens": -1}, {"num_tokens": "5"}, {"num_tokens": True}])
def test_tokens_are_counted_by_the_caller(metadata: dict[str, Any]) -> None:
    reward = BUILTIN_REWARDS["length"]
    with pytest.raises(InvalidReferenceError, match="num_tokens"):
        reward.apply(Task("x", None, "", metadata), reward.params.model_validate({"unit": "tokens"}))


@pytest.mark.parametrize(
    ("completion", "params", "score"),
    [
        ("", {}, 0.0),
        ("one two", {}, 0.0),
        ("one two three four", {}, 0.0),
        ("a b c a b c", {}, -1 / 4),  # abc bca cab abc
        ("a b c A B C", {}, -1 / 4),
        ("a b c a b c", {"max_penalty": 0.5}, -1 / 8),
        ("a a a a a", {"ngram_size": 1}, -4 / 5),
        ("a" * 16 * 6, {}, -3 / 4),  # six pieces, four trigrams, one of them distinct
        (" " * 16 * 6, {}, -3 / 4),
    ],
)
def test_repetition(completion: str, params: dict[str, Any], score: float) -> None:
    assert run("repetition", completion, **params).score == pytest.approx(score)


@pytest.mark.parametrize("piece", ["a", "ab", "abc", "\n", "####", "go on ", "I am sure of that. ", "1, 2, "])
def test_a_flood_is_repetition(piece: str) -> None:
    assert run("repetition", piece * 1000).score < -0.9  # type: ignore[operator]


@pytest.mark.parametrize("name", ["regex", "json_schema", "length", "repetition"])
@pytest.mark.parametrize("piece", ["#", "\n", "9", "a b ", "`", "```\n", "[", "{", '"', "\\"])
def test_a_megabyte_is_no_trouble(name: str, piece: str) -> None:
    start = time.process_time()
    params = {"json_schema": {"max_chars": 2 * MEGABYTE}}.get(name, {})
    run(name, piece * (MEGABYTE // len(piece)), {"schema": {"type": "object"}, "pattern": "x+"}, **params)
    assert time.process_time() - start < 5.0
