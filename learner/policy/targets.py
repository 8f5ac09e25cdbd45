"""Which of the base's layers get an adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from learner.config import LoraSettings
from learner.errors import LearnerError
from learner.policy.layers import text_part

ALL_LINEAR = ("all-linear",)
_DEFAULT = LoraSettings().target_modules
_MLP = ("gate_proj", "up_proj", "down_proj")
_LAST_NAME = re.compile(r"[^.]*[^.\d][^.]*(?:\.\d+)*$")
"""With the numbers behind it, of a layer in a list: `adapters.0`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterTargets:
    """Names of layers, as peft takes them, and what to say of them at start."""

    names: tuple[str, ...]
    notes: tuple[str, ...]
    exclude: str | None
    """Layers beside the part that reads text, as peft takes them; None: there are none."""


def adapter_targets(base: Any, lora: LoraSettings) -> AdapterTargets:
    """Finds the layers that `lora.target_modules` names; `all-linear` names all but the output projection.

    Of a model that reads images or sounds too, only the part that reads text gets adapters.

    Experts that are one tensor a layer get no adapter: peft would give it twice the rank where two projections are
    fused, and no sampler was shown to serve it. The default names and `all-linear` leave them out; named, they are
    refused.

    Raises:
        LearnerError: A name matches no layer, or means such experts.
    """
    reads, head = text_part(base), base.get_output_embeddings()
    layers = {
        name: module
        for name, module in base.named_modules()
        if _takes_adapter(module) and (module is head or not reads or name.startswith(f"{reads}."))
    }
    linear = _every_linear(base, layers)
    named = linear if lora.target_modules == ALL_LINEAR else lora.target_modules
    experts = _experts(base, named)
    counts = {name: _count(name, layers) for name in named if name not in experts}
    absent = [name for name, count in counts.items() if not count]
    left_out: list[str] = []
    if lora.target_modules in (ALL_LINEAR, _DEFAULT):
        left_out = [*experts, *(name for name in absent if name in _MLP and _has_expert_tensors(base))]
    names = tuple(name for name in named if name not in left_out)
    wrong = {
        "no layer": [name for name in absent if name not in left_out],
        "fused experts, to which adapters are not served": [name for name in experts if name not in left_out],
    }
    for what, refused in wrong.items():
        if refused or not names:
            raise LearnerError(
                f"learner.lora.target_modules names {', '.join(refused or named)}: in this {type(base).__name__} that "
                f"is {what}; its linear layers are {', '.join(linear)}: name some of them, or all-linear"
            )
    notes = [f"adapters of rank {lora.r} on " + ", ".join(f"{name} ({counts[name]})" for name in names)]
    if left_out:
        notes.append(f"no adapters on {', '.join(sorted(left_out))}: these are experts, fused into one tensor a layer")
    exclude = rf"(?!{re.escape(reads)}\.|lm_head$).*" if reads else None
    return AdapterTargets(names=names, notes=tuple(notes), exclude=exclude)


def _takes_adapter(module: nn.Module) -> bool:
    """A linear layer may give more than the product, as a router, or less, as one of groups."""
    from transformers.pytorch_utils import Conv1D

    own = re.search("Router|Grouped", type(module).__name__)
    return isinstance(module, nn.Linear | nn.Embedding | Conv1D) and own is None


def _every_linear(base: Any, layers: dict[str, nn.Module]) -> tuple[str, ...]:
    """Last names of the linear layers but the output projection, in the order of the model. Two of a Mamba mixer
    are none: kernels take their weights and never call them; nor is a router's classifier. Nor are those of an indexer,
    which only chooses what is attended to, so that no gradient comes back."""
    head = base.get_output_embeddings()
    names: dict[str, None] = {}
    for name, module in layers.items():
        parent, _, last = name.rpartition(".")
        holder = base.get_submodule(parent)
        kind = type(holder).__name__
        unreached = (last in ("out_proj", "dt_proj") and hasattr(holder, "D")) or "Indexer" in kind
        unreached = unreached or (last == "classifier" and "Router" in kind)
        if not (module is head or isinstance(module, nn.Embedding) or unreached):
            names[_LAST_NAME.findall(name)[0]] = None
    return tuple(names)


def _count(name: str, layers: dict[str, nn.Module]) -> int:
    """Layers that peft adapts by this name: a whole one, or the end of one."""
    return sum(layer == name or layer.endswith(f".{name}") for layer in layers)


def _has_expert_tensors(base: nn.Module) -> bool:
    return any("expert" in name and parameter.ndim == 3 for name, parameter in base.named_parameters())


def _experts(base: Any, named: Sequence[str]) -> tuple[str, ...]:
    """Those of the names that peft takes for projections of fused experts. It then forgets any other layer of that
    name, such as the shared expert's."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    # With its partner beside it: of two projections that are fused peft refuses one alone.
    config = LoraConfig(target_modules=[*named, "gate_proj", "up_proj", "w1", "w3"])
    convert_peft_config_for_transformers(config, base, None)
    return tuple(name for name in named if name not in config.target_modules)
