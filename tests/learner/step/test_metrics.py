"""What a step says of its parts, above all how much of the sample the sampler's weights leave."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learner.config import LONGEST_SEQUENCE_WEIGHT, LossConfig
from learner.loss import policy_loss
from learner.step.metrics import MetricTotals
from learner.types import UPDATE_METRICS


def alone(values: list[float], *, op: str = "sum") -> list[float]:
    """The reduction of one rank."""
    return values


def step_values(differences_BT: Tensor, config: LossConfig, *, parts: int = 1) -> dict[str, float]:
    """A step of sequences whose log-probs differ so from the sampler's, cut into so many micro-batches."""
    totals = MetricTotals()
    for part_BT in differences_BT.chunk(parts):
        ones = torch.ones_like(part_BT)
        advantages_B = torch.ones(len(part_BT))
        zeros = torch.zeros_like(part_BT)
        _, values = policy_loss(part_BT, advantages_B, ones, config=config, sampling_logprobs_BT=zeros)
        totals.add(values, part_BT.numel())
    return totals.reduced(alone)


def noisy(num_tokens: int, *, nats: float = 0.02, num_sequences: int = 256) -> Tensor:
    """Differences of a policy and a sampler that are the same but for rounding: exp of them has the mean 1."""
    generator = torch.Generator().manual_seed(0)
    return nats * torch.randn(num_sequences, num_tokens, generator=generator) - nats**2 / 2


def test_the_effective_share_is_that_of_the_whole_step() -> None:
    # Weights 2, 1, 1/2, 1/2: sum 4, squares 4 + 1 + 1/4 + 1/4 = 5.5; 16 / (4 · 5.5) = 8/11.
    differences_BT = torch.tensor([[2.0], [1.0], [0.5], [0.5]]).log()
    config = LossConfig(vllm_importance_sampling_mode="token_mask")
    for parts in (1, 2, 4):
        values = step_values(differences_BT, config, parts=parts)
        assert values["effective_sample_share"] == pytest.approx(8 / 11)
        assert values["importance_sampling_weight_mean"] == pytest.approx(1.0)
        assert set(values) >= {"importance_sampling_weight_min", "importance_sampling_weight_max"}
        assert not any("squares" in name for name in values)
    assert "effective_sample_share" in UPDATE_METRICS


@pytest.mark.parametrize(("differences", "share"), [([0.0, 0.0, 0.0], 1.0), ([9.0, 9.0, 9.0], 0.0), ([9.0, 0.0], 0.5)])
def test_what_is_masked_is_not_in_the_effective_share(differences: list[float], share: float) -> None:
    values = step_values(torch.tensor(differences).unsqueeze(1), LossConfig())
    assert values["effective_sample_share"] == pytest.approx(share)


def test_without_a_correction_there_is_no_share() -> None:
    values = step_values(torch.zeros(2, 2), LossConfig(vllm_importance_sampling_correction=False))
    assert "effective_sample_share" not in values


@pytest.mark.parametrize(
    ("num_tokens", "sequence", "chosen"), [(256, 0.91, 0.91), (512, 0.82, 0.82), (2048, 0.61, 1.0), (16384, 0.18, 1.0)]
)
def test_long_completions_are_weighed_by_token(num_tokens: int, sequence: float, chosen: float) -> None:
    """With 0.02 nats of noise a token a product over a long completion would leave a fifth of the sample."""
    differences_BT = noisy(num_tokens)
    by_sequence = LossConfig(vllm_importance_sampling_mode="sequence_mask", max_completion_length=num_tokens)
    by_length = LossConfig(max_completion_length=num_tokens)
    assert step_values(differences_BT, by_sequence)["effective_sample_share"] == pytest.approx(sequence, abs=0.05)
    assert step_values(differences_BT, by_length)["effective_sample_share"] == pytest.approx(chosen, abs=0.05)


def test_the_correction_follows_the_length_unless_it_is_named() -> None:
    longest = LONGEST_SEQUENCE_WEIGHT
    assert LossConfig(max_completion_length=longest).sampler_correction == "sequence_mask"
    assert LossConfig(max_completion_length=longest + 1).sampler_correction == "token_truncate"
    named = LossConfig(max_completion_length=longest + 1, vllm_importance_sampling_mode="sequence_truncate")
    assert named.sampler_correction == "sequence_truncate"


@pytest.mark.parametrize(("clip_max", "largest"), [(3.0, 3.0), (None, 5.0)])
def test_a_token_of_a_long_completion_is_weighed_alone(clip_max: float | None, largest: float) -> None:
    """Truncated, not left out: vespo, which multiplies the weights, would lose the sequence with one token."""
    config = LossConfig(max_completion_length=4096, vllm_importance_sampling_clip_max=clip_max)
    values = step_values(torch.tensor([[5.0, 0.5, 1.0]]).log(), config)
    assert values["importance_sampling_weight_max"] == pytest.approx(largest)
    assert values["importance_sampling_weight_min"] == pytest.approx(0.5)


def test_a_part_of_the_vocabulary_would_take_the_gradient_away() -> None:
    """Why the settings refuse it: log-probs of a nucleus of 0.9 to 1 of the mass, against those of all tokens."""
    mass_BT = torch.linspace(0.9, 1.0, 256).expand(4, 256)
    values = step_values(mass_BT.log(), LossConfig())
    assert values["importance_sampling_weight_mean"] < 1e-5
