"""What of a peft folder with whole modules goes where, read back by safetensors."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load, save

from rollout_server.errors import AdapterCorruptError
from rollout_server.publishing.full_tensors import FULL_TENSORS_NAME, as_served, full_tensor_names
from rollout_server.types import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterPayload

MATRICES = {
    "base_model.model.model.layers.0.q_proj.lora_A.weight": torch.arange(6.0).reshape(2, 3),
    "base_model.model.model.layers.0.q_proj.lora_B.weight": torch.ones(3, 2, dtype=torch.bfloat16),
}
WHOLE = {
    "base_model.model.model.embed_tokens.weight": torch.randn(5, 3),
    "base_model.model.lm_head.weight": torch.randn(5, 3).half(),
}


def payload(tensors: dict[str, torch.Tensor], modules_to_save: list[str] | None) -> AdapterPayload:
    config = json.dumps({"r": 2, "modules_to_save": modules_to_save}).encode()
    return AdapterPayload(
        version=4, files=((ADAPTER_CONFIG, config), (ADAPTER_WEIGHTS, save(tensors, {"format": "pt"})))
    )


def test_whole_tensors_are_parted_from_the_matrices() -> None:
    sent = payload(MATRICES | WHOLE, ["embed_tokens", "lm_head"])
    served = as_served(sent)
    files = dict(served.files)
    assert served.version == 4
    assert json.loads(files[ADAPTER_CONFIG]) == {"r": 2, "modules_to_save": None}
    matrices, whole = load(files[ADAPTER_WEIGHTS]), load(files[FULL_TENSORS_NAME])
    assert matrices.keys() == MATRICES.keys()
    assert whole.keys() == {"model.embed_tokens.weight", "lm_head.weight"} == full_tensor_names(served)
    for found, expected in ((matrices, MATRICES), ({f"base_model.model.{n}": t for n, t in whole.items()}, WHOLE)):
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    assert as_served(sent).checksum() == served.checksum() != sent.checksum()


def test_an_adapter_of_matrices_stays_as_it_is() -> None:
    for modules_to_save in (None, []):
        sent = payload(MATRICES, modules_to_save)
        assert as_served(sent) is sent
        assert full_tensor_names(sent) == frozenset()


def test_what_is_promised_must_be_there() -> None:
    with pytest.raises(AdapterCorruptError, match=r"version 4 names modules_to_save=\['lm_head'\]"):
        as_served(payload(MATRICES, ["lm_head"]))


@pytest.mark.parametrize("weights", [b"", b"short", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]"])
def test_broken_files_are_named(weights: bytes) -> None:
    config = dict(payload(MATRICES, ["lm_head"]).files)[ADAPTER_CONFIG]
    with pytest.raises(AdapterCorruptError, match="version 4 cannot be read"):
        as_served(AdapterPayload(version=4, files=((ADAPTER_CONFIG, config), (ADAPTER_WEIGHTS, weights))))
