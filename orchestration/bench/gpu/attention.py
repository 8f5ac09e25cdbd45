"""The tree's attention alone: right, and how fast. Needs torch and numpy, and nothing else.

Shapes: H heads, K key-value heads, N packed tokens, D head size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.tree.blocks import BlockAttention
from learner.tree.flex import FlexAttention
from learner.tree.levels import LevelAttention
from learner.tree.prefix_tree import PrefixTree
from orchestration.bench.gpu.measuring import Measuring
from orchestration.bench.gpu.trees import LARGE, LARGE_ON_CPU, TreeShape

HEADS = ((14, 2, 64), (28, 4, 128), (9, 3, 64))
"""(H, K, D) of Qwen2.5-0.5B, of the 7B, and of SmolLM2."""
TREES = (
    TreeShape(header=4, num_questions=2, question=2, num_completions=2, completion=3),
    TreeShape(header=300, num_questions=4, question=20, num_completions=4, completion=21),
    TreeShape(header=700, num_questions=6, question=30, num_completions=8, completion=37),
)
TIMES_DENSE_ERROR = 2.0
"""A kernel may be so much further from the exact result than dense attention in the same precision."""
LEAST_ERROR = {torch.bfloat16: 2e-3, torch.float32: 2e-5}
ROUNDS = 5

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def check(measuring: Measuring) -> None:
    """Every kernel against dense attention at several shapes: relative errors (of norms) of output and gradients.

    Raises:
        ArithmeticError: A kernel is further from the exact result than its precision explains.
    """
    dtype = torch.bfloat16 if measuring.cuda else torch.float32
    wrong = []
    for heads in HEADS:
        for shape in TREES if measuring.cuda else TREES[:2]:
            tree = shape.tree()
            inputs = _inputs(heads, tree.num_tokens, dtype, measuring.device)
            exact = _results(_dense(tree, heads, measuring.device), [given.double() for given in inputs])
            dense = _errors(_results(_dense(tree, heads, measuring.device), inputs), exact)
            for name, attend, backward in kernels(tree, heads, measuring.device, repeated=False):
                found = _errors(_results(attend, inputs, backward=backward), exact)
                case = f"{name} {heads[0]}/{heads[1]}/{heads[2]}, N = {tree.num_tokens}"
                measuring.say(case, **found, **{f"dense_{what}": error for what, error in dense.items()})
                limits = {what: max(TIMES_DENSE_ERROR * dense[what], LEAST_ERROR[dtype]) for what in found}
                wrong += [f"{case} {what}" for what, error in found.items() if not error <= limits[what]]
    if wrong:
        raise ArithmeticError(f"further from the exact result than dense attention: {', '.join(wrong)}")


def time_kernels(measuring: Measuring) -> None:
    """Milliseconds of every kernel over the large tree, forward and backward: the median of several, after two."""
    shape = LARGE if measuring.cuda else LARGE_ON_CPU
    tree = shape.tree()
    dtype = torch.bfloat16 if measuring.cuda else torch.float32
    for heads in HEADS[:2] if measuring.cuda else HEADS[:1]:
        inputs = _inputs(heads, tree.num_tokens, dtype, measuring.device)
        for name, attend, backward in kernels(tree, heads, measuring.device):
            times = [_timed(attend, inputs, measuring, backward=backward) for _ in range(ROUNDS + 2)][2:]
            forward, back = (statistics.median(column) for column in zip(*times, strict=True))
            measuring.say(
                f"{name} {heads[0]}/{heads[1]}/{heads[2]}, {shape}",
                tokens=tree.num_tokens,
                forward_ms=round(forward, 3),
                backward_ms=round(back, 3) if backward else "none",
            )


def kernels(
    tree: PrefixTree, heads: tuple[int, int, int], device: str, *, repeated: bool = True
) -> Iterator[tuple[str, Attend, bool]]:
    """(name, attention, whether it goes backward) of each that runs on the device; `repeated`: also flex with keys and
    values copied to all heads, which gives its backward pass more thread blocks."""
    where, scale = torch.device(device), heads[2] ** -0.5
    flex = FlexAttention(tree, where)

    def on(attention: Any) -> Attend:
        return lambda query, key, value: attention(query, key, value, scale=scale, window=None)

    if device == "cpu":
        yield "blocks", on(BlockAttention(tree)), True
        yield "flex", on(flex), False
        return

    def refuse() -> Any:
        raise RuntimeError("levels left these shapes to flex")

    def copied(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        times = heads[0] // heads[1]
        return on(flex)(query, key.repeat_interleave(times, 0), value.repeat_interleave(times, 0))

    yield "levels", on(LevelAttention(tree, where, otherwise=refuse)), True
    yield "flex", on(flex), True
    if repeated:
        yield "flex, K/V repeated", copied, True


def _inputs(heads: tuple[int, int, int], num_tokens: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Queries, keys, values, and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    sizes = (heads[0], heads[1], heads[1], heads[0])
    return [torch.randn(size, num_tokens, heads[2], generator=generator).to(device, dtype) for size in sizes]


def _dense(tree: PrefixTree, heads: tuple[int, int, int], device: str) -> Attend:
    """By the whole matrix of scores, in the inputs' precision, the softmax in float32 at least."""
    every = np.arange(tree.num_tokens)
    sees_NN = torch.from_numpy(tree.sees(every, every)).to(device)
    times = heads[0] // heads[1]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.repeat_interleave(times, 0).transpose(1, 2) * heads[2] ** -0.5
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~sees_NN, -torch.inf)
        out: Tensor = scores.softmax(dim=2).to(query.dtype) @ value.repeat_interleave(times, 0)
        return out

    return attend


def _results(attend: Attend, inputs: list[Tensor], *, backward: bool = True) -> list[Tensor]:
    """The output, and the gradients towards queries, keys and values."""
    leaves = [given.clone().requires_grad_(backward) for given in inputs[:3]]
    out = attend(*leaves)
    if not backward:
        return [out]
    out.backward(inputs[3])
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _errors(found: list[Tensor], exact: list[Tensor]) -> dict[str, float]:
    """Relative: of the output, and the worst of the gradients."""
    errors = [
        float((one.double() - other.double()).norm() / other.double().norm())
        for one, other in zip(found, exact, strict=False)
    ]
    return {"forward_error": errors[0]} | ({"backward_error": max(errors[1:])} if len(errors) > 1 else {})


def _timed(attend: Attend, inputs: list[Tensor], measuring: Measuring, *, backward: bool) -> tuple[float, float]:
    """Milliseconds, forward and backward."""
    leaves = [given.detach().requires_grad_(backward) for given in inputs[:3]]
    begun = _now(measuring)
    out = attend(*leaves)
    between = _now(measuring)
    if backward:
        out.backward(inputs[3])
    return 1e3 * (between - begun), 1e3 * (_now(measuring) - between)


def _now(measuring: Measuring) -> float:
    if measuring.cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
