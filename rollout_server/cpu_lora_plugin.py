"""A vLLM plugin: LoRA on CPUs with one multiplication for each adapter of a batch.

vLLM's CPU fallback (`vllm/lora/ops/torch_ops/lora_ops.py`) copies an adapter's matrices once for each token of the
batch and contracts those copies: memory traffic of tokens × rank × width for work that needs one pass over the
matrix. Here the rows of a batch are grouped by adapter once per engine step, and each projection multiplies once per
distinct adapter. The stock operations also read index -1 ("no adapter") as the last slot while decoding; here such
rows are left alone.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`). It acts only on the CPU
platform, and only if the code it stands in for is code that this file was written against; a change of comments,
docstrings or annotations there does not matter.

Shapes: T rows (tokens, or sampled rows for logits), I input width, O output width, R rank, S adapter slots.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import logging
import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rollout_server.forking.leftovers import OWNER, name_shared_memory

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

KNOWN_CODE = frozenset({"5bc753d0b1402ca2"})
"""`code_fingerprint` of what is replaced, in vLLM 0.26 to 0.32."""
KNOWN_SCALING = frozenset({"a1ebd4122102aa49"})
"""The same of `LoRALayerWeights.optimize`, in vLLM 0.32."""

_GROUPS_OF_TOKENS = "_rlvr_groups_of_tokens"
_GROUPS_OF_SAMPLES = "_rlvr_groups_of_samples"


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The rows of a batch that use one adapter."""

    slot: int
    rows: torch.Tensor | slice
    """Row numbers, or a slice where they follow one another: then nothing is gathered or scattered."""


def group_rows(slots_T: list[int]) -> tuple[RowGroup, ...]:
    """Group row numbers by adapter slot, leaving out rows without an adapter (-1).

    >>> group_rows([2, 2, -1, 2])
    (RowGroup(slot=2, rows=tensor([0, 1, 3])),)
    >>> group_rows([-1, 0, 0])
    (RowGroup(slot=0, rows=slice(1, 3, None)),)

    Args:
        slots_T: Of each token its adapter's slot; -1: none.
    """
    import torch

    rows_of: dict[int, list[int]] = {}
    for row, slot in enumerate(slots_T):
        if slot >= 0:
            rows_of.setdefault(slot, []).append(row)
    groups = []
    for slot, rows in rows_of.items():
        contiguous = rows[-1] - rows[0] + 1 == len(rows)
        groups.append(RowGroup(slot, slice(rows[0], rows[-1] + 1) if contiguous else torch.tensor(rows)))
    return tuple(groups)


def shrink(
    x_TI: torch.Tensor, lora_a_SRI: torch.Tensor, groups: tuple[RowGroup, ...], y_TR: torch.Tensor, scale: float
) -> None:
    """y = scale · x Aᵀ in `y`'s precision, with each row's own A; rows without an adapter become 0.

    Args:
        x_TI: A row for each token.
        lora_a_SRI: A of all adapter slots.
        groups: Which rows use which slot; no row is in two.
        y_TR: Is written to; may have more columns than the rank R, which stay as they are or 0.
        scale: Of the product.
    """
    if not _covers(groups, y_TR.shape[0]):
        y_TR.zero_()
    rank = lora_a_SRI.shape[-2]
    for group in groups:
        a_RI = lora_a_SRI[group.slot].to(y_TR.dtype)
        product = x_TI[group.rows].to(y_TR.dtype) @ a_RI.T
        y_TR[group.rows, :rank] = product if scale == 1.0 else product * scale


def expand(
    x_TR: torch.Tensor,
    lora_b_SOR: torch.Tensor,
    groups: tuple[RowGroup, ...],
    y_TO: torch.Tensor,
    add_inputs: bool,
) -> None:
    """y += x Bᵀ in `y`'s precision, with each row's own B (`add_inputs=False`: y = x Bᵀ; rows without an adapter 0).

    `y` may be a slice of columns of a packed projection, and may be narrower than B, which vLLM pads for logits.

    Args:
        x_TR: What `shrink` gave.
        lora_b_SOR: B of all adapter slots.
        groups: Which rows use which slot; no row is in two.
        y_TO: Is written to.
        add_inputs: Add to what is there.
    """
    width = min(y_TO.shape[1], lora_b_SOR.shape[-2])
    y_TW = y_TO[:, :width]
    if not add_inputs and not _covers(groups, y_TO.shape[0]):
        y_TW.zero_()
    for group in groups:
        b_RW = lora_b_SOR[group.slot, :width].to(y_TO.dtype).T
        x = x_TR[group.rows].to(y_TO.dtype)
        if not add_inputs:
            y_TW[group.rows] = x @ b_RW
        elif isinstance(group.rows, slice):
            y_TW[group.rows].addmm_(x, b_RW)
        else:
            y_TW.index_add_(0, group.rows, x @ b_RW)


def _covers(groups: tuple[RowGroup, ...], num_rows: int) -> bool:
    """Whether one adapter has all the rows: the common case, in which nothing needs clearing."""
    return len(groups) == 1 and isinstance(groups[0].rows, slice) and groups[0].rows == slice(0, num_rows)


def register() -> None:
    """vLLM's entry point: put the grouped operations in place, once, if this is the place for them.

    In a process of an engine of ours that vLLM has spawned, what it makes in shared memory is named after it too.
    """
    from vllm.platforms import current_platform

    if OWNER in os.environ:
        name_shared_memory()
    if not current_platform.is_cpu():
        return
    from vllm.lora.lora_weights import LoRALayerWeights
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler
    from vllm.v1.worker.gpu_input_batch import InputBatch

    from rollout_server.repeatable import cpu_seeds  # loads torch

    cpu_seeds.install(InputBatch, TopKTopPSampler)
    if PunicaWrapperCPU.add_lora_linear is _add_lora_linear:
        return
    fingerprint = code_fingerprint(PunicaWrapperCPU, lora_ops)
    if fingerprint not in KNOWN_CODE:
        logger.warning(
            "This vLLM's CPU LoRA operations are not the ones rlvr's faster ones were written for (fingerprint %s): "
            "leaving them as they are. Adapters will be served correctly but several times slower.",
            fingerprint,
        )
        return
    install(PunicaWrapperCPU)
    if _hash_of([LoRALayerWeights.optimize]) in KNOWN_SCALING:
        LoRALayerWeights.optimize = _scaled_beside


def _scaled_beside(self: Any) -> Any:
    """B is a part of the adapter's file, mapped: to scale it there, as vLLM does, copies each page of it first."""
    if self.scaling != 1:
        self.lora_b, self.scaling = self.lora_b * self.scaling, 1
    return self


def install(wrapper_class: Any) -> None:
    """Replace the operations of a `PunicaWrapperCPU` class by the grouped ones."""
    stock_update_metadata = wrapper_class.update_metadata

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        stock_update_metadata(self, *args, **kwargs)
        setattr(self, _GROUPS_OF_TOKENS, group_rows(self.token_lora_indices.tolist()))
        setattr(self, _GROUPS_OF_SAMPLES, group_rows(self.sampler_indices.tolist()))

    wrapper_class.update_metadata = update_metadata
    for name, operation in _OPERATIONS.items():
        setattr(wrapper_class, name, operation)


def _add_shrink(self: Any, y: Any, x: torch.Tensor, lora_a_stacked: Any, scale: float, **kwargs: Any) -> None:
    groups = getattr(self, _GROUPS_OF_TOKENS)
    x_TI = x.view(-1, x.shape[-1])
    for y_slice, lora_a in zip(y, lora_a_stacked, strict=True):
        shrink(x_TI, lora_a[:, 0], groups, y_slice.view(-1, y_slice.shape[-1]), scale)


def _add_expand(
    self: Any,
    y: torch.Tensor,
    x: Any,
    lora_b_stacked: Any,
    output_slices: tuple[int, ...],
    offset_start: int = 0,
    add_inputs: bool = True,
    **kwargs: Any,
) -> None:
    groups = getattr(self, _GROUPS_OF_TOKENS)
    y_TO = y.view(-1, y.shape[-1])
    offset = offset_start
    for x_slice, lora_b, width in zip(x, lora_b_stacked, output_slices, strict=True):
        expand(x_slice, lora_b[:, 0], groups, y_TO[:, offset : offset + width], add_inputs)
        offset += width


def _add_lora_linear(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: Any,
    lora_b_stacked: Any,
    scale: float,
    output_slices: tuple[int, ...],
    *,
    buffer: Any = None,
    add_inputs: bool = True,
    **kwargs: Any,
) -> None:
    import torch

    groups = getattr(self, _GROUPS_OF_TOKENS)
    if not groups and add_inputs:
        return
    if buffer is None and add_inputs and x.dtype == y.dtype == torch.float32 and _covers(groups, x.shape[0]):
        _add_of_all_rows(y, x, lora_a_stacked, lora_b_stacked, groups[0].slot, scale, output_slices)
        return
    if buffer is None:
        shape = (x.shape[0], lora_b_stacked[0].shape[-1])
        # Single precision between the two products whatever the model's precision, as vLLM has it.
        buffer = [torch.empty(shape, dtype=torch.float32, device=x.device) for _ in output_slices]
    _add_shrink(self, buffer, x, lora_a_stacked, scale)
    _add_expand(self, y, buffer, lora_b_stacked, output_slices, add_inputs=add_inputs)


def _add_of_all_rows(
    y_TO: torch.Tensor,
    x_TI: torch.Tensor,
    lora_a_stacked: Any,
    lora_b_stacked: Any,
    slot: int,
    scale: float,
    output_slices: tuple[int, ...],
) -> None:
    """What `shrink` and `expand` do, for a batch in single precision with one adapter. With few rows each operation
    costs what its call costs, and a step has hundreds of projections."""
    offset = 0
    for a_S1RI, b_S1OR, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
        hidden_TR = x_TI.mm(a_S1RI[slot, 0].t())
        y_TO.narrow(1, offset, width).addmm_(hidden_TR, b_S1OR[slot, 0].t(), alpha=scale)
        offset += width


def _add_lora_embedding(
    self: Any, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
) -> None:
    groups = _changing(getattr(self, _GROUPS_OF_TOKENS), lora_b_stacked)
    expand(x, lora_b_stacked[:, 0], groups, y, add_inputs)


def _add_lora_logits(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: torch.Tensor,
    lora_b_stacked: torch.Tensor,
    scale: float,
    *,
    buffer: torch.Tensor | None = None,
    **kwargs: Any,
) -> None:
    import torch

    groups = _changing(getattr(self, _GROUPS_OF_SAMPLES), lora_a_stacked)
    if not groups:
        return
    x_TI = x.view(-1, x.shape[-1])
    if buffer is None:
        buffer = torch.empty((x_TI.shape[0], lora_b_stacked.shape[-1]), dtype=torch.float32, device=x.device)
    shrink(x_TI, lora_a_stacked[:, 0], groups, buffer, scale)
    expand(buffer, lora_b_stacked[:, 0], groups, y.view(-1, y.shape[-1]), add_inputs=True)


def _changing(groups: tuple[RowGroup, ...], matrix_S: torch.Tensor) -> tuple[RowGroup, ...]:
    """Without the groups whose matrix is zero. Few adapters train the embedding or the head, whose other matrix has the
    vocabulary as a side; looking at the small one is far cheaper than adding zeros to every logit."""
    return tuple(group for group in groups if bool(matrix_S[group.slot].any()))


_OPERATIONS: dict[str, Any] = {
    "add_shrink": _add_shrink,
    "add_expand": _add_expand,
    "add_lora_linear": _add_lora_linear,
    "add_lora_embedding": _add_lora_embedding,
    "add_lora_logits": _add_lora_logits,
}


def code_fingerprint(wrapper_class: Any, operations_module: Any) -> str:
    """A hash of the code that is replaced and of what it calls; blind to comments, docstrings and annotations."""
    called = ("bgmv_shrink", "bgmv_expand_slice", "bgmv_expand")
    replaced = [getattr(wrapper_class, name) for name in _OPERATIONS]
    return _hash_of([*replaced, *(getattr(operations_module, name) for name in called)])


def _hash_of(functions: Iterable[Any]) -> str:
    sources = map(inspect.getsource, functions)
    return hashlib.sha256("\n".join(_bare(source) for source in sources).encode()).hexdigest()[:16]


def _bare(source: str) -> str:
    """Source of a function as its syntax tree prints it, without docstrings and annotations."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
