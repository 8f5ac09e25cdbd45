"""One item's grade: several samples of the judge's answer, their aggregate, their disagreement."""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from reward_service.judging.cache import GradeCache
from reward_service.judging.client import JudgeClient
from reward_service.judging.judge import JudgeReward, Params
from reward_service.judging.parse import Vote, parse_vote
from reward_service.judging.prompt import Submission, answer_schema, make_marker, messages
from reward_service.rewards.base import InvalidReferenceError, NotScorableError, Task
from reward_service.scoring import unscored
from reward_service.types import Reason, RewardScore

_BY_URGENCY = (Reason.UNAVAILABLE, Reason.TIMEOUT, Reason.VERIFIER_ERROR)


class Judge:
    """Grades by the endpoint of a `JudgeReward`. All methods are called on one event loop."""

    def __init__(self, reward: JudgeReward, *, deadline_s: float) -> None:
        """`deadline_s`: for one sample with all its tries. ServiceStartError if there is no API key to be had."""
        self._reward, self._settings = reward, reward.settings
        self._client = JudgeClient(reward.settings, deadline_s=deadline_s)
        self.max_concurrency = reward.settings.max_concurrency
        self.max_waiting_items = reward.settings.max_waiting_items
        self._cache: GradeCache[RewardScore] = GradeCache(reward.settings.cache_entries)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def grade(self, task: Task, params: Params) -> RewardScore:
        """The score in [0, 1], or None with a reason. The gate is the caller's business."""
        try:
            submission = make_submission(task, params, self._settings.max_input_chars)
        except NotScorableError as error:
            return unscored(error.reason, str(error))
        grade, was_there = await self._cache.get(
            cache_key(self._reward.version, params, submission),
            lambda: self._ask(submission, params),
            keep=lambda grade: grade.score is not None,
        )
        return _with_details(grade, cached=True) if was_there else grade

    async def _ask(self, submission: Submission, params: Params) -> RewardScore:
        low, high = params.scale
        # One marker for all samples of an item: their prompts are the same, and the endpoint reads them once.
        chat, num_defused = messages(params.rubric, low, high, submission, make_marker(submission))
        fields: dict[str, Any] = {
            "messages": chat,
            "temperature": params.sampling_temperature,
            "response_format": self._response_format(low, high),
        }
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    self._vote({**fields, "seed": None if params.seed is None else params.seed + index}, low, high)
                )
                for index in range(params.num_samples)
            ]
        votes = [vote for task in tasks if isinstance(vote := task.result(), Vote)]
        failures = [failure for task in tasks if isinstance(failure := task.result(), NotScorableError)]
        grade = aggregate(votes, failures, params, reasoning_chars=self._settings.reasoning_chars)
        return _with_details(grade, defused=num_defused) if num_defused else grade

    async def _vote(self, fields: dict[str, Any], low: float, high: float) -> Vote | NotScorableError:
        try:
            return parse_vote(await self._client.ask(fields), low, high)
        except NotScorableError as error:
            return error

    def _response_format(self, low: float, high: float) -> dict[str, Any] | None:
        match self._settings.response_format:
            case "json_schema":
                schema = {"name": "grade", "strict": True, "schema": answer_schema(low, high)}
                return {"type": "json_schema", "json_schema": schema}
            case "json_object":
                return {"type": "json_object"}
            case "none":
                return None


def make_submission(task: Task, params: Params, max_chars: int) -> Submission:
    """What the judge is to see.

    Args:
        task: Prompt, completion and reference.
        params: Say what of them is shown.
        max_chars: Of all texts together.

    Raises:
        NotScorableError: They are longer, or what is to be shown is not there.
    """
    reference = None
    if params.show_reference:
        if task.reference is None:
            raise InvalidReferenceError("show_reference is set, and the item has no reference")
        try:
            reference = json.dumps(task.reference, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidReferenceError(f"the reference is not JSON: {error!s:.100}") from None
    submission = Submission(task.completion, task.prompt if params.show_prompt else None, reference)
    length = sum(len(text) for text in submission if text is not None)
    if length > max_chars:
        raise NotScorableError(f"{length} characters to be judged, and judge.max_input_chars = {max_chars}")
    return submission


def cache_key(version: str, params: Params, submission: Submission) -> str:
    """Hash of all that the grade depends on; the gate is not among it, as it comes before."""
    asked = params.model_dump(mode="json", exclude={"gate"})
    return hashlib.sha256(json.dumps([version, asked, *submission]).encode()).hexdigest()


def aggregate(
    votes: Sequence[Vote], failures: Sequence[NotScorableError], params: Params, *, reasoning_chars: int
) -> RewardScore:
    """The score of the votes, mapped from the scale to [0, 1]; None if they are too few.

    Args:
        votes: On the scale of `params`.
        failures: Why other votes did not come about; the commonest reason is the score's where votes are too few.
        params: `needed` votes at least.
        reasoning_chars: How much of the judge's reasoning goes into the details.
    """
    failed = Counter(failure.reason for failure in failures)
    details: dict[str, Any] = {"votes": [vote.score for vote in votes]}
    if failed:
        details["failures"] = {str(reason): count for reason, count in failed.items()}
    if len(votes) < params.needed:
        # What fails most is the reason; of several that fail as often, the one that is least the judge's own.
        reason = max(_BY_URGENCY, key=lambda reason: failed[reason])
        first = next(str(failure) for failure in failures if failure.reason == reason)
        told = f"{len(votes)} of {params.num_samples} answers count, {params.needed} are needed: {first}"
        return _with_details(unscored(reason, told), **details)
    scores = [vote.score for vote in votes]
    match params.aggregate:
        case "mean":
            value = statistics.fmean(scores)
        case "median":
            value = statistics.median(scores)
        case "majority":
            value = min(statistics.multimode(scores))
    low, high = params.scale
    details |= {"grade": value, "std": statistics.pstdev(scores), "min": min(scores), "max": max(scores)}
    if reasoning_chars:
        details["reasoning"] = min(votes, key=lambda vote: abs(vote.score - value)).reasoning[:reasoning_chars]
    return RewardScore(score=min(1.0, max(0.0, (value - low) / (high - low))), details=details)


def _with_details(score: RewardScore, **details: Any) -> RewardScore:
    return RewardScore(score=score.score, reason=score.reason, details={**score.details, **details})
