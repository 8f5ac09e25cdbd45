"""A sampler on the dequantised NF4 base holds the learner's policy; on the original base it does not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from learner.config import LearnerConfig
from learner.policy.dequantize import write_dequantized_base
from learner.policy.policy import Policy, load_policy, tree_inputs, tree_logprobs
from learner.tree.prefix_tree import TokenSequence, build_tree
from rollout_server.types import Completion, Prompt, SamplingParams
from rollout_server.worker import RolloutWorker
from tests.rollout_server.conftest import Reference, Served, make_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="session"),
    # vLLM leaves the context of its start's handshake to the garbage collector.
    pytest.mark.filterwarnings("ignore:Exception ignored in.*Context:pytest.PytestUnraisableExceptionWarning"),
]

CPU = torch.device("cpu")
PROMPT = Prompt(prompt_id="p", token_ids=tuple(range(10, 50)))
SAMPLING = SamplingParams(num_generations=8, max_completion_length=32)


def disagreement(policy: Policy, group: list[Completion]) -> tuple[float, float]:
    """Largest |sampling - training log-prob|, and the k3 estimate of KL(sampler ‖ learner), over the group's tokens."""
    sequences = [
        TokenSequence(prompt_token_ids=PROMPT.token_ids, completion_token_ids=completion.token_ids)
        for completion in group
    ]
    inputs = tree_inputs(build_tree(sequences), CPU)
    with torch.no_grad():
        training_BT, _ = tree_logprobs(policy, inputs, temperature=1.0)
    differences = [
        float(training_BT[b, t]) - sampled
        for b, completion in enumerate(group)
        for t, sampled in enumerate(completion.sampling_logprobs)
    ]
    k3 = sum(math.exp(difference) - difference - 1 for difference in differences) / len(differences)
    return max(map(abs, differences)), k3


async def test_the_sampler_holds_the_learners_policy(served: Served, reference: Reference, tmp_path: Path) -> None:
    original = str(reference.model_path)
    policy = load_policy(original, LearnerConfig(quantization="nf4"), device=CPU, seed=0)
    write_dequantized_base(
        original, str(tmp_path / "model"), "nf4", dtype=torch.float32, stored_dtype=torch.float32, device=CPU
    )
    (tmp_path / "shm").mkdir()
    config = make_config(tmp_path / "shm")
    worker = RolloutWorker("rollout-0", str(tmp_path / "model"), config, "cpu", 0, "dequantized", lambda values: None)
    await worker.start()
    try:
        largest, kl = disagreement(policy, await worker.generate(PROMPT, SAMPLING))
    finally:
        await worker.shutdown()
    assert largest < 1e-3
    assert abs(kl) < 1e-5
    # The same measurement tells the original base from it.
    largest, kl = disagreement(policy, await served.worker._engine.generate(PROMPT, SAMPLING, None))
    assert largest > 0.05
    assert kl > 1e-3
