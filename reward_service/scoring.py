"""Scoring a request: named rewards, weights, and work in chunks off the event loop.

`score_chunk` is a pure function of picklable data; who runs it, and how a chunk that does not end is dealt with, is a
`ChunkRunner`'s business. The one here uses threads: rewards are pure Python, so threads buy no speed, but the event
loop goes on answering meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pydantic import ValidationError

from reward_service.errors import InvalidParamsError, InvalidRequestError, UnknownRewardError
from reward_service.rewards.base import NotScorableError, Reward, RewardParams, Task
from reward_service.types import Reason, RewardScore, RewardSpec

logger = logging.getLogger(__name__)

_MAX_MESSAGE_CHARS = 200


class Scores(NamedTuple):
    """What the rewards say of one item."""

    total: float | None
    rewards: dict[str, RewardScore]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedReward:
    """A reward of a request: looked up, its parameters validated."""

    reward: Reward
    weight: float
    params: RewardParams


Plan = Sequence[PlannedReward]


def make_plan(specs: Iterable[RewardSpec], rewards: Mapping[str, Reward]) -> Plan:
    """Looks the rewards up and validates their parameters; a ServiceError names what does not fit."""
    plan: dict[str, PlannedReward] = {}
    for spec in specs:
        if spec.name not in rewards:
            raise UnknownRewardError(
                f"there is no reward {spec.name!r:.100}; this service has {', '.join(sorted(rewards))}"
            )
        if spec.name in plan:
            raise InvalidRequestError(
                f"reward {spec.name!r} is asked for twice; results are keyed by name, so ask once"
            )
        try:
            params = rewards[spec.name].params.model_validate(spec.params)
        except ValidationError as error:
            raise InvalidParamsError(f"params of reward {spec.name!r}: {describe(error)}") from None
        plan[spec.name] = PlannedReward(reward=rewards[spec.name], weight=spec.weight, params=params)
    return tuple(plan.values())


def score_one(planned: PlannedReward, task: Task) -> RewardScore:
    """One reward on one item. Whatever the reward does, this returns: a failure is null with a reason, never 0."""
    try:
        result = planned.reward.apply(task, planned.params)
        if result.score is not None and not math.isfinite(result.score):
            raise ValueError(f"the reward gave {result.score}, which is not a finite number")
    except NotScorableError as error:
        return RewardScore(score=None, reason=error.reason, details={"message": str(error)[:_MAX_MESSAGE_CHARS]})
    except Exception as error:
        logger.exception("reward %s failed", planned.reward.name)
        message = f"{type(error).__name__}: {error}"[:_MAX_MESSAGE_CHARS]
        return RewardScore(score=None, reason=Reason.VERIFIER_ERROR, details={"message": message})
    return result


def weighted_total(plan: Plan, scores: Mapping[str, RewardScore]) -> float | None:
    """Sum of weight * score over what was scored; None if nothing was."""
    total: float | None = None
    for planned in plan:
        score = scores[planned.reward.name].score
        if score is not None:
            total = (total or 0.0) + planned.weight * score
    return total


def score_chunk(plan: Plan, tasks: Sequence[Task]) -> list[Scores]:
    """Every reward of the plan on every item, in the items' order."""
    results = []
    for task in tasks:
        rewards = {planned.reward.name: score_one(planned, task) for planned in plan}
        results.append(Scores(weighted_total(plan, rewards), rewards))
    return results


class ChunkRunner(Protocol):
    """Runs `score_chunk` somewhere; gives as many results as there are tasks, in their order."""

    async def run(self, plan: Plan, tasks: Sequence[Task]) -> list[Scores]: ...

    def close(self) -> None: ...


class ThreadRunner:
    """Scores in a pool of threads. Does not cover: a reward that never ends keeps its thread."""

    def __init__(self, num_threads: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="score")

    async def run(self, plan: Plan, tasks: Sequence[Task]) -> list[Scores]:
        """Waits for a free thread, then for the scores."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, score_chunk, plan, tasks)

    def close(self) -> None:
        """Drops what has not begun; does not wait."""
        self._executor.shutdown(wait=False, cancel_futures=True)


async def score_tasks(runner: ChunkRunner, plan: Plan, tasks: Sequence[Task], *, chunk_items: int) -> list[Scores]:
    """Scores `tasks` in chunks, so that requests take turns; results are in the tasks' order."""
    if len(tasks) <= chunk_items:
        return await runner.run(plan, tasks)
    starts = range(0, len(tasks), chunk_items)
    chunks = await asyncio.gather(*(runner.run(plan, tasks[start : start + chunk_items]) for start in starts))
    return [scores for chunk in chunks for scores in chunk]


def describe(error: ValidationError, *, limit: int = 3) -> str:
    """The first few findings of a validation on one line, without the input, which may be large or private."""
    findings = error.errors(include_url=False, include_context=False, include_input=False)
    texts = [
        f"{'.'.join(map(str, finding['loc'])) or 'body'}: {finding['msg']}"[:_MAX_MESSAGE_CHARS] for finding in findings
    ]
    more = f" (and {len(texts) - limit} more)" if len(texts) > limit else ""
    return "; ".join(texts[:limit]) + more
