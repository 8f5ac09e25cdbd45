"""Adapters that carry whole modules (peft's `modules_to_save`): what of them goes where.

A peft folder keeps such modules' tensors beside the low-rank matrices. vLLM's adapter loader takes the matrices alone;
the whole tensors replace those of the served model. So on a node such an adapter lies as three files: configuration and
matrices, as vLLM wants them, and `full_tensors.safetensors`, under the model's own names (`model.embed_tokens.weight`).
"""

from __future__ import annotations

import json
from dataclasses import replace

from rollout_server.errors import AdapterCorruptError
from rollout_server.types import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterPayload

FULL_TENSORS_NAME = "full_tensors.safetensors"

_PREFIX = "base_model.model."
"""In front of the base model's own names in a peft file."""


def as_served(payload: AdapterPayload) -> AdapterPayload:
    """The files a node needs to serve a peft folder; an adapter without whole modules stays as it is.

    Raises:
        AdapterCorruptError: It names `modules_to_save` but its files do not hold them, or cannot be read.
    """
    from safetensors import SafetensorError

    files = dict(payload.files)
    if ADAPTER_CONFIG not in files or ADAPTER_WEIGHTS not in files:
        return payload
    try:
        config = json.loads(bytes(files[ADAPTER_CONFIG]))
        if not config.get("modules_to_save"):
            return payload
        from safetensors.torch import load, save  # loads torch, which takes seconds and is not needed otherwise

        tensors = load(bytes(files[ADAPTER_WEIGHTS]))
    except (ValueError, AttributeError, SafetensorError) as error:
        raise AdapterCorruptError(f"the files of adapter version {payload.version} cannot be read: {error}") from error
    matrices = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    whole = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if ".lora_" not in name}
    if not whole:
        raise AdapterCorruptError(
            f"adapter version {payload.version} names modules_to_save={config['modules_to_save']}, but "
            f"{ADAPTER_WEIGHTS} holds no tensor of them"
        )
    files[ADAPTER_CONFIG] = json.dumps(config | {"modules_to_save": None}, indent=2).encode()
    files[ADAPTER_WEIGHTS] = save(matrices, {"format": "pt"})
    files[FULL_TENSORS_NAME] = save(whole, {"format": "pt"})
    return replace(payload, files=tuple(files.items()), tied=())


def full_tensor_names(payload: AdapterPayload) -> frozenset[str]:
    """Names of the whole tensors among the files of a payload `as_served`."""
    from safetensors import deserialize

    content = dict(payload.files).get(FULL_TENSORS_NAME)
    if content is None:
        return frozenset()
    return frozenset(name for name, _ in deserialize(bytes(content)))  # type: ignore[no-untyped-call]
