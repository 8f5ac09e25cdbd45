"""The protocols that other trainers speak, as pure functions between their bodies and ours.

OpenRLHF's remote reward sends lists: `query` is a prompt with its completion, `prompts` and `labels` belong to it (old
versions send `query` alone); it expects `rewards`, `scores` (which its dynamic sampling filters by, so they are in
[0, 1]) and `extra_logs`, lists of as many numbers. slime sends one item a request and expects a bare number.
open-instruct's `code_api_url` sends a program with its tests and expects 1 or 0 for each.

OpenRLHF and slime cannot be told "no score": they try every error again and then crash. So the profile says what stands
for it (`unscorable`), and the reason goes into the answer (`unscored`, of OpenRLHF's), the log and the metrics.

Both decode the sampled tokens with the one that ended them, so that an answer arrives as "72<|im_end|>", which is no
number: the profile names such texts, and they are taken off the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from reward_service.errors import ContradictionError, InvalidLabelError, ServiceError, UnscorableError
from reward_service.pool.messages import EncodedItem, ScoredItem
from reward_service.sandbox.testcases import BrokenTestsError, read
from reward_service.schemas import OpenRlhfRequest, OpenRlhfResponse, ProgramRequest, ScoreItem, SlimeRequest
from reward_service.scoring import Plan
from reward_service.settings import Profile
from reward_service.text.chat import transcript
from reward_service.text.end_tokens import without_end_tokens
from reward_service.text.labels import reference_of
from reward_service.text.queries import completion_of
from reward_service.types import Reason, RewardSpec

DROPPED_SCORE: Final = -1e6
"""The `score` of what OpenRLHF is to leave out: no mean over a group with it is in a range of its dynamic filtering."""


class Loss(NamedTuple):
    """Why an item has no score."""

    item: int
    reward: str
    reason: str
    message: str
    of_label: bool
    """Every reward that gave no score says that the label is at fault."""

    def __str__(self) -> str:
        return f"{self.reward}: {self.reason} ({self.message})"


def losses_in(plan: Plan, results: Sequence[ScoredItem]) -> dict[int, Loss]:
    """The items without a full score, by their index: a part of a total would be another scale."""
    found = {}
    for index, result in enumerate(results):
        missing = [planned.reward.name for planned, score in zip(plan, result.scores, strict=True) if score is None]
        if missing or result.total is None:
            rewards = msgspec.json.decode(result.result, type=EncodedItem).rewards
            reasons = [str(rewards[name].reason) for name in missing]
            message = " ".join(str(rewards[missing[0]].details.get("message", "no more is known")).split())
            of_label = all(reason == Reason.INVALID_REFERENCE for reason in reasons)
            found[index] = Loss(index, missing[0], reasons[0], message, of_label)
    return found


def error_of(loss: Loss) -> ServiceError:
    """The answer to a request with an item that cannot be scored, where that is an error."""
    return (InvalidLabelError if loss.of_label else UnscorableError)(
        f"item {loss.item} has no score for {loss}, which this protocol cannot say; the profile's setting"
        " `unscorable` can name a number for it, or use POST /v1/score"
    )


def from_openrlhf(body: OpenRlhfRequest, profile: Profile) -> list[ScoreItem]:
    """The items; the completion is the query without its leading prompt. ContradictionError if one does not lead."""
    prompts = body.prompts or [""] * len(body.query)
    labels = body.labels or [None] * len(body.query)
    if not len(body.query) == len(prompts) == len(labels):
        raise ContradictionError(
            f"query, prompts and labels must be as long as one another; they have {len(body.query)},"
            f" {len(prompts)} and {len(labels)} entries"
        )
    items = []
    for index, (query, prompt, label) in enumerate(zip(body.query, prompts, labels, strict=True)):
        completion = completion_of(query, prompt)
        if completion is None:
            raise ContradictionError(
                f"query.{index} does not begin with prompts.{index}, so its completion cannot be told apart"
            )
        items.append(_item(prompt, completion, label, profile, str(index)))
    return items


def to_openrlhf(
    plan: Plan, results: Sequence[ScoredItem], losses: Mapping[int, Loss], profile: Profile
) -> OpenRlhfResponse:
    """The answer. ServiceError where an item has no score and the profile wants that."""
    totals = [_total(result, losses.get(index), profile) for index, result in enumerate(results)]
    low = sum(min(p.weight * p.reward.low, p.weight * p.reward.high) for p in plan)
    high = sum(max(p.weight * p.reward.low, p.weight * p.reward.high) for p in plan)
    shares = [min(1.0, max(0.0, (total - low) / (high - low))) if high > low else 0.0 for total in totals]
    if profile.unscorable == "drop":
        shares = [DROPPED_SCORE if index in losses else share for index, share in enumerate(shares)]
    stand_in = _stand_in(profile)
    logs = {
        planned.reward.name: [stand_in if (score := result.scores[index]) is None else score for result in results]
        for index, planned in enumerate(plan)
    }
    unscored = {str(index): str(loss) for index, loss in losses.items()}
    return OpenRlhfResponse(rewards=totals, scores=shares, extra_logs=logs, unscored=unscored)


def from_slime(body: SlimeRequest, profile: Profile) -> list[ScoreItem]:
    """The one item; chat messages are put down as `role: content` lines."""
    return [_item(transcript(body.prompt), body.response, body.label, profile, "")]


def to_slime(results: Sequence[ScoredItem], losses: Mapping[int, Loss], profile: Profile) -> float:
    """The bare number. ServiceError where there is none and the profile wants that."""
    return _total(results[0], losses.get(0), profile)


def from_open_instruct(body: ProgramRequest, *, stdio: bool) -> tuple[tuple[RewardSpec, ...], list[ScoreItem]]:
    """The program as many times as there are tests, an item each, so that each has a result of its own.

    Args:
        body: the tests are a list, or a JSON text of one: assertions, other code, or with `stdio` objects of `input`
            and `output`.
        stdio: the program is run as a script.

    Raises ContradictionError for tests that are none.
    """
    tests = body.tests
    if isinstance(tests, str):
        try:
            tests = msgspec.json.decode(tests)
        except msgspec.DecodeError:
            raise ContradictionError(
                "tests is a text that is not JSON; give a list, or a list as JSON: pickled tests are not read, as"
                " reading them would run what they say"
            ) from None
    if not isinstance(tests, list) or not tests:
        raise ContradictionError(f"tests is not a list of tests: {tests!r:.100}")
    params = {"extract": "whole", "compiles": 0, "runs": 0, "tests": 0, "all_tests": 1}
    spec = RewardSpec(name="code", params={**params, "test_timeout_s": body.max_execution_time})
    return (spec,), [
        ScoreItem(completion=body.program, reference=_test(test, index, stdio=stdio), id=str(index))
        for index, test in enumerate(tests)
    ]


def _test(test: Any, index: int, *, stdio: bool) -> dict[str, Any]:
    """One of open-instruct's tests as a reference of the reward `code`: if it can be, one that is judged outside the
    sandbox."""
    forms: list[dict[str, Any]] = [{"asserts": [test]}, {"tests": [test]}]
    if stdio:
        if not (isinstance(test, dict) and isinstance(test.get("output"), str)):
            raise ContradictionError(f'tests.{index} is no object with a text under "output": {test!r:.100}')
        forms = [{"stdio": [{"stdin": test.get("input") or "", "stdout": test["output"]}]}]
    why = ""
    for reference in forms:
        try:
            read(reference)
        except BrokenTestsError as error:
            why = str(error)
        else:
            return reference
    raise ContradictionError(f"tests.{index}: {why}")


def with_stripped_ends(items: list[ScoreItem], end_tokens: Sequence[str]) -> list[ScoreItem]:
    """The items, their completions without end tokens."""
    return [msgspec.structs.replace(one, completion=without_end_tokens(one.completion, end_tokens)) for one in items]


def _item(prompt: str, completion: str, label: Any, profile: Profile, item_id: str) -> ScoreItem:
    return ScoreItem(
        completion=without_end_tokens(completion, profile.end_tokens),
        prompt=prompt,
        reference=reference_of(label, profile.label_key),
        id=item_id,
    )


def _total(result: ScoredItem, loss: Loss | None, profile: Profile) -> float:
    """The weighted total with every reward in it, or what stands for it."""
    if loss is None:
        assert result.total is not None  # an item without a total is a loss
        return result.total
    if profile.unscorable == "error":
        raise error_of(loss)
    return _stand_in(profile)


def _stand_in(profile: Profile) -> float:
    return profile.unscorable if isinstance(profile.unscorable, float) else 0.0
