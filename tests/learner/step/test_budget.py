"""The micro-batch's budget: from memory where it can be measured, and what is said of a sequence that is over it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from learner.config import DEFAULT_TOKENS_PER_MICROBATCH, LearnerConfig
from learner.policy.policy import Policy
from learner.step import budget
from learner.step.budget import PassMemory, TokenBudget, measure
from tests.learner.policy.test_policy import CPU, make_policy, trained

GPU = torch.device("cuda", 0)
GIB = 2**30


@pytest.fixture(scope="module")
def policy(llama: str) -> Policy:
    return make_policy(llama)


@pytest.fixture
def _on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 GiB free, and passes that need 1 GiB and 1 MiB a token."""
    monkeypatch.setattr(budget, "free_bytes", lambda device: 10 * GIB)
    monkeypatch.setattr(budget, "measure", lambda *arguments: PassMemory(GIB, 2**20))


def alone(value: float) -> float:
    return value


def test_memory_is_a_line_through_two_passes() -> None:
    memory = PassMemory.through((500, 1500), (1500, 3500))
    assert memory == PassMemory(500.0, 2.0)
    assert memory.of(1000) == 2500
    assert memory.tokens_within(2501) == 1000
    assert memory.tokens_within(0) == 1
    # What is measured may shrink, by chance or where a library took its workspace meanwhile.
    assert PassMemory.through((500, 1500), (1500, 1500)) == PassMemory(1000.0, 1.0)


@pytest.mark.usefixtures("_on_a_gpu")
def test_unset_it_follows_from_free_memory_and_is_the_same_on_all_ranks(policy: Policy) -> None:
    found = TokenBudget(policy, LearnerConfig(), GPU)
    assert found.tokens(alone) == 7 * 1024  # 0.8 · 10 GiB − 1 GiB
    assert TokenBudget(policy, LearnerConfig(), GPU).tokens(lambda own: min(own, 3000)) == 3000
    assert TokenBudget(policy, LearnerConfig(max_tokens_per_microbatch=100), GPU).tokens(alone) == 100
    assert TokenBudget(policy, LearnerConfig(zero_stage=3), GPU).tokens(alone) == DEFAULT_TOKENS_PER_MICROBATCH
    assert TokenBudget(policy, LearnerConfig(), CPU).tokens(alone) == DEFAULT_TOKENS_PER_MICROBATCH


@pytest.mark.usefixtures("_on_a_gpu")
def test_a_sequence_over_it_is_said_once_with_the_memory_that_it_needs(policy: Policy) -> None:
    on_gpu, on_cpu = (TokenBudget(policy, LearnerConfig(), device) for device in (GPU, CPU))
    assert on_gpu.warning(8192, 8192) is None
    said = on_gpu.warning(10240, 8192)
    assert said is not None
    assert "10240 tokens is over a micro-batch's budget of 8192" in said
    assert "about 11 GiB, where 10 GiB are free" in said
    assert on_gpu.warning(10240, 8192) is None
    assert on_gpu.warning(10241, 8192) is not None
    assert "about 1.5 times the memory of one within it" in str(on_cpu.warning(3072, 2048))


def test_measuring_leaves_gradients_and_random_numbers_alone(policy: Policy) -> None:
    sizes: list[int] = []
    small, large = 85, 256  # the model has no more positions

    def meter(run: Callable[[], None]) -> int:
        saved = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run()
        sizes.append(saved)
        return saved

    before = torch.get_rng_state()
    memory = measure(policy, LearnerConfig(), CPU, meter)
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for _, parameter in trained(policy))
    assert [memory.of(small), memory.of(large)] == pytest.approx(sizes)
    assert memory.per_token > 2 * 32 * 4  # the inputs of two layers at the least
