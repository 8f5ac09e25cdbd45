"""Rewards that wait on the network: graded on the server's event loop, beside the rewards that the pool scores.

A worker process that waited seconds for an endpoint would be lost to everybody else's items, so judges never reach the
pool. A request's other rewards, and the gates of its judges, are scored by the pool first; then its judges grade, each
item as soon as there is room, until the request's time is over. What came by then counts; the rest has no score.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from reward_service.errors import InvalidParamsError, QueueFullError, ServiceError, ShuttingDownError
from reward_service.judging.grade import Judge
from reward_service.judging.judge import Gate, JudgeReward, Params
from reward_service.pool.counters import PoolStatistics
from reward_service.pool.messages import RewardStats, ScoredItem
from reward_service.rewards.base import Reward, RewardParams, Task
from reward_service.schemas import ScoreItem
from reward_service.scoring import Plan, PlannedReward, make_plan, unscored, weighted_total
from reward_service.settings import ServiceSettings
from reward_service.types import Reason, RewardScore, RewardSpec

logger = logging.getLogger(__name__)

_NOTHING: Final = ScoredItem(None, [], b'{"rewards":{}}')


class _Pooled(msgspec.Struct):
    """What the pool says of an item; see `EncodedItem`."""

    rewards: dict[str, msgspec.Raw]


class _Merged(msgspec.Struct):
    """An `EncodedItem` whose rewards are encoded in part."""

    id: str
    total: float | None
    rewards: dict[str, RewardScore | msgspec.Raw]


class _Verdict(msgspec.Struct):
    """What the pool says of one reward of one item, as far as a gate goes by it."""

    score: float | None
    reason: str | None


_Found = Mapping[str, msgspec.Raw]
"""What the pool says of an item, by reward, as JSON."""
_decode_pooled = msgspec.json.Decoder(_Pooled).decode
_decode_verdict = msgspec.json.Decoder(_Verdict).decode
_encode = msgspec.json.Encoder().encode


class Pool(Protocol):
    """What is needed of the pool of workers, which `reward_service.pool.pool` is."""

    @property
    def statistics(self) -> PoolStatistics: ...

    async def score(
        self, specs: tuple[RewardSpec, ...], deadlines_s: Sequence[float], items: Sequence[ScoreItem]
    ) -> Sequence[ScoredItem]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedPlan:
    """A request that has judges in it."""

    plan: Plan
    pooled: tuple[RewardSpec, ...]
    """What the pool scores: the request's other rewards, and the gates that are not among them."""
    deadlines_s: tuple[float, ...]
    """Of `pooled`, seconds for one item."""


class JudgedScoring:
    """Scores requests that have judges in them. All methods are called on one event loop."""

    def __init__(self, settings: ServiceSettings, rewards: Mapping[str, Reward], pool: Pool) -> None:
        """Raises ServiceStartError for a judge whose API key is not to be had."""
        self._settings, self._rewards, self._pool = settings, rewards, pool
        self._judges = {
            name: Judge(reward, deadline_s=settings.deadline_of(name, reward.deadline_s))
            for name, reward in rewards.items()
            if isinstance(reward, JudgeReward)
        }
        self._num_items = 0
        self._closing = False

    async def close(self) -> None:
        """Takes nothing more, and closes the judges' connections."""
        self._closing = True
        for judge in self._judges.values():
            await judge.close()

    def prepare(self, plan: Plan, specs: Sequence[RewardSpec]) -> JudgedPlan | None:
        """How to score `plan`, made of `specs`; None if the pool can do all of it. InvalidParamsError for a gate or a
        number of samples that is not to be had.
        """
        if not any(planned.reward.name in self._judges for planned in plan):
            return None
        pooled = {spec.name: spec for spec in specs if spec.name not in self._judges}
        known = {planned.reward.name: planned.params for planned in plan}
        for planned in plan:
            if not isinstance(planned.reward, JudgeReward):
                continue
            assert isinstance(planned.params, Params)
            if planned.params.num_samples > (most := planned.reward.settings.max_samples):
                raise InvalidParamsError(
                    f"params of reward {planned.reward.name!r}: num_samples = {planned.params.num_samples}, and"
                    f" judge.max_samples = {most}"
                )
            if (gate := planned.params.gate) is not None:
                gate_params = self._gate_params(planned.reward.name, gate)
                if known.setdefault(gate.name, gate_params) != gate_params:
                    raise InvalidParamsError(
                        f"params of reward {planned.reward.name!r}: gate {gate.name!r} has other parameters than the"
                        " reward of that name in the same request; give both the same, or ask for one of them"
                    )
                pooled.setdefault(gate.name, RewardSpec(name=gate.name, params=gate.params))
        return JudgedPlan(
            plan=plan,
            pooled=tuple(pooled.values()),
            deadlines_s=tuple(self._settings.deadline_of(name, self._rewards[name].deadline_s) for name in pooled),
        )

    async def score(self, judged: JudgedPlan, items: Sequence[ScoreItem]) -> Sequence[ScoredItem]:
        """The scores of `items`, in their order, at the latest when `request_timeout_s` is over.

        Raises QueueFullError when too much waits, for the pool or for the judges.
        """
        deadline = asyncio.get_running_loop().time() + self._settings.request_timeout_s
        if not items:
            return ()
        if self._closing:
            raise ShuttingDownError("the service is shutting down; try another one, or later")
        with self._room(len(items)):
            pooled: Sequence[ScoredItem] = [_NOTHING] * len(items)
            if judged.pooled:
                pooled = await self._pool.score(judged.pooled, judged.deadlines_s, items)
            found = [_decode_pooled(scored.result).rewards for scored in pooled]
            graded = {
                planned.reward.name: await self._grade_all(planned, items, found, deadline)
                for planned in judged.plan
                if planned.reward.name in self._judges
            }
        return [
            merge(judged, item.id, scored, rewards, {name: scores[position] for name, scores in graded.items()})
            for position, (item, scored, rewards) in enumerate(zip(items, pooled, found, strict=True))
        ]

    def _gate_params(self, judge: str, gate: Gate) -> RewardParams:
        """The gate's parameters, validated; InvalidParamsError if it cannot be one."""
        if isinstance(self._rewards.get(gate.name), JudgeReward):
            raise InvalidParamsError(f"params of reward {judge!r}: gate {gate.name!r} is a judge itself")
        try:
            (planned,) = make_plan([RewardSpec(name=gate.name, params=gate.params)], self._rewards)
        except ServiceError as error:
            raise InvalidParamsError(f"params of reward {judge!r}: gate: {error}") from None
        if gate.threshold > planned.reward.high:
            raise InvalidParamsError(
                f"params of reward {judge!r}: threshold = {gate.threshold:g}, and gate {gate.name!r} scores"
                f" {planned.reward.high:g} at most"
            )
        return planned.params

    @contextmanager
    def _room(self, num_items: int) -> Iterator[None]:
        """Counts the items of a request among those that judges have to do with; QueueFullError if they are many."""
        most = min(judge.max_waiting_items for judge in self._judges.values())
        if self._num_items > 0 and self._num_items + num_items > most:
            raise QueueFullError(
                f"{self._num_items} items wait for the judge already, and judge.max_waiting_items = {most};"
                " try again soon"
            )
        self._num_items += num_items
        try:
            yield
        finally:
            self._num_items -= num_items

    async def _grade_all(
        self, planned: PlannedReward, items: Sequence[ScoreItem], found: Sequence[_Found], deadline: float
    ) -> Sequence[RewardScore]:
        """One judge on all items, a score each, at the latest at `deadline` (the loop's time)."""
        judge, params = self._judges[planned.reward.name], planned.params
        assert isinstance(params, Params)
        grades: dict[int, RewardScore] = {}
        if params.gate is not None:
            verdicts = enumerate(gated(params.gate, rewards) for rewards in found)
            grades = {position: verdict for position, verdict in verdicts if verdict is not None}
        positions = iter([position for position in range(len(items)) if position not in grades])
        stats = RewardStats.none(planned.reward.name)

        async def take_turns() -> None:
            for position in positions:
                item, began = items[position], time.monotonic()
                task = Task(item.completion, item.reference, item.prompt, item.metadata)
                grades[position] = await _grade(judge, task, params)
                stats.count(time.monotonic() - began, None)

        # No more of a request at a time than the judge takes calls, so that requests share it in turns.
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline), asyncio.TaskGroup() as group:
                for _ in range(min(len(items), judge.max_concurrency)):
                    group.create_task(take_turns())
        late = unscored(Reason.TIMEOUT, f"not judged within request_timeout_s = {self._settings.request_timeout_s:g} s")
        scores = [grades.get(position, late) for position in range(len(items))]
        stats.reasons = dict(Counter(score.reason for score in scores if score.reason is not None))
        self._pool.statistics.add([stats])
        return scores


def gated(gate: Gate, found: _Found) -> RewardScore | None:
    """The judge's score where the gate settles it: 0 below the threshold, None where the gate has none."""
    verdict = _decode_verdict(found[gate.name])
    told = {"gated": {"by": gate.name, "score": verdict.score, "threshold": gate.threshold}}
    if verdict.score is None:
        message = f"the gate {gate.name!r} has no score"
        return RewardScore(score=None, reason=verdict.reason, details={"message": message, **told})
    return RewardScore(score=0.0, details=told) if verdict.score < gate.threshold else None


def merge(
    judged: JudgedPlan, item_id: str, pooled: ScoredItem, found: _Found, graded: Mapping[str, RewardScore]
) -> ScoredItem:
    """What the pool and the judges say of an item, in the plan's order, without gates that were not asked for.

    Args:
        judged: the plan, and which of its rewards the pool answers.
        item_id: as the caller named it.
        pooled: the pool's scores.
        found: the pool's answers by reward, as they are to be sent.
        graded: the judges' scores by reward.
    """
    by_pool = dict(zip((spec.name for spec in judged.pooled), pooled.scores, strict=True))
    scores: dict[str, RewardScore] = {}
    rewards: dict[str, RewardScore | msgspec.Raw] = {}
    for planned in judged.plan:
        name = planned.reward.name
        scores[name] = graded[name] if name in graded else RewardScore(score=by_pool[name])
        rewards[name] = graded[name] if name in graded else found[name]
    total = weighted_total(judged.plan, scores)
    return ScoredItem(total, [score.score for score in scores.values()], _encode(_Merged(item_id, total, rewards)))


async def _grade(judge: Judge, task: Task, params: Params) -> RewardScore:
    try:
        return await judge.grade(task, params)
    except Exception as error:  # one item's misfortune is not the request's; what is cancelled passes through
        logger.exception("a judge failed")
        return unscored(Reason.VERIFIER_ERROR, f"{type(error).__name__}: {error}")
