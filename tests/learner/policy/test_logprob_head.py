"""The output head in bfloat16 against float64, from unlikely tokens to certain ones. `-s` prints the table.

Errors are relative, of a whole batch: |found − expected| / |expected|, each batch of one probability only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from learner.policy.logprob_head import token_logprobs

PROBABILITIES = (0.3, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
NUM_ROWS, VOCABULARY, HIDDEN = 96, 512, 128

Head = Callable[[Tensor, Tensor, Tensor], Tensor]
"""head(hidden_RE, weight_VE, target_R) → log-probs (R,), whose gradient goes to the hidden states."""


def ours(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return token_logprobs(hidden, weight, None, target, temperature=1.0)[0]


def autograd(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The plain way: logits in the weight's precision, a softmax in float32 at least."""
    logits = hidden @ weight.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(-1).gather(1, target.unsqueeze(1)).squeeze(1)


def cancelling_gradient(hidden: Tensor, weight: Tensor, target: Tensor, upstream: Tensor) -> Tensor:
    """W[target] − p·W, the difference taken in the weight's precision: the control, which must fail."""
    probs = (hidden @ weight.T).float().softmax(-1)
    return upstream.unsqueeze(1) * (weight[target] - probs.to(weight.dtype) @ weight)


def gradient(head: Head, hidden: Tensor, weight: Tensor, target: Tensor, upstream: Tensor) -> Tensor:
    hidden = hidden.clone().requires_grad_()
    (found,) = torch.autograd.grad(head(hidden, weight, target), hidden, upstream.to(hidden.dtype).float())
    return found


def expected_gradient(hidden: Tensor, weight: Tensor, target: Tensor, upstream: Tensor) -> Tensor:
    hidden = hidden.double().requires_grad_()
    (found,) = torch.autograd.grad(autograd(hidden, weight.double(), target), hidden, upstream.double())
    return found


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def tokens_of_probability(p: float, *, rivals: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weights, targets and upstream gradients, where every target has about the probability p: the same
    odds in each row would round alike.

    `rivals`: among how many tokens the rest is divided; 0: over the whole vocabulary.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(VOCABULARY, HIDDEN, generator=generator) / math.sqrt(HIDDEN)).bfloat16()
    target = torch.randint(VOCABULARY, (NUM_ROWS,), generator=generator)
    base = torch.randn(NUM_ROWS, HIDDEN, generator=generator) * 2
    for _ in range(rivals):
        base += 14 * weight[torch.randint(VOCABULARY, (NUM_ROWS,), generator=generator)].float()
    wanted = torch.logit(torch.tensor(p)) + torch.rand(NUM_ROWS, generator=generator) - 0.5
    low, high = torch.full((NUM_ROWS,), -50.0), torch.full((NUM_ROWS,), 100.0)
    for _ in range(50):  # how far along the target's own row: log p grows with it
        middle = (low + high) / 2
        hidden = base + middle.unsqueeze(1) * weight[target].float()
        below = torch.logit(autograd(hidden, weight.float(), target).exp()) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return hidden.bfloat16(), weight, target, torch.randn(NUM_ROWS, generator=generator)


@pytest.mark.parametrize("rivals", [0, 1, 2])
def test_bfloat16_is_never_worse_than_plain_autograd(rivals: int) -> None:
    """At every probability, whether the rest is spread or on a rival, whose logit is as rounded as with autograd."""
    print(f"\n{rivals or 'all'} rivals\n      p | autograd | W[t] - p·W |   here | log-prob, autograd |    here")
    for p in PROBABILITIES:
        batch = tokens_of_probability(p, rivals=rivals)
        expected = expected_gradient(*batch)
        plain, here = (error(gradient(head, *batch), expected) for head in (autograd, ours))
        before = error(cancelling_gradient(*batch), expected)
        hidden, weight, target, _ = batch
        whole = autograd(hidden.double(), weight.double(), target)
        off_plain, off = (float((head(hidden, weight, target) - whole).abs().mean()) for head in (autograd, ours))
        print(f"{p:>7} | {plain:8.2%} | {before:10.2%} | {here:6.2%} | {off_plain:18.1e} | {off:7.1e}")
        assert here <= plain
        assert off <= off_plain
        assert before > 10 * here or p < 0.999


@pytest.mark.parametrize("rivals", [0, 1, 2])
def test_bfloat16_is_never_worse_over_a_mixture(rivals: int) -> None:
    """Tokens of all probabilities in one batch, one rare and the others certain, weigh as they do in a loss."""
    batches = [tokens_of_probability(p, rivals=rivals, seed=1) for p in (0.01, 0.1, *PROBABILITIES)]
    weight = batches[0][1]
    hidden, target, upstream = (torch.cat(parts) for parts in zip(*((h, t, u) for h, _, t, u in batches), strict=True))
    expected = expected_gradient(hidden, weight, target, upstream)
    plain, here = (error(gradient(head, hidden, weight, target, upstream), expected) for head in (autograd, ours))
    print(f"\nmixture, {rivals or 'all'} rivals: autograd {plain:.2%}, here {here:.2%}")
    assert here <= plain


@pytest.mark.parametrize("trained", [False, True])
def test_float32_keeps_certain_tokens(trained: bool) -> None:
    """1 − p as a difference would have lost a tenth of these; a trained head is float32 over bfloat16 states."""
    hidden, weight, target, upstream = tokens_of_probability(1 - 1e-6, rivals=0)
    expected = expected_gradient(hidden, weight, target, upstream)
    weight = weight.float().requires_grad_(trained)
    found = gradient(ours, hidden if trained else hidden.float(), weight, target, upstream)
    assert error(found, expected) < (3e-3 if trained else 1e-5)  # the former in bfloat16, as its states are


@pytest.mark.usefixtures("whole_products")
@pytest.mark.parametrize("rivals", [0, 1, 2])
def test_products_into_float32_leave_nothing_but_the_last_rounding(rivals: int) -> None:
    for p in PROBABILITIES:
        batch = tokens_of_probability(p, rivals=rivals)
        assert error(gradient(ours, *batch), expected_gradient(*batch)) < 3e-3, p
        hidden, weight, target, _ = batch
        whole = autograd(hidden.double(), weight.double(), target)
        assert float((ours(hidden, weight, target) - whole).abs().max()) < 1e-5, p


def test_a_bias_in_bfloat16_is_added_to_every_logit() -> None:
    hidden, weight, target, _ = tokens_of_probability(0.5, rivals=1)
    bias = torch.linspace(-3, 3, VOCABULARY).bfloat16()
    found, _ = token_logprobs(hidden, weight, bias, target, temperature=0.5)
    logits = (hidden.double() @ weight.double().T + bias.double()) / 0.5
    expected = logits.log_softmax(-1).gather(1, target.unsqueeze(1)).squeeze(1)
    assert float((found - expected).abs().max()) < 0.2  # two roundings of logits up to 30, in nats
    assert float((found - expected).abs().mean()) < 0.03
