"""What crosses the learner's door. Tensors never do."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from rollout_server.arrays import Packed, TokenIds
from rollout_server.pickling import pickled_by_fields
from rollout_server.types import Completion, FinishReason

_ROUNDING = 8 * sys.float_info.epsilon
"""How far sums that are equal on paper may be apart, beside the largest of their terms."""


@pickled_by_fields
@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredCompletion:
    """A completion and what it earned."""

    completion: Completion
    rewards: tuple[float | None, ...]
    """One entry per reward in the run's order; None: could not be scored."""
    total: float | None
    """Weighted sum of what was scored; None leaves the completion out of its group. NaN, here and in `rewards`, is
    taken as None."""
    reasons: tuple[str | None, ...] = ()
    """Why a reward is None, one entry per reward; empty: not known. For records alone, as is the next."""
    item_id: str = ""
    """By which the reward service was asked about it, and its audit log knows it."""
    turn_totals: tuple[float, ...] = ()
    """What each turn of an episode is answerable for, where they are judged each; empty: all of them for `total`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rewards", tuple(map(self._known, self.rewards)))
        object.__setattr__(self, "total", self._known(self.total))

    def _known(self, reward: float | None) -> float | None:
        if reward is None or math.isnan(reward):
            return None
        if math.isinf(reward):
            raise ValueError(
                f"a completion of {self.completion.prompt_id!r} earned {reward}: a reward is a finite number, or None "
                "where it could not be scored"
            )
        return reward

    @property
    def truncated(self) -> bool:
        """Whether a limit ended it: of tokens, or of an episode's turns or time."""
        return self.completion.finish_reason in (FinishReason.LENGTH, FinishReason.TURNS, FinishReason.TIME)


@pickled_by_fields
@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """All completions of one prompt, scored. The unit of GRPO."""

    prompt_id: str
    prompt_token_ids: TokenIds
    """Any sequence of them is taken."""
    members: tuple[ScoredCompletion, ...]
    category: str = ""
    """The kind of problem, for statistics and `advantage_by_category`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_token_ids", TokenIds(self.prompt_token_ids))
        if not self.members:
            raise ValueError(f"group {self.prompt_id!r} has no completions")

    @property
    def flat(self) -> bool:
        """True when the scored totals are all equal, but for the rounding of sums of rewards of this size: no
        advantage, nothing to learn."""
        scored = [member for member in self.members if member.total is not None]
        rewards = [reward for member in scored for reward in (*member.rewards, member.total) if reward is not None]
        largest = max(map(abs, rewards), default=0.0)
        return all(
            max(column) - min(column) <= _ROUNDING * largest
            for column in ([member.total for member in scored if member.total is not None], *_by_turn(scored))
            if column
        )


class SealedGroup(ScoredGroup):
    """A group that keeps its own pickle: who only passes it on pickles it again at the price of a copy."""

    __slots__ = ("_content",)
    _content: bytes

    @classmethod
    def of(cls, group: ScoredGroup) -> ScoredGroup:
        return _unsealed(pickle.dumps(group, pickle.HIGHEST_PROTOCOL))

    def __reduce__(self) -> tuple[Any, ...]:
        if hasattr(self, "_content"):
            return _unsealed, (self._content,)
        return cast(tuple[Any, ...], super().__reduce__())  # of `dataclasses.replace`: it is another group


def _unsealed(content: bytes) -> SealedGroup:
    group, sealed = pickle.loads(content), object.__new__(SealedGroup)
    for each in fields(ScoredGroup):
        object.__setattr__(sealed, each.name, getattr(group, each.name))
    object.__setattr__(sealed, "_content", content)
    return sealed


def _by_turn(members: Sequence[ScoredCompletion]) -> list[list[float]]:
    """What the members' first turns are answerable for, and so on."""
    most = max((len(member.turn_totals) for member in members), default=0)
    return [[member.turn_totals[t] for member in members if len(member.turn_totals) > t] for t in range(most)]


class LogRatios(Packed[int]):
    """log of the importance weight, learner's log-prob - sampler's, of each token of a completion: whole thousandths of
    a nat, 16 bits each, at most 32.767 nats either way.

    The learner's are those before the update. `UNKNOWN` where there is none: a token that was given and not sampled, of
    a turn that was not computed, or of which the sampler could not say.
    """

    __slots__ = ()
    code = "h"


UNITS_PER_NAT = 1000
"""Of `LogRatios`."""
UNKNOWN = -32768
"""Among `LogRatios`; less than every ratio."""


UPDATE_METRICS: Mapping[str, str] = {
    "loss": "The step's loss.",
    "grad_norm": "Norm of the gradient before clipping.",
    "learning_rate": "The rate that was used.",
    "num_microbatches": "Forward and backward passes, over all ranks.",
    "num_loss_tokens": "Completion tokens whose loss was computed: none of sequences without an advantage, where beta "
    "is 0.",
    "entropy": "Of the policy at the completions' tokens, nats.",
    "ratio_{of}": "exp(learner's log-prob - old log-prob) of a token, or of a sequence.",
    "clip_fraction": "Share of tokens whose ratio was clipped.",
    "clip_fraction_low": "Of them, those below the lower bound.",
    "clip_fraction_high": "Of them, those above the upper bound.",
    "cispo_clip_fraction": "cispo: share of tokens whose ratio was bounded.",
    "vespo_phi_mean": "vespo: mean of phi, the weight of a sequence.",
    "kl_to_sampler": "Mean of sampler's - learner's log-prob of the sampled tokens, nats; of either sign.",
    "kl_to_sampler_k3": "The same by the k3 estimator: never negative.",
    "sampling_logprob_difference_{of}": "|sampler's - learner's log-prob| of a token, nats.",
    "importance_sampling_weight_{of}": "What the sampler correction multiplies the loss by.",
    "importance_sampling_clip_fraction": "Share of tokens whose weight lay beyond its bounds.",
    "effective_sample_share": "Of the sampler correction's weights w, (sum of w)^2 / (n * sum of w^2) over the tokens: "
    "the share of the sample that is left; 1 where all weigh the same.",
    "off_policy_masked_fraction": "Share of tokens in sequences that off_policy_mask_threshold leaves out.",
    "kl_to_ref": "KL to the base model by kl_estimator, nats.",
}
"""Every name of `UpdateMetrics.values` and its meaning; `{of}` is mean, min or max. Which there are follows from the
loss's settings. Means are over completion tokens in the loss, and over `num_iterations` optimizer steps.

What can be said of a batch without the model (rewards, lengths) is not among them: whoever made it says that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateMetrics:
    """What one optimizer step says of itself."""

    step: int
    """Batches learned from, this one included: the policy's version after the step."""
    values: dict[str, float] = field(default_factory=dict)
    """Name → number, see `UPDATE_METRICS`."""
    advantages: tuple[tuple[float | None, ...], ...] = ()
    """advantages[p][g] of group p's member g; None where it was not scored."""
    num_tokens: int = 0
    """Prompt and completion tokens of the batch, each sequence counted whole."""
    num_distinct_tokens: int = 0
    """Tokens that went through the model."""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    """What a user should know of the batch."""
    log_ratios: tuple[tuple[LogRatios | None, ...], ...] = ()
    """log_ratios[p][g] of group p's member g, one for each of its tokens; None where this rank computed none of it.
    `together` has those of all ranks: there None is a completion that had no part in the loss."""
    computed_by: str = ""
    """What an update's last bits depend on: how many ranks, of how many threads, on which processor."""

    @property
    def tokens_per_s(self) -> float | None:
        """`num_tokens` a second of the update; None where no time was taken."""
        return self.num_tokens / self.seconds if self.seconds > 0 else None


def together(updates: Sequence[UpdateMetrics]) -> UpdateMetrics:
    """The first rank's answer, with what each of them says of the tokens that it computed.

    Args:
        updates: Of one step, in the order of ranks.
    """
    rows = [update.log_ratios for update in updates]
    return replace(
        updates[0],
        log_ratios=tuple(tuple(_known(row) for row in zip(*group, strict=True)) for group in zip(*rows, strict=True)),
    )


def _known(rows: Sequence[LogRatios | None]) -> LogRatios | None:
    """Of one completion, whose pieces may have gone to several ranks."""
    known = [row for row in rows if row is not None]
    return known[0] if len(known) == 1 else LogRatios(map(max, *known)) if known else None
