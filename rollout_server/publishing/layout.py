"""What tensors an adapter's file holds, read off its head: a few kilobytes, whatever the file's size. Pure."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

from rollout_server.errors import AdapterCorruptError
from rollout_server.types import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterPayload

_LENGTH = struct.Struct("<Q")

Layout = tuple[bytes | memoryview | None, Mapping[str, tuple[str, tuple[int, ...]]]]
"""The adapter's configuration, and of each tensor (name →) its dtype and shape. Adapters with equal ones load alike."""


def adapter_layout(payload: AdapterPayload) -> Layout:
    """The layout of a payload's files.

    Raises:
        AdapterCorruptError: The file of weights is no safetensors file, or an end or a piece of it is missing.
    """
    files = dict(payload.files)
    try:
        return files.get(ADAPTER_CONFIG), _tensors(files.get(ADAPTER_WEIGHTS, b""))
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise AdapterCorruptError(
            f"{ADAPTER_WEIGHTS} of adapter version {payload.version} is damaged: {error}"
        ) from error


def _tensors(content: bytes | memoryview) -> dict[str, tuple[str, tuple[int, ...]]]:
    (length,) = _LENGTH.unpack_from(content)
    head = json.loads(bytes(content[_LENGTH.size : _LENGTH.size + length]))
    head.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in head.values()), default=0)
    if (size := len(content) - _LENGTH.size - length) != end:
        raise ValueError(f"it has {size} bytes of tensors instead of {end}")
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in head.items()}
