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
    peft_model: Any, tensors: Mapping[str, Tensor], *, base_model: str
) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """(name, content) of `adapter_config.json` and `adapter_model.safetensors`.

    `tensors` are the adapter's whole parameters under their names in `peft_model`; the files carry peft's standard
    names, without the adapter's own. `base_model` becomes `base_model_name_or_path`.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    # Told not to look for changed embeddings: peft would ask the model hub about the base.
    state = get_peft_model_state_dict(peft_model, state_dict=dict(tensors), save_embedding_layers=False)
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, {"format": "pt"})
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
