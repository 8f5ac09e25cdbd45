"""The fused layer with an adapter in float32 over a base in bfloat16, against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from learner.policy.lora_linear import fused_lora_layer, lora_linear
from tests.learner.policy.test_policy import make_policy

SCALING = 0.5


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x and the base in bfloat16, A and B in float32, and the gradient that comes back."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    x, weight, bias, upstream = (
        made.bfloat16() for made in (normal(2, 96, 64), normal(48, 64), normal(48), normal(2, 96, 48))
    )
    return x, weight, bias, normal(8, 64), normal(48, 8), upstream


def plain(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return nn.functional.linear(x, weight, bias) + (x @ a.T) @ b.T * SCALING


@pytest.mark.parametrize("whole", [False, True])
def test_gradients_are_those_of_float64_but_for_bfloat16(whole: bool, request: pytest.FixtureRequest) -> None:
    if whole:
        request.getfixturevalue("whole_products")
    *given, upstream = tensors()
    x, weight, bias, a, b = given
    inputs = [tensor.clone().requires_grad_() for tensor in (x, a, b)]
    out = lora_linear(inputs[0], weight, bias, inputs[1], inputs[2], SCALING)
    found = [out, *torch.autograd.grad(out, inputs, upstream)]
    exact_inputs = [tensor.double().requires_grad_() for tensor in (x, a, b)]
    exact = plain(exact_inputs[0], weight.double(), bias.double(), exact_inputs[1], exact_inputs[2])
    expected = [exact, *torch.autograd.grad(exact, exact_inputs, upstream.double())]
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    # The same in bfloat16 throughout: rounding of the adapter, of its products and of what they are added to.
    rounded_inputs = [tensor.bfloat16().requires_grad_() for tensor in (x, a, b)]
    rounded = plain(rounded_inputs[0], weight, bias, rounded_inputs[1], rounded_inputs[2])
    in_bfloat16 = [rounded, *torch.autograd.grad(rounded, rounded_inputs, upstream)]
    for ours, right, coarse in zip(found, expected, in_bfloat16, strict=True):
        with torch.no_grad():
            bound = float((coarse.double() - right).norm() / right.norm())
            assert float((ours.double() - right).norm() / right.norm()) <= 1.05 * bound < 0.01


@pytest.mark.parametrize("biased", [False, True])
def test_a_model_may_clamp_the_output_in_place(biased: bool) -> None:
    x, weight, bias, a, b, _ = (tensor.float() for tensor in tensors())
    x.requires_grad_()
    own = bias if biased else torch.zeros_like(bias)
    out = lora_linear(x, weight, bias if biased else None, a, b, SCALING).clamp_(-0.5, 0.5)
    expected = plain(x, weight, own, a, b).clamp(-0.5, 0.5)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    (found,), (right,) = (torch.autograd.grad(made.sum(), [x]) for made in (out, expected))
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_no_more_is_saved_than_for_an_adapter_in_bfloat16() -> None:
    x, weight, bias, a, b, _ = tensors()

    def saved_bytes(a: Tensor, b: Tensor) -> int:
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        leaves = [tensor.clone().requires_grad_() for tensor in (a, b)]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = lora_linear(x, weight, bias, *leaves, SCALING)
        own = {tensor.untyped_storage().data_ptr() for tensor in (weight, *leaves)}
        assert out.requires_grad
        return sum(size for pointer, size in sizes.items() if pointer not in own)

    assert saved_bytes(a, b) == saved_bytes(a.bfloat16(), b.bfloat16()) == x.nbytes + 2 * 96 * 8 * 2


def test_a_base_in_bfloat16_runs_the_fused_layer(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def noting(*given: Tensor) -> Tensor:
        ran.append({given[0].dtype, given[3].dtype})
        return lora_linear(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("learner.policy.lora_linear.lora_linear", noting)
    policy = make_policy(llama, dtype="bfloat16")
    layers = [module for module in policy.modules() if isinstance(module, fused_lora_layer())]
    assert len(layers) == 14
    ran.clear()
    policy.use_own_attention()
    policy.model(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert ran == [{torch.bfloat16, torch.float32}] * 14
