"""What vLLM's own workers do for us: replace whole tensors of the served model in place, and keep to their cores.

vLLM mixes the class into its worker class (`worker_extension_cls`) in each process that holds a part of the model, and
calls its methods by name there (`collective_rpc`). They answer with a problem as text, or None: an exception would be
logged by every process it passes through.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from safetensors import safe_open
from torch import nn


class FullTensorsExtension:
    """Methods of a vLLM worker; names begin with `rlvr_` so that none of vLLM's is hidden."""

    def rlvr_check_full_tensors(self, path: str) -> str | None:
        """Why the tensors of a safetensors file cannot replace the model's, or None. Changes nothing."""
        try:
            return check_tensors(self.get_model(), path)  # type: ignore[attr-defined]
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def rlvr_load_full_tensors(self, path: str) -> str | None:
        """Copy them into the model. After a problem the model holds a mixture."""
        try:
            load_tensors(self.get_model(), path)  # type: ignore[attr-defined]
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    def rlvr_keep_to_cores(self, cores: tuple[int, ...]) -> None:
        """Run all threads on these cores, and let the kernel say which on which: bound one to one, a thread waits for
        whoever else is on its core while another is idle."""
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), cores)


def check_tensors(model: nn.Module, path: str) -> str | None:
    """The first tensor of the file that has no place in the model, in words."""
    modules = _vocabulary_modules(model)
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # not a dictionary
            if name not in modules:
                return f"the served model has no vocabulary tensor {name!r}; it has {sorted(modules)}"
            found, wanted = tuple(file.get_slice(name).get_shape()), _shape(modules[name])
            if found != wanted:
                return f"{name!r} has shape {found}, but the served model wants {wanted}"
    return None


@torch.no_grad()
def load_tensors(model: nn.Module, path: str) -> None:
    """Copy the file's tensors into the model's parameters, cast to their dtype.

    The parameter's own loader takes this rank's rows and clears the padding. A tied output head is the same parameter
    under two names: either replaces both.
    """
    modules = _vocabulary_modules(model)
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # not a dictionary
            weight: Any = modules[name].weight
            weight.weight_loader(weight, file.get_tensor(name))
            for user in modules.values():
                if user.weight is weight:
                    _take_over(user)


def _take_over(module: Any) -> None:
    """vLLM's CPU linear layers multiply with a packed copy of the weight: have it made again."""
    method = getattr(module, "quant_method", None)
    if method is not None:
        method.process_weights_after_loading(module)


def _vocabulary_modules(model: nn.Module) -> dict[str, Any]:
    """Embeddings and output heads by their weight's name in the checkpoint, LoRA wrappers taken off the name."""
    return dict(_named_vocabulary(model))


def _named_vocabulary(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules(remove_duplicate=False):
        if hasattr(module, "org_vocab_size") and "weight" in module._parameters:
            yield f"{name}.weight".replace(".base_layer.", "."), module


def _shape(module: Any) -> tuple[int, int]:
    """Of the whole tensor: no padding, all ranks."""
    return module.org_vocab_size, module.embedding_dim
