"""The adapter as a peft folder, in memory: loads with plain peft and plain vLLM."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rollout_server.types import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterFiles:
    """A peft folder."""

    files: tuple[tuple[str, bytes], ...]
    """(name, content) of `ADAPTER_CONFIG` and `ADAPTER_WEIGHTS`."""
    tied: tuple[tuple[str, str], ...]
    """(name, the name its tensor is stored under) of what is stored once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterFormat:
    """How an adapter lies in its files: found out once, since asking peft takes longer than writing them."""

    config: bytes
    names: tuple[tuple[str, str], ...]
    """(name in the file, name of the parameter): peft's standard names, without the adapter's own. A tied tensor has
    several."""

    @classmethod
    def of(cls, peft_model: Any, tensors: Mapping[str, Tensor], *, base_model: str) -> AdapterFormat:
        """The format of a model's adapter.

        Args:
            peft_model: Whose adapter it is.
            tensors: The adapter's whole parameters under their names in `peft_model`, those of modules trained whole
                (`modules_to_save`) among them.
            base_model: What becomes `base_model_name_or_path`.
        """
        names = tuple(stored_names(peft_model, tensors).items())
        return cls(config=_config(peft_model, base_model), names=names)

    def files(self, tensors: Mapping[str, Tensor], *, tied_once: bool = False) -> AdapterFiles:
        """The files of an adapter whose parameters are these, under the names that the format was made with.

        Args:
            tensors: By the names of parameters that `of` was given.
            tied_once: A tied tensor is stored under the first of its names, and `tied` says the others; else under
                each, as plain peft wants it.

        Returns:
            `ADAPTER_CONFIG` and `ADAPTER_WEIGHTS`; the same tensors give the same bytes.
        """
        first: dict[str, str] = {}
        stored, tied = {}, []
        for name, parameter in self.names:
            if first.setdefault(parameter, name) == name:
                stored[name] = tensors[parameter].detach().cpu().contiguous()
            elif tied_once:
                tied.append((name, first[parameter]))
            else:
                stored[name] = stored[first[parameter]].clone()  # the format knows no shared memory
        content = ((ADAPTER_CONFIG, self.config), (ADAPTER_WEIGHTS, _as_safetensors(stored)))
        return AdapterFiles(files=content, tied=tuple(tied))


def _as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Of contiguous tensors on the CPU, as `safetensors.torch.save` would have it, byte for byte, and in a tenth of its
    time: they are copied once, and there is a head already."""
    layout = tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
    head, order = _head_of(layout)
    return b"".join((head, *(tensors[name].flatten().view(torch.uint8).numpy().data for name in order)))


@lru_cache(maxsize=2)
def _head_of(layout: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]) -> tuple[bytes, tuple[str, ...]]:
    """The head of a safetensors file, and the order of its tensors."""
    from safetensors.torch import save

    content = save({name: torch.zeros(shape, dtype=dtype) for name, dtype, shape in layout}, {"format": "pt"})
    end = _LENGTH.size + int(_LENGTH.unpack_from(content)[0])
    entries = json.loads(content[_LENGTH.size : end])
    del entries["__metadata__"]
    return content[:end], tuple(sorted(entries, key=lambda name: entries[name]["data_offsets"]))


def stored_names(peft_model: Any, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """How peft's folder calls the adapter's parameters.

    Args:
        peft_model: The model with its adapter.
        tensors: Of the adapter, by their names in `peft_model`; of tied ones, one name.

    Returns:
        Name in a peft folder → name in `peft_model`; several names of a folder may have one of the model.
    """
    from peft import get_peft_model_state_dict

    own = {id(tensor): name for name, tensor in tensors.items()}
    # Told not to look for changed embeddings: peft would ask the model hub about the base.
    named = _under_all_names(peft_model, tensors)
    state = get_peft_model_state_dict(peft_model, state_dict=named, save_embedding_layers=False)
    return {stored: own[id(tensor)] for stored, tensor in state.items()}


def lost_on_loading(peft_model: Any) -> list[str]:
    """Layers whose adapters peft does not find again in a file that it has written. It renames what it reads as those
    of a checkpoint of the base, and for some models a pattern of an old name matches the new one too.

    Returns:
        Last names of the layers, sorted.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    adapter = {name: parameter for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
    stored = {name: adapter[own].detach() for name, own in stored_names(peft_model, adapter).items()}
    active = peft_model.active_adapter
    read = convert_peft_adapter_state_dict_for_transformers(
        peft_model, peft_model.peft_config[active], dict(stored), adapter_name=active
    )
    lost = (name.partition(".lora_")[0].rsplit(".", 2)[1:] for name in stored.keys() - read.keys())
    return sorted({".".join(names) for names in lost})


def _config(peft_model: Any, base_model: str) -> bytes:
    config = peft_model.peft_config[peft_model.active_adapter]
    before = config.base_model_name_or_path, config.inference_mode
    config.base_model_name_or_path, config.inference_mode = base_model, True
    try:
        with tempfile.TemporaryDirectory() as folder:  # peft knows how to write its configuration to a folder only
            config.save_pretrained(folder)
            return (Path(folder) / ADAPTER_CONFIG).read_bytes()
    finally:
        config.base_model_name_or_path, config.inference_mode = before


def _under_all_names(peft_model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tied parameters have several names, of which `tensors` has one; peft asks for each."""
    by_parameter: dict[int, Tensor] = {}
    named = dict(tensors)
    for name, parameter in peft_model.named_parameters(remove_duplicate=False):
        if name in tensors:
            by_parameter[id(parameter)] = tensors[name]
        elif id(parameter) in by_parameter:
            named[name] = by_parameter[id(parameter)]
    return named
