"""How large a model is, without loading it: what of its shape decides how much memory it takes."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from orchestration.models.random_shapes import RANDOM_SHAPES, RandomShape, random_shape
from orchestration.models.resolve import SMOLLM2, TINY

USUAL_VOCABULARY = 152_000
"""Assumed where a model's own is not known: that of recent families."""
BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """What of a model's shape decides how much memory it takes."""

    num_parameters: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocabulary_size: int = 0
    tied_embeddings: bool = True
    """Embeddings and output head are one tensor."""
    kv_width: int = 0
    """Numbers in a layer's key of one token, over all its heads; the value has as many."""


EMBEDDED_SIZES = {
    SMOLLM2: ModelSize(
        num_parameters=134_515_008,
        num_layers=30,
        hidden_size=576,
        intermediate_size=1536,
        vocabulary_size=49_152,
        kv_width=192,
    ),
    TINY: ModelSize(
        num_parameters=1_000_000,
        num_layers=4,
        hidden_size=128,
        intermediate_size=512,
        vocabulary_size=384,
        kv_width=64,
    ),
}


def model_size(name: str) -> ModelSize | None:
    """A model's size from our lists, its folder, the hub's cache, or a name like `Qwen2.5-0.5B`; None if all fail."""
    if name in EMBEDDED_SIZES:
        return EMBEDDED_SIZES[name]
    if (shape := random_shape(name)) is not None:
        return _size_of_shape(shape)
    for folder in (Path(name).expanduser(), *hub_snapshots(name)):
        if (folder / "config.json").is_file():
            return _size_of_folder(folder)
    plain = name.rpartition("/")[2].lower().removesuffix("-instruct")
    if (shape := RANDOM_SHAPES.get(re.sub("-(coder|math)-", "-", plain))) is not None:
        return _size_of_shape(shape)
    said = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z])", name.rpartition("/")[2].replace("-", " "))
    if said is None:
        return None
    return _usual_shape(int(float(said.group(1)) * {"B": 1e9, "M": 1e6}[said.group(2)]))


def _size_of_shape(shape: RandomShape) -> ModelSize:
    return ModelSize(
        num_parameters=shape.num_parameters,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        vocabulary_size=shape.vocab_size,
        tied_embeddings=shape.tied_embeddings,
        kv_width=shape.num_kv_heads * (shape.hidden_size // shape.num_heads),
    )


def hub_snapshots(name: str) -> list[Path]:
    """Folders of a hub model that were fetched before."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return sorted((hub / f"models--{name.replace('/', '--')}" / "snapshots").glob("*"))


def _usual_shape(num_parameters: int) -> ModelSize:
    """The shape such a model tends to have: 12 x layers x hidden² weights, hidden about 128 x layers, four queries to a
    key."""
    hidden = int((num_parameters * 128 / 12) ** (1 / 3))
    return ModelSize(
        num_parameters=num_parameters,
        num_layers=max(1, hidden // 128),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        vocabulary_size=USUAL_VOCABULARY,
        tied_embeddings=False,
        kv_width=hidden // 4,
    )


def _size_of_folder(folder: Path) -> ModelSize | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # preparing the model says what is wrong with it
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    text = config.get("text_config", config)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    try:
        heads = int(text.get("num_attention_heads", 1))
        head_dim = int(text.get("head_dim") or int(text["hidden_size"]) // heads)
        size = ModelSize(
            num_parameters=int(stored / BYTES_PER_WEIGHT.get(dtype, 2.0)),
            num_layers=int(text["num_hidden_layers"]),
            hidden_size=int(text["hidden_size"]),
            intermediate_size=int(text["intermediate_size"]),
            vocabulary_size=int(text.get("vocab_size", USUAL_VOCABULARY)),
            tied_embeddings=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
            kv_width=head_dim * int(text.get("num_key_value_heads") or heads),
        )
    except (KeyError, TypeError, ValueError):
        return None
    return size if stored else None
