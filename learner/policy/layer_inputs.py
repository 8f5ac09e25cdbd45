"""What enters the layers that have an adapter: a gradient towards an adapter is a product with it.

Shapes: P tokens, I inputs of a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

LayerInputs = Mapping[str, Sequence[Tensor]]
"""A layer's name → of each of its calls (P, I)."""


@contextmanager
def noted_inputs(policy: nn.Module, num_tokens: int) -> Iterator[dict[str, list[Tensor]]]:
    """Fills what it gives with the inputs of each layer inside, but for experts: they get some tokens each, in an order
    of their own."""
    inputs: dict[str, list[Tensor]] = defaultdict(list)

    def note(calls: list[Tensor], module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if arguments and arguments[0].is_floating_point():
            input_PI = arguments[0].detach().flatten(0, -2)
            if len(input_PI) == num_tokens:
                calls.append(input_PI)

    hooks = [
        module.register_forward_pre_hook(partial(note, inputs[name]))
        for name, module in policy.named_modules()
        if hasattr(module, "lora_A") and ".experts." not in name
    ]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def joined(parts: Sequence[LayerInputs]) -> LayerInputs:
    """Several passes as if their tokens had gone through together, one pass's after the other's."""
    return {
        name: [torch.cat(calls) for calls in zip(*(part[name] for part in parts), strict=True)] for name in parts[0]
    }


def taken(inputs: LayerInputs, token_P: Tensor) -> LayerInputs:
    """Those of some of the tokens."""
    return {name: [call.index_select(0, token_P) for call in calls] for name, calls in inputs.items()}


_ALL = slice(None)


def layers_apart(first: LayerInputs, second: LayerInputs, tokens: slice = _ALL) -> Tensor:
    """By how much each call of each layer differs in these tokens, as a share of the second's norm; one dimension.
    Layers that one of the two does not call as often, such as a head's own, are left out."""
    shares = [
        share(a[tokens], b[tokens])
        for name, calls in second.items()
        if len(first[name]) == len(calls)
        for a, b in zip(first[name], calls, strict=True)
    ]
    return torch.stack(shares) if shares else torch.zeros(1)


def share(found: Tensor, expected: Tensor) -> Tensor:
    """The norm of their difference in the norm of what is expected."""
    apart: Tensor = (found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-30)
    return apart
