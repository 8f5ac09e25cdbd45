"""Settings of the learner; names are TRL's `GRPOConfig` names wherever it has one. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LossType = Literal["grpo", "bnpo", "dapo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"]
ScaleRewards = Literal["group", "batch", "none"]
KlEstimator = Literal["k1", "k2", "k3"]
MultiObjectiveAggregation = Literal["sum_then_normalize", "normalize_then_sum"]
SamplerCorrection = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
AttentionKind = Literal["auto", "blocks", "levels", "flex", "own"]
Quantization = Literal["none", "nf4"]
LrSchedulerType = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]
"""Those of `transformers.SchedulerType` that depend on nothing but the step."""

BITSANDBYTES_SETTINGS: Mapping[Quantization, Mapping[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
"""How a base is quantised, by `quantization`: arguments of transformers' `BitsAndBytesConfig`. Double quantisation
stores the blocks' scales in 8 bits (QLoRA)."""

DEQUANTIZE_MODULE = "learner.policy.dequantize"
"""`python -m` it to write the values that a quantised base stands for; in a process of its own, see there."""

CPU_ENVIRONMENT: Mapping[str, str] = {"THP_MEM_ALLOC_ENABLE": "1", "GOMP_SPINCOUNT": "3000"}
"""What a learner's process on CPUs needs in its environment from its start. PyTorch then asks for huge pages for blocks
of 2 MiB and more, and the kernel grants them where it is set to `madvise`, the usual setting. And threads that wait for
each other go to sleep after some 30 µs: by default they look for milliseconds, on a core that another may need."""

DEFAULT_TOKENS_PER_MICROBATCH = 2048
"""Where the budget is neither set nor measured."""
MEASURED_TOKENS = 1536
"""Of the larger of two passes that measure it, if the model has so many positions; the smaller has a third."""
USABLE_SHARE = 0.8
"""Of free memory, for a pass: the rest is for gradients, optimizer state and blocks between which no other fits."""

LONGEST_SEQUENCE_WEIGHT = 512
"""Completion tokens up to which a whole sequence has one sampler weight. It is a product over the tokens: where the two
log-probs of a token differ by 0.02 nats, as in bfloat16, the effective sample share of `sequence_mask` is 91 % at 256
tokens, 82 % at 512, 61 % at 2,048 and 18 % at 16,384; a weight per token keeps all of it."""

_ENDLESS_SCHEDULES = ("constant", "constant_with_warmup", "inverse_sqrt")


class LossSettings(BaseModel):
    """The policy loss, as a run's configuration has it. Names and defaults are TRL 1.16's unless the description says
    otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss_type: LossType = Field("dapo", description="The token loss and how token losses are added up.")
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="One ratio per token, or one per sequence: exp of the mean log-ratio (GSPO)."
    )
    epsilon: float = Field(0.2, ge=0.0, description="Lower clip range of the ratio.")
    epsilon_high: float | None = Field(
        None, ge=0.0, description="Upper clip range, epsilon if unset; for cispo the bound itself (see cispo_bound)."
    )
    cispo_bound: Literal["absolute", "relative"] = Field(
        "absolute",
        description="cispo's upper bound of the ratio: epsilon_high itself (TRL) or 1 + epsilon_high (verl), the "
        "latter with 1 - epsilon as the lower one. Not in TRL.",
    )
    delta: float | None = Field(None, gt=0.0, description="Upper bound of the unclipped ratio (two-sided clipping).")
    beta: float = Field(0.0, ge=0.0, description="Weight of the KL to the base model.")
    use_bias_correction_kl: bool = Field(
        True, description="Multiply the KL term by the ratio, so that its gradient is the unbiased reverse KL's."
    )
    kl_estimator: KlEstimator = Field("k3", description="Estimator of the KL to the base model. Not in TRL: k3 there.")
    kl_clamp: float | None = Field(
        None,
        gt=0.0,
        description="Bound on the log-ratio that the estimator is given and on the estimate, either way; unset: none. "
        "Not in TRL.",
    )
    vllm_importance_sampling_correction: bool = Field(
        True, description="Weigh the loss by exp(old - sampling log-prob), truncated: the samplers' numerics differ."
    )
    vllm_importance_sampling_mode: Literal["auto", SamplerCorrection] = Field(
        "auto",
        description="Per token or sequence; beyond the clip range the weight is truncated or 0. auto: sequence_mask "
        f"(TRL's) up to {LONGEST_SEQUENCE_WEIGHT} completion tokens, token_truncate for longer ones, over which a "
        "product of all tokens' weights leaves few sequences.",
    )
    vllm_importance_sampling_clip_max: float | None = Field(3.0, gt=0.0, description="Upper bound of the weight.")
    vllm_importance_sampling_clip_min: float | None = Field(None, ge=0.0, description="Lower bound of the weight.")
    off_policy_mask_threshold: float | None = Field(
        None,
        ge=0.0,
        description="A sequence of negative advantage whose mean (sampling - learner's log-prob) is above it is left "
        "out of the policy loss (DeepSeek-V3.2).",
    )
    top_entropy_quantile: float = Field(
        1.0, gt=0.0, le=1.0, description="Only the tokens in the top so much of the entropies carry the policy loss."
    )
    entropy_coef: float = Field(
        0.0, description="Weight of the mean entropy of a step's completion tokens, which is taken off the loss."
    )
    sapo_temperature_pos: float = Field(1.0, gt=0.0, description="sapo: temperature where the advantage is positive.")
    sapo_temperature_neg: float = Field(1.05, gt=0.0, description="sapo: temperature where it is not.")
    vespo_k_pos: float = Field(2.0, description="vespo: exponent k where the advantage is 0 or more.")
    vespo_lambda_pos: float = Field(3.0, description="vespo: lambda where the advantage is 0 or more.")
    vespo_k_neg: float = Field(3.0, description="vespo: exponent k where the advantage is negative.")
    vespo_lambda_neg: float = Field(2.0, description="vespo: lambda where the advantage is negative.")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"vllm_importance_sampling_clip_min={low} must be less than vllm_importance_sampling_clip_max={high}"
            )
        if self.entropy_coef != 0 and self.top_entropy_quantile < 1.0:
            raise ValueError(
                f"entropy_coef={self.entropy_coef} and top_entropy_quantile={self.top_entropy_quantile}: the bonus is "
                "of all tokens here, so one of the two has to stay at its default (0 and 1)"
            )
        truncates = self.vllm_importance_sampling_correction and "truncate" in self.vllm_importance_sampling_mode
        if truncates and low is None and high is None:
            raise ValueError(
                f"vllm_importance_sampling_mode={self.vllm_importance_sampling_mode} truncates nothing without a "
                "bound: set vllm_importance_sampling_clip_max or vllm_importance_sampling_clip_min"
            )
        return self


class LossConfig(LossSettings):
    """What `policy_loss` needs to know: the settings, and a length that a run writes once, where it samples."""

    max_completion_length: int = Field(
        256, ge=1, description="Tokens: the constant length dr_grpo divides by, and what sampler_correction goes by."
    )

    @property
    def sampler_correction(self) -> SamplerCorrection:
        """`vllm_importance_sampling_mode`, decided."""
        if self.vllm_importance_sampling_mode != "auto":
            return self.vllm_importance_sampling_mode
        return "sequence_mask" if self.max_completion_length <= LONGEST_SEQUENCE_WEIGHT else "token_truncate"


class LoraSettings(BaseModel):
    """The adapter (peft `LoraConfig` names)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: int = Field(16, ge=1, description="Rank.")
    lora_alpha: int = Field(32, ge=1, description="Scale: the update is multiplied by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout; must be 0 for sampler and learner to agree.")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="Linear layers that get an adapter; all-linear alone: every one but the output projection.",
    )
    modules_to_save: tuple[Literal["embed_tokens", "lm_head"], ...] = Field(
        (),
        description="Modules trained whole beside the adapter. They cannot be served in several versions: every "
        "publish then waits until generation has drained.",
    )


class LearnerConfig(BaseModel):
    """The DeepSpeed learner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_ranks: int | None = Field(
        None,
        ge=1,
        description="Data-parallel ranks, each a process with its own accelerator; unset: half of the GPUs, or what "
        "the rollout workers leave; 1 without GPUs.",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of the frozen base; auto: float32 on CPUs, bfloat16 on GPUs. Adapters are float32.",
    )
    quantization: Quantization = Field("none", description="nf4: 4-bit base by bitsandbytes (QLoRA).")
    serve_dequantized_base: bool = Field(
        True,
        description="With quantization: vLLM serves the values that the 4-bit base stands for, so that sampler and "
        "learner hold the same policy; off: the original base.",
    )
    lora: LoraSettings = Field(default_factory=LoraSettings)
    loss: LossSettings = Field(default_factory=LossSettings)
    scale_rewards: ScaleRewards = Field("group", description="What advantages are divided by.")
    advantage_eps: float = Field(1e-4, ge=0.0, description="Added to the standard deviation.")
    advantage_ddof: Literal[0, 1] = Field(1, description="Delta degrees of freedom of the standard deviation.")
    advantage_by_category: bool = Field(
        False,
        description="With scale_rewards=batch, divide by the standard deviation of the group's category alone, so "
        "that easy and hard kinds of problems do not set each other's scale.",
    )
    multi_objective_aggregation: MultiObjectiveAggregation = Field(
        "sum_then_normalize",
        description="Several rewards: their weighted sum is normalised, or (GDPO) each is normalised in its group, "
        "then the weighted sum over the batch.",
    )
    overlong_cache: int = Field(
        0,
        ge=0,
        description="Soft overlong penalty (DAPO): over the last so many tokens before max_completion_length the "
        "reward falls linearly, to -1 at the end; 0: off.",
    )
    drop_zero_variance_groups: bool = Field(
        False, description="Leave groups whose rewards are all equal out of every denominator of the loss."
    )
    num_iterations: int = Field(1, ge=1, description="Optimizer steps on each batch; old log-probs are taken once.")
    learning_rate: float = Field(1e-5, gt=0.0, description="AdamW's learning rate.")
    lr_scheduler_type: LrSchedulerType = Field(
        "constant", description="Schedule of transformers' `get_scheduler`; one with an end comes to it with the run's."
    )
    lr_scheduler_kwargs: dict[str, float | int | str] = Field(
        default_factory=dict, description="Further arguments of the schedule, for example num_cycles, min_lr_rate."
    )
    warmup_steps: int = Field(
        0, ge=0, description="Optimizer steps of linear warm-up; it starts at 0, so the first step moves nothing."
    )
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW's weight decay.")
    adam_beta1: float = Field(0.9, ge=0.0, lt=1.0, description="AdamW.")
    adam_beta2: float = Field(0.999, ge=0.0, lt=1.0, description="AdamW.")
    max_grad_norm: float = Field(1.0, ge=0.0, description="Gradient clipping; 0: none.")
    mask_truncated_completions: bool = Field(False, description="Leave truncated completions out of the loss.")
    attention: AttentionKind = Field(
        "auto",
        description="Kernel of the tree's attention; auto: on GPUs since Ampere levels (flash attention, and flex "
        "where that does not do), flex on others, blocks on CPUs. own: the model's, one sequence a row and nothing "
        "shared, which models whose layers ignore a tree get by themselves.",
    )
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads of a rank; unset: on CPUs the cores divided by the ranks."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
    share_prefixes: bool = Field(
        True, description="Pack a batch as a prefix tree: each distinct token goes through once."
    )
    max_tokens_per_microbatch: int | None = Field(
        None,
        ge=1,
        description="Distinct tokens of one forward and backward pass; activations grow with it. Unset: on GPUs as "
        f"many as free memory allows, which the first update measures; {DEFAULT_TOKENS_PER_MICROBATCH:,} on CPUs, and "
        "at zero_stage=3.",
    )
    probe_tolerance: float | None = Field(
        None,
        gt=0.0,
        description="Largest log-prob difference a publish probe ever allows, nats, and 0.3 of it in the root mean "
        "square; unset: 1e-3 float32, 0.5 bfloat16.",
    )
    keep_checkpoints: int = Field(2, ge=1, description="Checkpoints of a run that are kept, the newest.")
    start_timeout_s: float = Field(600.0, gt=0, description="Limit on the learner's start, seconds.")
    update_timeout_s: float = Field(1800.0, gt=0, description="Limit on one update, seconds.")
    stall_timeout_s: float = Field(
        300.0,
        gt=0,
        description="Ranks that do not answer, or end no pass of an update and no file of a checkpoint, for so long "
        "are started again, seconds.",
    )

    @model_validator(mode="after")
    def _check(self) -> LearnerConfig:
        if self.zero_stage == 3 and self.quantization != "none":
            raise ValueError(
                f"zero_stage=3 cannot partition a base in {self.quantization}: use zero_stage=2, it is small anyway"
            )
        if isinstance(self.loss, LossConfig) and "max_completion_length" in self.loss.model_fields_set:
            raise ValueError("a learner is told max_completion_length beside its configuration: leave it out of loss")
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            raise ValueError(
                f"lr_scheduler_type='constant' has no warm-up, but warmup_steps={self.warmup_steps}: use "
                f"lr_scheduler_type=constant_with_warmup"
            )
        return self

    def measures_passes(self, *, cuda: bool) -> bool:
        """Whether the first update finds out what memory a pass needs. ZeRO-3 gathers weights where the engine's own
        forward runs: nothing is measured beside it."""
        return cuda and self.zero_stage != 3

    def check_run(self, *, max_steps: int | None, max_completion_length: int | None) -> None:
        """Refuses what does not fit the run around it.

        Args:
            max_steps: Batches of the run; 0 where nothing is learned; None: there is no end.
            max_completion_length: Tokens a completion may have; None: not known.

        Raises:
            ValueError: It says what does not go together, and what to set.
        """
        self._check_schedule(max_steps)
        self._check_length(max_completion_length)

    def _check_schedule(self, max_steps: int | None) -> None:
        if self.lr_scheduler_type in _ENDLESS_SCHEDULES or "num_stable_steps" in self.lr_scheduler_kwargs:
            return
        if max_steps is None:
            raise ValueError(
                f"lr_scheduler_type={self.lr_scheduler_type!r} needs max_steps: the batch at which the rate reaches "
                f"its end"
            )
        if 0 < max_steps * self.num_iterations <= self.warmup_steps:
            raise ValueError(
                f"max_steps={max_steps} with num_iterations={self.num_iterations} leaves nothing of "
                f"lr_scheduler_type={self.lr_scheduler_type!r} after warmup_steps={self.warmup_steps}"
            )

    def _check_length(self, max_completion_length: int | None) -> None:
        if max_completion_length is None:
            if self.loss.loss_type == "dr_grpo" or self.overlong_cache:
                raise ValueError("loss_type=dr_grpo and overlong_cache need max_completion_length: they count from it")
        elif self.overlong_cache > max_completion_length:
            raise ValueError(
                f"overlong_cache={self.overlong_cache} is more than max_completion_length={max_completion_length}, "
                f"whose last tokens it names"
            )
