"""From scored groups to what one optimizer step computes: advantages, who takes part, denominators. No model here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from learner.advantages import aggregate_advantages, overlong_penalty
from learner.config import LearnerConfig
from learner.errors import LearnerError, NothingToLearnError, StaleSampleError
from learner.tree.prefix_tree import TokenSequence
from learner.types import ScoredCompletion, ScoredGroup
from rollout_server.arrays import Logprobs, TokenIds
from rollout_server.types import Completion


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """One step, the same on every rank."""

    sequences: tuple[TokenSequence, ...]
    """Those that go through the model; the two lists below go along with them."""
    advantages: tuple[float, ...]
    sampling_logprobs: tuple[Logprobs, ...]
    """Of the sampled tokens."""
    group_advantages: tuple[tuple[float | None, ...], ...]
    """Of every member of every group; None: not scored."""
    num_items: int
    """Sampled tokens in the loss, the denominator of dapo and its kin. Sequences without gradient count as they
    would have."""
    num_sequences: int
    """Scored sequences, the denominator of grpo and its kin."""
    num_tokens: int
    """Prompt and completion tokens of the scored sequences, each counted whole."""


def plan_step(
    groups: Sequence[ScoredGroup],
    config: LearnerConfig,
    *,
    reward_weights: Sequence[float] | None = None,
    max_completion_length: int | None = None,
) -> StepPlan:
    """Who takes part in a step and what everything is divided by.

    A completion that could not be scored is left out everywhere; with `drop_zero_variance_groups` so is a group in
    which no advantage differs from 0. A truncated one, with `mask_truncated_completions`, has no tokens in the loss but
    counts as a sequence, as in TRL. A sequence whose advantage is 0 has no gradient when beta is 0: it is not computed,
    unless the entropies of all are wanted, and counts in every denominator all the same.

    Args:
        groups: The batch.
        config: How advantages are made, and who is left out.
        reward_weights: Of each reward in the run's order, for `normalize_then_sum`; 1 each if not given.
        max_completion_length: Where `overlong_cache` ends, tokens.

    Raises:
        NothingToLearnError: No completion was scored.
        LearnerError: There is not one weight for each reward.
    """
    advantages_PG = _advantages(groups, config, reward_weights, max_completion_length)
    rows = [row[: len(group.members)] for row, group in zip(advantages_PG.tolist(), groups, strict=True)]
    counted = [
        _Counted(scored.completion.own_prompt_token_ids or group.prompt_token_ids, scored, advantage)
        for group, row in zip(groups, rows, strict=True)
        if not config.drop_zero_variance_groups or any(value and not math.isnan(value) for value in row)
        for scored, advantage in zip(group.members, row, strict=True)
        if not math.isnan(advantage)
    ]
    masks = config.mask_truncated_completions
    in_loss = [one for one in counted if one.num_sampled and not (masks and one.scored.truncated)]
    computes_all = config.loss.beta > 0.0 or config.loss.top_entropy_quantile < 1.0
    computed = [one for one in in_loss if computes_all or one.advantage != 0.0]
    return StepPlan(
        sequences=tuple(map(_sequence, computed)),
        advantages=tuple(one.advantage for one in computed),
        sampling_logprobs=tuple(map(_sampled_logprobs, computed)),
        group_advantages=tuple(tuple(None if math.isnan(value) else value for value in row) for row in rows),
        num_items=max(1, sum(one.num_sampled for one in in_loss)),
        num_sequences=max(1, len(counted)),
        num_tokens=sum(len(one.prompt_token_ids) + len(one.token_ids) for one in counted),
    )


def index_of(plan: StepPlan, prompt_token_ids: TokenIds, completion: Completion, advantage: float | None) -> int | None:
    """Which of the plan's sequences a completion is; the first, where the plan has its like; None: none of them."""
    wanted = tuple(prompt_token_ids), tuple(completion.token_ids), advantage, tuple(completion.sampling_logprobs)
    for index, sequence in enumerate(plan.sequences):
        tokens = tuple(sequence.prompt_token_ids), tuple(sequence.completion_token_ids)
        if (*tokens, plan.advantages[index], tuple(plan.sampling_logprobs[index])) == wanted:
            return index
    return None


class _Counted(NamedTuple):
    """A scored completion of a group that takes part."""

    prompt_token_ids: TokenIds
    scored: ScoredCompletion
    advantage: float

    @property
    def token_ids(self) -> TokenIds:
        return self.scored.completion.token_ids

    @property
    def num_sampled(self) -> int:
        return self.scored.completion.num_sampled


def _sequence(one: _Counted) -> TokenSequence:
    completion = one.scored.completion
    return TokenSequence(
        prompt_token_ids=one.prompt_token_ids,
        completion_token_ids=completion.token_ids,
        sampled=completion.sampled if completion.is_episode else None,
    )


def _sampled_logprobs(one: _Counted) -> Logprobs:
    completion = one.scored.completion
    if not completion.is_episode:
        return completion.sampling_logprobs
    return Logprobs(value for start, stop in completion.sampled for value in completion.sampling_logprobs[start:stop])


def _advantages(
    groups: Sequence[ScoredGroup],
    config: LearnerConfig,
    reward_weights: Sequence[float] | None,
    max_completion_length: int | None,
) -> torch.Tensor:
    """Shape (P, G), NaN where not scored; groups of unequal size are padded with NaN."""
    if config.multi_objective_aggregation == "normalize_then_sum":
        rewards = [[list(map(_number, member.rewards)) for member in group.members] for group in groups]
        weights = list(reward_weights or (1.0,) * len(rewards[0][0]))
        _check_rewards(groups, len(weights))
    else:
        rewards = [[[_number(total)] for total in _totals(group)] for group in groups]
        weights = [1.0]
    width = max(len(group.members) for group in groups)
    padding = [math.nan] * len(weights)
    rewards_PGK = torch.tensor([row + [padding] * (width - len(row)) for row in rewards], dtype=torch.float64)
    if bool(rewards_PGK.isnan().all()):
        num_completions = sum(len(group.members) for group in groups)
        raise NothingToLearnError(f"none of the {num_completions} completions of the batch was scored")
    if config.overlong_cache:
        assert max_completion_length is not None, "LearnerConfig.check_run refuses a cache without it"
        rewards_PGK = _with_overlong_penalty(rewards_PGK, groups, max_completion_length, config.overlong_cache)
        weights = weights if len(weights) == 1 else [*weights, 1.0]
    return aggregate_advantages(
        rewards_PGK,
        torch.tensor(weights, dtype=torch.float64),
        aggregation=config.multi_objective_aggregation,
        scale=config.scale_rewards,
        ddof=config.advantage_ddof,
        eps=config.advantage_eps,
        categories_P=[group.category for group in groups] if config.advantage_by_category else None,
    )


def _with_overlong_penalty(
    rewards_PGK: torch.Tensor, groups: Sequence[ScoredGroup], max_completion_length: int, cache: int
) -> torch.Tensor:
    """The penalty added to the one total, or as one more reward beside several; NaN where nothing was scored."""
    width = rewards_PGK.shape[1]
    lengths_PG = torch.tensor(
        [
            [len(member.completion.token_ids) for member in group.members] + [0] * (width - len(group.members))
            for group in groups
        ]
    )
    penalty_PG = overlong_penalty(lengths_PG, max_completion_length=max_completion_length, cache=cache).double()
    penalty_PG = penalty_PG.masked_fill(rewards_PGK.isnan().all(dim=2), math.nan)
    if rewards_PGK.shape[2] == 1:
        return rewards_PGK + penalty_PG.unsqueeze(2)
    return torch.cat([rewards_PGK, penalty_PG.unsqueeze(2)], dim=2)


def _totals(group: ScoredGroup) -> list[float | None]:
    """One number for all that was scored in a flat group, whose totals differ by rounding at most."""
    totals = [member.total for member in group.members]
    known = [total for total in totals if total is not None]
    return [None if total is None else known[0] for total in totals] if group.flat else totals


def _number(reward: float | None) -> float:
    return math.nan if reward is None else reward


def _check_rewards(groups: Sequence[ScoredGroup], num_weights: int) -> None:
    for group in groups:
        for member in group.members:
            if len(member.rewards) != num_weights:
                raise LearnerError(
                    f"a completion of {group.prompt_id!r} has {len(member.rewards)} rewards, but there are "
                    f"{num_weights} weights: reward_weights needs one for each reward of the run"
                )


def refuse_stale(groups: Sequence[ScoredGroup], *, policy_version: int, max_staleness: int) -> None:
    """Looks at the age of every completion, in versions.

    Raises:
        StaleSampleError: One is more than `max_staleness` behind `policy_version`.
    """
    for group in groups:
        for member in group.members:
            age = policy_version - member.completion.adapter_version
            if age > max_staleness:
                raise StaleSampleError(
                    f"a completion of {group.prompt_id!r} was sampled on adapter version "
                    f"{member.completion.adapter_version}, {age} behind version {policy_version}; the bound is "
                    f"{max_staleness}: drop it, or raise the staleness bound"
                )
