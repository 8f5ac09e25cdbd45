"""Adapters that carry whole modules (peft's `modules_to_save`): what of them goes where. Standard library only.

A peft folder keeps such modules' tensors beside the low-rank matrices. vLLM's adapter loader takes the matrices alone;
the whole tensors replace those of the served model. So on a node such an adapter lies as three files: configuration and
matrices, as vLLM wants them, and `full_tensors.safetensors`, under the model's own names (`model.embed_tokens.weight`).

On the way to a node a tied tensor travels once. Plain peft wants it under each of its names: the file's metadata has
an entry `tied:NAME` → name it is stored under, and `standalone` writes it out.

The safetensors format: eight bytes, little-endian, with the length of a JSON header; the header, which gives each
tensor's dtype, shape and place in what follows; the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from rollout_server.errors import AdapterCorruptError
from rollout_server.types import AdapterPayload

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
FULL_TENSORS_NAME = "full_tensors.safetensors"

TIED = "tied:"
"""Begins the metadata keys of names that share another's tensor."""

_PREFIX = "base_model.model."
"""In front of the base model's own names in a peft file."""
_LENGTH = struct.Struct("<Q")

_Tensors = dict[str, tuple[dict[str, Any], memoryview]]
"""Name → its header entry and its bytes."""


def as_served(payload: AdapterPayload) -> AdapterPayload:
    """The files a node needs to serve a peft folder; an adapter without whole modules stays as it is.

    Raises:
        AdapterCorruptError: It names `modules_to_save` but its files do not hold them, or cannot be read.
    """
    files = dict(payload.files)
    if CONFIG_NAME not in files or WEIGHTS_NAME not in files:
        return payload
    try:
        config = json.loads(files[CONFIG_NAME])
        if not config.get("modules_to_save"):
            return payload
        tensors, _ = _parse(files[WEIGHTS_NAME])
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise AdapterCorruptError(f"the files of adapter version {payload.version} cannot be read: {error}") from error
    matrices = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    whole = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if ".lora_" not in name}
    if not whole:
        raise AdapterCorruptError(
            f"adapter version {payload.version} names modules_to_save={config['modules_to_save']}, but {WEIGHTS_NAME} "
            f"holds no tensor of them"
        )
    files[CONFIG_NAME] = json.dumps(config | {"modules_to_save": None}, indent=2).encode()
    files[WEIGHTS_NAME] = _serialise(matrices)
    files[FULL_TENSORS_NAME] = _serialise(whole)
    return AdapterPayload(version=payload.version, files=tuple(files.items()), probe=payload.probe)


def full_tensor_names(payload: AdapterPayload) -> frozenset[str]:
    """Names of the whole tensors among the files of a payload `as_served`."""
    content = dict(payload.files).get(FULL_TENSORS_NAME)
    return frozenset() if content is None else frozenset(_parse(content)[0])


def standalone(files: Sequence[tuple[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
    """The files as plain peft loads them: tied tensors under each of their names."""
    return tuple((name, _with_tied_names(content) if name == WEIGHTS_NAME else content) for name, content in files)


def _with_tied_names(content: bytes) -> bytes:
    if TIED.encode() not in content:
        return content
    tensors, metadata = _parse(content)
    tied = {key.removeprefix(TIED): tensors[name] for key, name in metadata.items() if key.startswith(TIED)}
    return _serialise(tensors | tied)


def _parse(content: bytes) -> tuple[_Tensors, Mapping[str, str]]:
    """Tensors and the file's metadata."""
    (length,) = _LENGTH.unpack_from(content)
    begin = _LENGTH.size + length
    header = json.loads(content[_LENGTH.size : begin])
    metadata = header.pop("__metadata__", {})
    data = memoryview(content)[begin:]
    tensors = {
        name: (entry, data[entry["data_offsets"][0] : entry["data_offsets"][1]]) for name, entry in header.items()
    }
    return tensors, metadata


def _serialise(tensors: Mapping[str, tuple[dict[str, Any], memoryview]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (entry, data) in tensors.items():
        header[name] = entry | {"data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return b"".join([_LENGTH.pack(len(text)), text, *(data for _, data in tensors.values())])
