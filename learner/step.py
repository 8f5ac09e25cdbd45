"""From scored groups to what one optimizer step computes: advantages, who takes part, denominators. No model here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from learner.advantages import group_advantages
from learner.config import LearnerConfig
from learner.errors import NothingToLearnError, StaleSampleError
from learner.microbatches import Member
from learner.prefix_tree import TokenSequence
from learner.types import ScoredGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """One step, the same on every rank."""

    members: tuple[tuple[Member, ...], ...]
    """The sequences that carry gradient, group by group; `Member.index` points into the two lists below."""
    advantages: tuple[float, ...]
    sampling_logprobs: tuple[tuple[float, ...], ...]
    group_advantages: tuple[tuple[float | None, ...], ...]
    """Of every member of every group; None: not scored."""
    num_items: int
    """Completion tokens in the loss: the denominator of dapo. Sequences without gradient count as they would have."""
    num_sequences: int
    """Scored sequences: the denominator of grpo and dr_grpo."""
    num_tokens: int
    """Prompt and completion tokens of the scored sequences, each counted whole."""
    values: dict[str, float]
    """What can be said before anything is computed."""


def plan_step(groups: Sequence[ScoredGroup], config: LearnerConfig) -> StepPlan:
    """Who takes part in a step and what everything is divided by.

    A completion that could not be scored (`total` None) is left out everywhere. A truncated one, with
    `mask_truncated_completions`, has no tokens in the loss but counts as a sequence, as in TRL. A sequence whose
    advantage is 0 (all of a flat group) has no gradient when beta is 0: it is not computed, and counts in every
    denominator all the same.

    Raises NothingToLearnError when no completion was scored.
    """
    rewards = [[math.nan if member.total is None else member.total for member in group.members] for group in groups]
    if not any(not math.isnan(reward) for row in rewards for reward in row):
        raise NothingToLearnError(f"none of the {sum(map(len, rewards))} completions of the batch was scored")
    width = max(map(len, rewards))
    rewards_PG = torch.tensor([row + [math.nan] * (width - len(row)) for row in rewards], dtype=torch.float64)
    advantages_PG = group_advantages(
        rewards_PG, scale=config.scale_rewards, ddof=config.advantage_ddof, eps=config.advantage_eps
    )
    rows = [row[: len(group.members)] for row, group in zip(advantages_PG.tolist(), groups, strict=True)]
    members: list[tuple[Member, ...]] = []
    advantages: list[float] = []
    sampling_logprobs: list[tuple[float, ...]] = []
    num_items = num_sequences = num_tokens = 0
    for group, row in zip(groups, rows, strict=True):
        taking_part = []
        for scored, advantage in zip(group.members, row, strict=True):
            if math.isnan(advantage):
                continue
            completion = scored.completion
            num_sequences += 1
            num_tokens += len(group.prompt_token_ids) + len(completion.token_ids)
            if not completion.token_ids or (config.mask_truncated_completions and scored.truncated):
                continue
            num_items += len(completion.token_ids)
            if advantage == 0.0 and config.loss.beta == 0.0:
                continue
            sequence = TokenSequence(prompt_token_ids=group.prompt_token_ids, completion_token_ids=completion.token_ids)
            taking_part.append(Member(index=len(advantages), sequence=sequence))
            advantages.append(advantage)
            sampling_logprobs.append(completion.sampling_logprobs)
        members.append(tuple(taking_part))
    return StepPlan(
        members=tuple(members),
        advantages=tuple(advantages),
        sampling_logprobs=tuple(sampling_logprobs),
        group_advantages=tuple(tuple(None if math.isnan(value) else value for value in row) for row in rows),
        num_items=max(1, num_items),
        num_sequences=num_sequences,
        num_tokens=num_tokens,
        values=_batch_values(groups, rewards_PG),
    )


def refuse_stale(groups: Sequence[ScoredGroup], *, policy_version: int, max_staleness: int) -> None:
    """Raises StaleSampleError when a completion's adapter is more than `max_staleness` versions behind."""
    for group in groups:
        for member in group.members:
            age = policy_version - member.completion.adapter_version
            if age > max_staleness:
                raise StaleSampleError(
                    f"a completion of {group.prompt_id!r} was sampled on adapter version "
                    f"{member.completion.adapter_version}, {age} behind version {policy_version}; the bound is "
                    f"{max_staleness}: drop it, or raise the staleness bound"
                )


def _batch_values(groups: Sequence[ScoredGroup], rewards_PG: torch.Tensor) -> dict[str, float]:
    members = [member for group in groups for member in group.members]
    known = rewards_PG[~rewards_PG.isnan()]
    return {
        "reward_mean": float(known.mean()),
        "reward_std": float(known.std()) if len(known) > 1 else 0.0,
        "flat_group_fraction": sum(group.flat for group in groups) / len(groups),
        "unscored_fraction": sum(member.total is None for member in members) / len(members),
        "truncated_fraction": sum(member.truncated for member in members) / len(members),
        "completion_length": sum(len(member.completion.token_ids) for member in members) / len(members),
    }
