"""Settings of the learner; names are TRL's `GRPOConfig` names wherever it has one. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LossType = Literal["grpo", "dapo", "dr_grpo"]
ScaleRewards = Literal["group", "batch", "none"]


class LossConfig(BaseModel):
    """The policy loss. Defaults are TRL 1.16's unless the description says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss_type: LossType = Field("dapo", description="How token losses are added up.")
    epsilon: float = Field(0.2, ge=0.0, description="Lower clip range of the ratio.")
    epsilon_high: float | None = Field(None, ge=0.0, description="Upper clip range; epsilon if unset.")
    beta: float = Field(0.0, ge=0.0, description="Weight of the KL to the base model.")
    use_bias_correction_kl: bool = Field(
        True, description="Multiply the KL term by the ratio, so that its gradient is the unbiased reverse KL's."
    )
    max_completion_length: int = Field(256, ge=1, description="The constant length dr_grpo divides by, tokens.")
    vllm_importance_sampling_correction: bool = Field(
        True, description="Weigh the loss by exp(old - sampling log-prob), truncated: the samplers' numerics differ."
    )
    vllm_importance_sampling_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        Field("sequence_mask", description="Per token or sequence; beyond the clip range the weight is truncated or 0.")
    )
    vllm_importance_sampling_clip_max: float = Field(3.0, gt=0.0, description="Upper bound of the weight.")
    vllm_importance_sampling_clip_min: float | None = Field(None, ge=0.0, description="Lower bound of the weight.")


class LoraSettings(BaseModel):
    """The adapter (peft `LoraConfig` names)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: int = Field(16, ge=1, description="Rank.")
    lora_alpha: int = Field(32, ge=1, description="Scale: the update is multiplied by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout; must be 0 for sampler and learner to agree.")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="Linear layers that get an adapter.",
    )


class LearnerConfig(BaseModel):
    """The DeepSpeed learner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_ranks: int = Field(1, ge=1, description="Data-parallel ranks, each a process with its own accelerator.")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of the frozen base; auto: float32 on CPUs, bfloat16 on GPUs. Adapters are float32.",
    )
    quantization: Literal["none", "nf4"] = Field("none", description="nf4: 4-bit base by bitsandbytes (QLoRA).")
    lora: LoraSettings = Field(default_factory=LoraSettings)
    loss: LossConfig = Field(default_factory=LossConfig)
    scale_rewards: ScaleRewards = Field("group", description="What advantages are divided by.")
    advantage_eps: float = Field(1e-4, ge=0.0, description="Added to the standard deviation.")
    advantage_ddof: Literal[0, 1] = Field(1, description="Delta degrees of freedom of the standard deviation.")
    learning_rate: float = Field(1e-5, gt=0.0, description="AdamW's learning rate.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Schedule after warm-up."
    )
    max_steps: int | None = Field(
        None, ge=1, description="Optimizer steps of the run; the linear and cosine schedules end there."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW's weight decay.")
    adam_beta1: float = Field(0.9, ge=0.0, lt=1.0, description="AdamW.")
    adam_beta2: float = Field(0.999, ge=0.0, lt=1.0, description="AdamW.")
    max_grad_norm: float = Field(1.0, ge=0.0, description="Gradient clipping; 0: none.")
    mask_truncated_completions: bool = Field(False, description="Leave truncated completions out of the loss.")
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads of a rank; unset: on CPUs the cores divided by the ranks."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
    share_prefixes: bool = Field(
        True, description="Pack a batch as a prefix tree: each distinct token goes through once."
    )
    max_tokens_per_microbatch: int = Field(
        2048, ge=1, description="Distinct tokens of one forward and backward pass; activations grow with it."
    )
    probe_tolerance: float | None = Field(
        None,
        gt=0.0,
        description="Largest log-prob difference a publish probe allows, nats; unset: 1e-3 float32, 0.1 bfloat16.",
    )
    start_timeout_s: float = Field(600.0, gt=0, description="Limit on the learner's start, seconds.")
    update_timeout_s: float = Field(1800.0, gt=0, description="Limit on one update, seconds.")

    @model_validator(mode="after")
    def _check(self) -> LearnerConfig:
        if self.zero_stage == 3 and self.quantization != "none":
            raise ValueError(
                f"zero_stage=3 cannot partition a base in {self.quantization}: use zero_stage=2, it is small anyway"
            )
        if self.lr_scheduler_type != "constant" and self.max_steps is not None and self.max_steps <= self.warmup_steps:
            raise ValueError(f"max_steps={self.max_steps} leaves nothing after warmup_steps={self.warmup_steps}")
        return self
