"""The adapter as a peft folder, in memory: loads with plain peft and plain vLLM."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


def adapter_files(
    peft_model: Any, tensors: Mapping[str, Tensor], *, base_model: str, tied_once: bool = False
) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """(name, content) of `adapter_config.json` and `adapter_model.safetensors`.

    `tensors` are the adapter's whole parameters under their names in `peft_model`; the files carry peft's standard
    names, without the adapter's own. `base_model` becomes `base_model_name_or_path`.

    Modules trained whole (`modules_to_save`) are among them. A tied one is stored under each of its names, as plain
    peft wants it; with `tied_once` under the first, and the file's metadata says `tied:NAME` → that one.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    # Told not to look for changed embeddings: peft would ask the model hub about the base.
    named = _under_all_names(peft_model, tensors)
    state = get_peft_model_state_dict(peft_model, state_dict=named, save_embedding_layers=False)
    first: dict[int, str] = {}
    stored, metadata = {}, {"format": "pt"}
    for name, tensor in state.items():
        if first.setdefault(id(tensor), name) == name:
            stored[name] = tensor.detach().cpu().contiguous()
        elif tied_once:
            metadata[f"tied:{name}"] = first[id(tensor)]
        else:
            stored[name] = stored[first[id(tensor)]].clone()  # the format knows no shared memory
    weights = save(stored, metadata)
    config = peft_model.peft_config[peft_model.active_adapter]
    before = config.base_model_name_or_path, config.inference_mode
    config.base_model_name_or_path, config.inference_mode = base_model, True
    try:
        with tempfile.TemporaryDirectory() as folder:  # peft knows how to write its configuration to a folder only
            config.save_pretrained(folder)
            written = (Path(folder) / CONFIG_NAME).read_bytes()
    finally:
        config.base_model_name_or_path, config.inference_mode = before
    return (CONFIG_NAME, written), (WEIGHTS_NAME, weights)


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
