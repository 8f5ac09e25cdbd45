"""From scored groups to what one optimizer step computes: advantages, who takes part, denominators. No model here."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from learner.advantages import aggregate_advantages, group_advantages, overlong_penalty
from learner.config import LearnerConfig
from learner.errors import LearnerError, NothingToLearnError, StaleSampleError
from learner.tree.prefix_tree import TokenSequence
from learner.types import ScoredCompletion, ScoredGroup
from rollout_server.arrays import Logprobs


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """One step, the same on every rank."""

    sequences: tuple[TokenSequence, ...]
    """Those that go through the model; the two lists below go along with them."""
    advantages: tuple[float, ...]
    sampling_logprobs: tuple[Logprobs, ...]
    """Of the sampled tokens."""
    places: tuple[tuple[int, int], ...]
    """Whose they are: the group, and the member of the group."""
    spans: tuple[tuple[tuple[int, int], ...], ...]
    """Where their sampled tokens are among the tokens of that member's completion, [start, stop) each."""
    group_advantages: tuple[tuple[float | None, ...], ...]
    """Of every member of every group; None: not scored. Of one whose turns have each their own, the mean over its
    sampled tokens."""
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

    An episode is a sequence; or, where its history was rewritten, several (`Completion.pieces`), with one advantage.
    Where its turns are judged each (`ScoredCompletion.turn_totals`), each turn is one, behind all that came before it.
    In the prefix tree what they have in common is computed once. Whatever is averaged or divided by sequences (grpo's
    mean, gspo's ratio) goes by these.

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
    by_turns = _turn_advantages(groups, config) if any(_by_turns(group) for group in groups) else {}
    counted = [
        one
        for p, (group, row) in enumerate(zip(groups, rows, strict=True))
        if not config.drop_zero_variance_groups or _differs(row, by_turns.get(p, {}))
        for g, (scored, advantage) in enumerate(zip(group.members, row, strict=True))
        if not math.isnan(advantage)
        for one in _counted((p, g), group, scored, by_turns.get(p, {}).get(g, advantage))
    ]
    for p, of_group in by_turns.items():
        for g, turns in of_group.items():
            rows[p][g] = _mean_over_tokens(groups[p].members[g], turns)
    masks = config.mask_truncated_completions
    in_loss = [one for one in counted if one.num_sampled and not (masks and one.scored.truncated)]
    loss = config.loss
    computes_all = loss.beta > 0.0 or loss.top_entropy_quantile < 1.0 or loss.entropy_coef != 0.0
    computed = [one for one in in_loss if computes_all or one.advantage != 0.0]
    return StepPlan(
        sequences=tuple(one.sequence for one in computed),
        advantages=tuple(one.advantage for one in computed),
        sampling_logprobs=tuple(one.sampling_logprobs for one in computed),
        places=tuple(one.place for one in computed),
        spans=tuple(one.spans for one in computed),
        group_advantages=tuple(tuple(None if math.isnan(value) else value for value in row) for row in rows),
        num_items=max(1, sum(one.num_sampled for one in in_loss)),
        num_sequences=max(1, len(counted)),
        num_tokens=_num_tokens(groups, {one.place for one in counted}),
    )


class _Counted(NamedTuple):
    """A sequence of a scored completion of a group that takes part."""

    place: tuple[int, int]
    scored: ScoredCompletion
    sequence: TokenSequence
    sampling_logprobs: Logprobs
    spans: tuple[tuple[int, int], ...]
    advantage: float

    @property
    def num_sampled(self) -> int:
        return len(self.sampling_logprobs)


def _counted(
    place: tuple[int, int], group: ScoredGroup, scored: ScoredCompletion, advantage: float | Sequence[float]
) -> Iterator[_Counted]:
    """What a completion is in the step, with one advantage or with one for each of its turns."""
    completion = scored.completion
    for prompt, start, stop in completion.pieces(group.prompt_token_ids):
        inside = [
            (index, span) for index, span in enumerate(completion.sampled) if start <= span[0] and span[1] <= stop
        ]
        if isinstance(advantage, float):
            spans = tuple((a - start, b - start) for _, (a, b) in inside)
            sequence = TokenSequence(
                prompt_token_ids=prompt,
                completion_token_ids=completion.token_ids[start:stop],
                sampled=spans if completion.is_episode else None,
            )
            parts = [completion.sampling_logprobs[a:b] for _, (a, b) in inside]
            yield _Counted(place, scored, sequence, _joined(parts), tuple(span for _, span in inside), advantage)
            continue
        for index, (a, b) in inside:
            sequence = TokenSequence(
                prompt_token_ids=prompt + completion.token_ids[start:a], completion_token_ids=completion.token_ids[a:b]
            )
            yield _Counted(place, scored, sequence, completion.sampling_logprobs[a:b], ((a, b),), advantage[index])


def _joined(parts: Sequence[Logprobs]) -> Logprobs:
    return parts[0] if len(parts) == 1 else Logprobs(value for part in parts for value in part)


def _num_tokens(groups: Sequence[ScoredGroup], places: Collection[tuple[int, int]]) -> int:
    pieces = [piece for p, g in places for piece in groups[p].members[g].completion.pieces(groups[p].prompt_token_ids)]
    return sum(len(prompt) + stop - start for prompt, start, stop in pieces)


def _by_turns(group: ScoredGroup) -> bool:
    return any(member.turn_totals for member in group.members)


def _differs(row: Sequence[float], by_turns: Mapping[int, Sequence[float]]) -> bool:
    values = [value for turns in by_turns.values() for value in turns] if by_turns else row
    return any(value and not math.isnan(value) for value in values)


def _turn_advantages(groups: Sequence[ScoredGroup], config: LearnerConfig) -> dict[int, dict[int, list[float]]]:
    """By group and member, of each turn: what it is answerable for over the mean of the same turn of the group's
    episodes, scaled as `scale_rewards` says. Of a turn that one episode alone came to it is 0."""
    num_turns = max(len(member.turn_totals) for group in groups for member in group.members)
    width = max(len(group.members) for group in groups)
    totals_PTG = torch.full((len(groups), num_turns, width), math.nan, dtype=torch.float64)
    for p, group in enumerate(groups):
        for g, member in enumerate(group.members):
            if member.total is not None:
                totals_PTG[p, : len(member.turn_totals), g] = torch.tensor(member.turn_totals, dtype=torch.float64)
    advantages = group_advantages(
        totals_PTG.flatten(0, 1),
        scale=config.scale_rewards,
        ddof=config.advantage_ddof,
        eps=config.advantage_eps,
        categories_P=[group.category for group in groups for _ in range(num_turns)]
        if config.advantage_by_category
        else None,
    )
    advantages_PTG = advantages.unflatten(0, (len(groups), num_turns))
    return {
        p: {
            g: advantages_PTG[p, : len(member.turn_totals), g].tolist()
            for g, member in enumerate(group.members)
            if member.turn_totals and member.total is not None
        }
        for p, group in enumerate(groups)
    }


def _mean_over_tokens(member: ScoredCompletion, advantages: Sequence[float]) -> float:
    lengths = [stop - start for start, stop in member.completion.sampled]
    return math.fsum(map(operator.mul, advantages, lengths)) / max(1, sum(lengths))


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
