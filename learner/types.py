"""What crosses the learner's door. Tensors never do."""

from __future__ import annotations

from dataclasses import dataclass, field

from rollout_server.types import Completion, FinishReason


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredCompletion:
    """A completion and what it earned."""

    completion: Completion
    rewards: tuple[float | None, ...]
    """One entry per reward in the run's order; None: could not be scored."""
    total: float | None
    """Weighted sum of what was scored; None leaves the completion out of its group."""

    @property
    def truncated(self) -> bool:
        return self.completion.finish_reason is FinishReason.LENGTH


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """All completions of one prompt, scored. The unit of GRPO."""

    prompt_id: str
    prompt_token_ids: tuple[int, ...]
    members: tuple[ScoredCompletion, ...]
    category: str = ""
    """The kind of problem, for statistics and `advantage_by_category`."""

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError(f"group {self.prompt_id!r} has no completions")

    @property
    def flat(self) -> bool:
        """True when the scored totals are all equal: no advantage, nothing to learn."""
        totals = {member.total for member in self.members if member.total is not None}
        return len(totals) <= 1


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateMetrics:
    """What one optimizer step says of itself."""

    step: int
    values: dict[str, float] = field(default_factory=dict)
    """loss, grad_norm, learning_rate, kl_to_sampler, clip_fraction, entropy …; flat, name → number."""
    advantages: tuple[tuple[float | None, ...], ...] = ()
    """advantages[p][g] of group p's member g; None where it was not scored."""
    num_tokens: int = 0
    """Prompt and completion tokens of the batch, each sequence counted whole."""
    num_distinct_tokens: int = 0
    """Tokens that went through the model."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """A saved learner state."""

    step: int
    path: str
