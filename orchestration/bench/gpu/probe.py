"""How far the log-probs of sampler and learner are apart in bfloat16: what the bounds of a publish probe rest on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from learner.config import LearnerConfig
from learner.policy.policy import load_policy, tree_inputs, tree_logprobs
from learner.tree.prefix_tree import TokenSequence, build_tree
from orchestration.bench.gpu.measuring import Measuring
from orchestration.bench.plain_vllm import PlainVllm
from orchestration.data.source import PromptSource
from orchestration.models.prompting import make_prompt_builder, training_sampling
from orchestration.models.resolve import SMOLLM2, TINY, embedded_model_ready, resolve_model
from orchestration.settings.config import RunConfig, load_config
from rollout_server.types import Completion, Prompt

NUM_PROMPTS = 32
FAR = 0.1
"""Nats; the share of tokens further apart is said."""


def gap(measuring: Measuring) -> None:
    """Completions drawn by vLLM with a head in bfloat16, and in float32, each against the learner's log-probs."""
    name = SMOLLM2 if measuring.cuda and embedded_model_ready(SMOLLM2) else TINY
    recipe = "arithmetic" if name == SMOLLM2 else "tiny"
    config = load_config(recipe, [f"model.name={name}", "rollout.dtype=bfloat16", "rollout.gpu_memory_utilization=0.4"])
    model = resolve_model(name)
    problems = config.data.load()
    builder = make_prompt_builder(config, problems, model)
    source = PromptSource(problems.train, builder.build, config.seed)
    prompts = [source.next().prompt for _ in range(NUM_PROMPTS if measuring.cuda else 4)]
    drawn = {head: _draw(str(model), config, prompts, builder, measuring, head) for head in ("bfloat16", "float32")}
    policy = load_policy(str(model), LearnerConfig(dtype="bfloat16"), device=torch.device(measuring.device), seed=0)
    for head, groups in drawn.items():
        gaps = _gaps(policy, prompts, groups, measuring.device)
        measuring.say(
            f"{name}, the sampler's head in {head}",
            tokens=len(gaps),
            rms=float(np.sqrt(np.mean(gaps**2))),
            mean=float(gaps.mean()),
            largest=float(np.abs(gaps).max()),
            share_over_0_1=float((np.abs(gaps) > FAR).mean()),
        )


def _draw(
    model: str, config: RunConfig, prompts: Sequence[Prompt], builder: Any, measuring: Measuring, head: str
) -> list[list[Completion]]:
    device = "cuda" if measuring.cuda else "cpu"
    engine = PlainVllm(model, config.rollout, device, config.seed, hf_overrides={"head_dtype": head})  # type: ignore[arg-type]
    try:
        return engine.generate(prompts, training_sampling(config, builder), None)
    finally:
        engine.shutdown()


def _gaps(policy: Any, prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]], device: str) -> Any:
    """The sampler's log-prob less the learner's, of every token."""
    pairs = [(prompt, one) for prompt, group in zip(prompts, groups, strict=True) for one in group]
    sequences = [
        TokenSequence(prompt_token_ids=prompt.token_ids, completion_token_ids=one.token_ids) for prompt, one in pairs
    ]
    with torch.no_grad():
        logprobs_BT, _ = tree_logprobs(
            policy, tree_inputs(build_tree(sequences), torch.device(device)), temperature=1.0
        )
    rows = [row[: len(one.token_ids)] for row, (_, one) in zip(logprobs_BT.float().cpu().numpy(), pairs, strict=True)]
    return np.concatenate([np.asarray(one.sampling_logprobs) - row for row, (_, one) in zip(rows, pairs, strict=True)])
