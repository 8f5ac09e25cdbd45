"""The loop's scorers: the reward service over HTTP, and the random control."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from learner.types import ScoredCompletion
from orchestration.errors import RewardsUnavailableError
from orchestration.run.metrics import OVERRULED, differ
from orchestration.run.ports import Scorer
from orchestration.run.rewards import episode_of, reward_item
from orchestration.settings.config import RunConfig
from orchestration.types import Problem
from reward_service.clients.errors import RewardServiceError
from reward_service.types import JUDGE, ItemResult, RewardItem, RewardSpec
from rollout_server.types import Completion

Value = TypeVar("Value")

ENVIRONMENT = "environment"


class RewardsClient(Protocol):
    """`RewardClient`, or what keeps its service alive."""

    async def score(
        self,
        items: Sequence[RewardItem],
        rewards: Sequence[RewardSpec],
        run_id: str | None = None,
        policy_version: int | None = None,
    ) -> list[ItemResult]: ...


class HttpScorer:
    """Scores over HTTP, as any other trainer would. One call scores one group."""

    def __init__(self, client: RewardsClient, rewards: Sequence[RewardSpec], *, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._rewards = tuple(rewards)

    @property
    def reward_names(self) -> Sequence[str]:
        return [reward.name for reward in self._rewards]

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        """Asks the service about the completions of one problem. About an episode that failed nobody is asked.

        Args:
            problem: Its reference and metadata go along.
            prompt_text: As the model saw it.
            completions: Of the problem's group.

        Returns:
            One each, in their order; an item that could not be scored has None, never 0, and a reason.

        Raises:
            RewardsUnavailableError: The service does not answer sensibly until the client's deadline.
        """
        items = [
            reward_item(
                problem,
                prompt=prompt_text,
                completion=completion.last_text,
                item_id=item_id(problem, completion, index),
                episode=episode_of(completion) if completion.is_episode else None,
            )
            for index, completion in enumerate(completions)
            if completion.failure is None
        ]
        version = min((completion.adapter_version for completion in completions), default=0)
        try:
            results = await self._client.score(items, self._rewards, self._run_id, version) if items else []
        except RewardServiceError as error:
            raise RewardsUnavailableError(str(error)) from error
        by_id = {item.id: result for item, result in zip(items, results, strict=True)}
        return [
            self._scored(completion, item_id(problem, completion, index), by_id)
            for index, completion in enumerate(completions)
        ]

    def _scored(self, completion: Completion, name: str, results: Mapping[str, ItemResult]) -> ScoredCompletion:
        if name not in results:
            return ScoredCompletion(
                completion=completion,
                rewards=(None,) * len(self._rewards),
                total=None,
                reasons=(completion.failure,) * len(self._rewards),
            )
        result = results[name]
        return ScoredCompletion(
            completion=completion,
            rewards=tuple(result.rewards[name].score for name in self.reward_names),
            total=result.total,
            reasons=tuple(result.rewards[name].reason for name in self.reward_names),
            item_id=name,
        )


def item_id(problem: Problem, completion: Completion, index: int) -> str:
    """By which the service is asked about a completion: problem, version, place in the group, and eight digits of the
    text's SHA-256, so that an id is never that of two different answers, and the same in every start of a run.

    Args:
        problem: Of the group.
        completion: Its version and text are part of the id.
        index: Place in the group, from 0.
    """
    digest = hashlib.sha256(completion.text.encode("utf-8", "replace")).hexdigest()
    return f"{problem.problem_id}/{completion.adapter_version}/{index}/{digest[:8]}"


class PartScorer:
    """Scores each problem of a mixture by its own task's scorer; rewards of other tasks are None, as if not scored."""

    def __init__(self, scorers: Mapping[str, Scorer], reward_names: Sequence[str]) -> None:
        self._scorers, self._reward_names = dict(scorers), tuple(reward_names)

    @property
    def reward_names(self) -> Sequence[str]:
        return self._reward_names

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        """As the problem's task scores it, with an entry for each of `reward_names`.

        Returns:
            In the order of the completions; null, with no reason, where a reward is not the task's own.
        """
        scorer = self._scorers[problem.part]
        members = await scorer.score(problem, prompt_text, completions)
        places = [
            scorer.reward_names.index(name) if name in scorer.reward_names else None for name in self.reward_names
        ]

        def spread(values: Sequence[Value]) -> tuple[Value | None, ...]:
            return tuple(None if place is None else values[place] for place in places) if values else ()

        return [
            dataclasses.replace(member, rewards=spread(member.rewards), reasons=spread(member.reasons))
            for member in members
        ]


class JudgeByPart:
    """Judges each problem of a mixture by its own task's judge."""

    reward_names: Sequence[str] = ()

    def __init__(self, judges: Mapping[str, Scorer]) -> None:
        self._judges = dict(judges)

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        """With the judge's score alone."""
        return await self._judges[problem.part].score(problem, prompt_text, completions)


class _AmendingScorer:
    """Scores as the inner one does, and amends each completion by itself."""

    def __init__(self, inner: Scorer) -> None:
        self._inner = inner

    @property
    def reward_names(self) -> Sequence[str]:
        return self._inner.reward_names

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        return [self._amended(member) for member in await self._inner.score(problem, prompt_text, completions)]

    @abstractmethod
    def _amended(self, member: ScoredCompletion) -> ScoredCompletion: ...


class VerifiedScorer(_AmendingScorer):
    """Lets a verifier decide where the judge differs from it: then the judge's part of the total is the verifier's
    word, 1 or 0. The judge's own score stays among the rewards, with the reason `overruled`."""

    def __init__(self, inner: Scorer, rewards: Sequence[RewardSpec], verifier: str) -> None:
        super().__init__(inner)
        names = [spec.name for spec in rewards]
        self._judge, self._verifier = names.index(JUDGE), names.index(verifier)
        self._weight = rewards[self._judge].weight

    def _amended(self, member: ScoredCompletion) -> ScoredCompletion:
        judged, verified = member.rewards[self._judge], member.rewards[self._verifier]
        if judged is None or verified is None or member.total is None or not differ(judged, verified):
            return member
        reasons = list(member.reasons or (None,) * len(member.rewards))
        reasons[self._judge] = OVERRULED
        total = member.total + self._weight * (float(verified >= 1) - judged)
        return dataclasses.replace(member, total=total, reasons=tuple(reasons))


def returns(rewards: Sequence[float | None], discount: float) -> list[float]:
    """From each turn on; None is nothing paid.

    >>> returns([1.0, None, 4.0], 0.5)
    [2.0, 2.0, 4.0]

    Args:
        rewards: Of each turn, by turn.
        discount: Of what is paid a turn later, from 0 to 1.
    """
    found: list[float] = []
    for reward in reversed(rewards):
        found.insert(0, (reward or 0.0) + discount * (found[0] if found else 0.0))
    return found


class TurnCreditScorer(_AmendingScorer):
    """Scores as the inner one does, and says what each turn is answerable for: not for what was paid before it.

    With the weight w and the discount γ of the reward `environment`, and r_k what was paid for turn k, turn t's total
    is w · Σ_(k≥t) γ^(k-t)·r_k, the return from it on, and all that the other rewards give the episode.

    Args:
        rewards: The run's, `environment` among them.
    """

    def __init__(self, inner: Scorer, rewards: Sequence[RewardSpec]) -> None:
        super().__init__(inner)
        self._place = [spec.name for spec in rewards].index(ENVIRONMENT)
        self._weight = rewards[self._place].weight
        self._discount = float(rewards[self._place].params.get("discount", 1.0))

    def _amended(self, member: ScoredCompletion) -> ScoredCompletion:
        paid = member.rewards[self._place]
        if member.total is None or paid is None:
            return member
        others = member.total - self._weight * paid
        found = returns([turn.reward for turn in member.completion.turns], self._discount)
        return dataclasses.replace(member, turn_totals=tuple(others + self._weight * one for one in found))


class RandomControlScorer:
    """Learns from noise: the real rewards are measured and kept, the totals are drawn by a seed.

    A run under it that gains as much as one with real rewards shows that the gain did not come from the rewards.

    Args:
        same_rate: the draws are the group's own totals, dealt out anew among its completions: as many are rewarded as
            are right, and a flat group stays flat. Otherwise they are uniform between 0 and 1, and no group is flat.
    """

    def __init__(self, inner: Scorer, *, seed: int, same_rate: bool = False) -> None:
        self._inner, self._seed, self._same_rate = inner, seed, same_rate

    @property
    def reward_names(self) -> Sequence[str]:
        return self._inner.reward_names

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        scored = await self._inner.score(problem, prompt_text, completions)
        rated = [index for index, member in enumerate(scored) if member.total is not None]
        dealt = [scored[index].total for index in rated]
        if self._same_rate:
            self._random(problem, scored, "deal").shuffle(dealt)
        else:
            dealt = [self._random(problem, scored[index : index + 1], str(index)).random() for index in rated]
        totals = dict(zip(rated, dealt, strict=True))
        return [
            dataclasses.replace(member, total=totals[index], turn_totals=()) if index in totals else member
            for index, member in enumerate(scored)
        ]

    def _random(self, problem: Problem, scored: Sequence[ScoredCompletion], what: str) -> random.Random:
        """The same whenever and in whatever order completions are scored."""
        version = min((member.completion.adapter_version for member in scored), default=0)
        return random.Random(f"random-control-{self._seed}/{version}/{problem.problem_id}/{what}")


def make_scorers(config: RunConfig, client: RewardsClient, *, run_id: str) -> tuple[Scorer, dict[str, Scorer]]:
    """What training learns from, and what evaluations are decided by.

    Args:
        config: Rewards, verifier, turns' credit, and the control experiment, each of which amends the one before.
        client: Asks the service.
        run_id: By which the service's log knows the run.

    Returns:
        The scorer of training, and the judges by name.
    """
    scorer: Scorer = _by_part(
        {part: HttpScorer(client, config.rewards_of(part), run_id=run_id) for part in config.parts()}, config
    )
    if config.reward.verifier is not None:
        scorer = VerifiedScorer(scorer, config.rewards, config.reward.verifier)
    if config.episodes.credit == "turn":
        scorer = TurnCreditScorer(scorer, config.rewards)
    if config.reward.control != "none":
        scorer = RandomControlScorer(scorer, seed=config.seed, same_rate=config.reward.control == "shuffled")
    return scorer, make_judges(config, client, run_id=run_id)


def _by_part(scorers: dict[str, HttpScorer], config: RunConfig) -> Scorer:
    names = [spec.name for spec in config.rewards]
    return PartScorer(scorers, names) if config.data.parts() else scorers[""]


def make_judges(config: RunConfig, client: RewardsClient, *, run_id: str) -> dict[str, Scorer]:
    """What evaluations are decided by; each is asked apart, as both may be one reward.

    Args:
        config: Has the judges, of a mixture's tasks each its own.
        client: Asks the service.
        run_id: By which the service's log knows the run.

    Returns:
        By `strict` and `lenient`.
    """

    def judge(name: str) -> Scorer:
        scorers = {part: HttpScorer(client, (config.judges_of(part)[name],), run_id=run_id) for part in config.parts()}
        return JudgeByPart(scorers) if config.data.parts() else scorers[""]

    return {name: judge(name) for name in config.judges}
