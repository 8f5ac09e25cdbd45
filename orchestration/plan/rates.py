"""How fast an engine decodes and a learner learns: numbers that come from a measurement or from a roofline."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from learner.config import LearnerConfig
from orchestration.machine.model_sizes import BYTES_PER_WEIGHT, ModelSize
from orchestration.machine.needs import lora_parameters, whole_parameters
from orchestration.plan.gpus import Gpu
from orchestration.settings.config import RunConfig

CPU_BLOCK, GPU_BLOCK = 128, 16
"""Tokens of vLLM's cache blocks: a whole one that a prompt's completions share is computed once."""

# The assumptions behind stated rates. Shares of the peak are of what well-kept engines reach on such models; a
# measured run (`--measured`) takes the place of all of them.
MEMORY_SHARE = 0.7
"""Of the memory's bandwidth that decoding reaches."""
PREFILL_SHARE = 0.5
"""Of the peak that prefill and wide decoding reach."""
LEARNER_SHARE = 0.35
"""Of the peak that forward and backward passes reach."""
LAYER_S = 1.5e-4
"""A decoded step's launches and adapter products, of each layer."""
SEQUENCE_S = 1e-5
"""Of each sequence of a step: scheduling and sampling."""
UPDATE_S = 0.3
"""Of an update beside its passes: planning, optimizer step, the ranks' talk."""
PUBLISH_S, COPY_BYTES_PER_S = 0.3, 1e9
"""Of a publish: export, load and probe; and each copy of the adapter on its way."""
SCORING_S = 0.01
"""Of a group at the reward service."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Seconds, of one engine and of one learner rank that have their processors to themselves."""

    step_s: float
    """An engine step, whatever is in it."""
    sequence_s: float
    """More for each sequence that it decodes."""
    wide_sequence_s: float = 0.0
    """At least so much a sequence: where arithmetic is the limit, and not memory."""
    prefill_token_s: float
    update_s: float
    """An update, however small."""
    token_s: float
    """More for each distinct token of a rank's share."""
    publish_s: float
    scoring_s: float
    other_s: float = 0.0
    """Of the loop between a publish and the next generation."""
    slots: int
    """Sequences that an engine decodes at once."""
    source: str

    def tick_s(self, num_sequences: int) -> float:
        """An engine step that decodes so many sequences."""
        return max(self.step_s + self.sequence_s * num_sequences, self.wide_sequence_s * num_sequences)

    def for_slots(self, slots: int) -> Rates:
        """The same of an engine that decodes so many at once."""
        return replace(self, slots=slots)

    def prefill_s(self, prompt_tokens: int, num_sequences: int, block: int) -> float:
        return self.prefill_token_s * prefilled(prompt_tokens, num_sequences, block)

    def learning_s(self, distinct_tokens: float) -> float:
        """An update whose largest share has so many tokens."""
        return self.update_s + self.token_s * distinct_tokens


def prefilled(prompt_tokens: int, num_sequences: int, block: int) -> int:
    """Prompt tokens that are computed for a group: whole blocks once, what is left of the prompt for each.

    Args:
        prompt_tokens: Of the prompt that all of the group share.
        num_sequences: Of the group.
        block: Tokens of a block of the prefix cache.

    >>> prefilled(40, 8, 16)
    96
    """
    return prompt_tokens + (num_sequences - 1) * (prompt_tokens % block)


def stated_rates(config: RunConfig, size: ModelSize, gpu: Gpu, *, context: float, num_nodes: int) -> Rates:
    """A roofline of one GPU.

    A decoded token costs its weights' and its context's way through memory, or its arithmetic (2 operations a weight),
    whichever takes longer. Learning costs 2 operations a weight forward and 2 backward, as only the adapter's weights
    have gradients (Kaplan et al. 2020, appendix B, less the weights' own third), and 2 more for each further forward
    pass.

    Args:
        context: Mean tokens of a sequence while it is decoded.
        num_nodes: That an adapter is copied to.
    """
    width, learner = config.rollout.tensor_parallel_size, config.learner
    bytes_per_weight = BYTES_PER_WEIGHT[_served(config)]
    speed = gpu.bandwidth * MEMORY_SHARE * width
    weights_s = size.num_parameters * bytes_per_weight / speed
    cache_s = context * kv_bytes(size, bytes_per_weight) / speed
    operations_s = 2 * size.num_parameters / (gpu.operations * PREFILL_SHARE * width)
    adapter = 4 * (lora_parameters(size, learner) + whole_parameters(size, learner))
    return Rates(
        step_s=weights_s + LAYER_S * size.num_layers,
        sequence_s=cache_s + SEQUENCE_S,
        wide_sequence_s=operations_s + cache_s,
        prefill_token_s=operations_s,
        update_s=UPDATE_S * learner.num_iterations,
        token_s=operations_per_token(size, learner) / (gpu.operations * LEARNER_SHARE),
        publish_s=PUBLISH_S + adapter / COPY_BYTES_PER_S * (1 + math.ceil(math.log2(num_nodes))),
        scoring_s=SCORING_S,
        slots=engine_slots(config, size, gpu, context=context),
        source=f"stated: {gpu.name}, {gpu.source}; shares {MEMORY_SHARE:g} of its bandwidth, {PREFILL_SHARE:g} of its "
        f"peak in generation, {LEARNER_SHARE:g} in learning",
    )


def operations_per_token(size: ModelSize, learner: LearnerConfig) -> float:
    """Of an update, for each distinct token."""
    forward = 2 * size.num_parameters
    old = learner.num_iterations > 1  # log-probs of before the first of several steps
    passes = learner.num_iterations * (2 + learner.gradient_checkpointing) + old + (learner.loss.beta > 0)
    return passes * forward + 2 * learner.num_iterations * whole_parameters(size, learner)


def kv_bytes(size: ModelSize, bytes_per_weight: float) -> float:
    """Keys and values of one token."""
    return 2 * size.num_layers * size.kv_width * bytes_per_weight


def engine_slots(config: RunConfig, size: ModelSize, gpu: Gpu, *, context: float) -> int:
    """Sequences that an engine decodes at once: as many as it may, and as its cache has room for.

    Args:
        config: Bounds them by `rollout.max_num_seqs`.
        size: Of the model, whose weights take their part of the memory first.
        gpu: One of `rollout.tensor_parallel_size` that an engine has.
        context: Mean tokens of a sequence while it is decoded.

    Returns:
        1 where there is no room at all: the memory's check says so, not this.
    """
    width, served = config.rollout.tensor_parallel_size, BYTES_PER_WEIGHT[_served(config)]
    room = config.rollout.gpu_memory_utilization * gpu.memory_bytes * width - size.num_parameters * served
    return max(1, min(config.rollout.max_num_seqs, int(max(0.0, room) / (kv_bytes(size, served) * context))))


def _served(config: RunConfig) -> str:
    return "bfloat16" if config.rollout.dtype == "auto" else config.rollout.dtype
