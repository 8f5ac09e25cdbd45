"""A linear layer with its LoRA adapter as one operation.

peft's layer adds `lora_B(lora_A(x)) * scaling` to the base's output: tensors of the output's size are written and read
several times more, forward and backward. On CPUs, where such steps wait for memory, that was a tenth of an update, and
half of its peak memory. Here the adapter's products are added where the base's output lies.

Shapes: M tokens, I inputs, O outputs, r the adapter's rank.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from learner.policy.products import whole_product


def lora_linear(
    x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_rI: Tensor, b_Or: Tensor, scaling: float
) -> Tensor:
    """x·Wᵀ + bias + scaling·(x·Aᵀ)·Bᵀ, with gradients towards x, A and B.

    Args:
        x_MI: its leading dimensions may be any.
        weight_OI, bias_O: the base's, frozen.
        a_rI, b_Or: the adapter's. They may be float32 over an x and W of 16 bits: products are then in the precision
            of x, as the sampler's are, and the gradients of A and B float32.
        scaling: lora_alpha / r.

    Returns:
        (…, O), in the precision of x.
    """
    out_MO: Tensor = _LoraLinear.apply(x_MI, weight_OI, bias_O, a_rI, b_Or, scaling)
    return out_MO


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_rI: Tensor, b_Or: Tensor, scaling: float
    ) -> Tensor:
        flat_MI = x_MI.reshape(-1, x_MI.shape[-1])
        down_Mr = flat_MI @ a_rI.to(x_MI.dtype).T
        out = x_MI.new_empty(*x_MI.shape[:-1], len(weight_OI))  # no view: a model may clamp it in place
        out_MO = out.view(-1, len(weight_OI))
        if bias_O is None:
            torch.mm(flat_MI, weight_OI.T, out=out_MO)
        else:
            torch.addmm(bias_O, flat_MI, weight_OI.T, out=out_MO)
        out_MO.addmm_(down_Mr, b_Or.to(x_MI.dtype).T, alpha=scaling)
        ctx.save_for_backward(x_MI, weight_OI, a_rI, b_Or, down_Mr)  # A and B themselves: no copies of the parameters
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x_MI, weight_OI, a_rI, b_Or, down_Mr = ctx.saved_tensors
        grad_MO = grads[0].reshape(-1, grads[0].shape[-1])
        up_Mr = (grad_MO @ b_Or.to(grad_MO.dtype)).mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_MO @ weight_OI).addmm_(up_Mr, a_rI.to(up_Mr.dtype)).view(x_MI.shape)
        grad_a_rI = whole_product(up_Mr.T, x_MI.reshape(-1, x_MI.shape[-1])).to(a_rI.dtype)
        grad_b_Or = whole_product(grad_MO.T, down_Mr).to(b_Or.dtype).mul_(ctx.scaling)
        return grad_x, None, None, grad_a_rI, grad_b_Or, None


@cache
def fused_lora_layer() -> type[nn.Module]:
    """peft's LoRA layer, whose forward is `lora_linear` wherever that is the same: one plain adapter in the base's
    precision or in float32, no dropout. Anything else is left to peft. Made here, since its base class is peft's."""
    from peft.tuners.lora import Linear

    class FusedLoraLinear(Linear):  # type: ignore[misc]
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            name = self.active_adapters[0]
            plain = not (args or kwargs or self.disable_adapters or self.merged or self.lora_variant)
            if not (plain and len(self.active_adapters) == 1 and isinstance(self.lora_dropout[name], nn.Identity)):
                peft_out: Tensor = super().forward(x, *args, **kwargs)
                return peft_out
            base = self.get_base_layer()
            a_rI, b_Or = self.lora_A[name].weight, self.lora_B[name].weight
            if x.dtype != base.weight.dtype or a_rI.dtype not in (x.dtype, torch.float32):
                mixed: Tensor = super().forward(x)
                return mixed
            return lora_linear(x, base.weight, base.bias, a_rI, b_Or, self.scaling[name])

    return FusedLoraLinear
