"""Makes a model with random weights: real shapes, no training, no hub. Loads torch and transformers.

Sampler and learner read the same files. Nodes that make their own get the same bytes, whatever their processor or GPU:
all weights are cut from one table that numpy draws.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config

from orchestration.errors import DataError
from orchestration.models.random_shapes import RandomShape
from orchestration.storage.cache import Progress

_TABLE_SIZE = 1_048_573
"""A prime: rows of a matrix begin at other places of the table, so that none is another's copy."""
_STRIDE = 611_953
"""How far apart tensors begin in the table."""
_SPREAD = 0.02
_BYTES_PER_FILE = 4 << 30
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_INDEX = "model.safetensors.index.json"


def make_random_model(shape: RandomShape, tokenizer_folder: Path, folder: Path, progress: Progress) -> None:
    """Write configuration, weights in bfloat16 and a tokenizer into `folder`. The same shape gives the same bytes.

    Args:
        shape: What is made.
        tokenizer_folder: A model's folder whose tokenizer it gets, filled up to the shape's vocabulary.
        folder: Written into; it must be there.
        progress: Told what is being done, and the share that is done.

    Raises:
        DataError: The shape's vocabulary does not hold that tokenizer.
    """
    progress("writing the tokenizer", 0.0)
    end_id = _write_tokenizer(tokenizer_folder, folder, shape.vocab_size)
    config = _config(shape, end_id)
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=end_id, pad_token_id=end_id).save_pretrained(folder)
    with torch.device("meta"):  # names and shapes only
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # tied ones stand once
    _write_weights(shapes, folder, progress)


def _config(shape: RandomShape, end_id: int) -> Qwen2Config:
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=shape.tied_embeddings,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=end_id,
        dtype="bfloat16",
    )


def _write_weights(shapes: dict[str, tuple[int, ...]], folder: Path, progress: Progress) -> None:
    table = torch.from_numpy(np.random.default_rng(0).standard_normal(_TABLE_SIZE, dtype=np.float32) * _SPREAD)
    table = table.to(torch.bfloat16)
    files = list(_cut(shapes))
    places: dict[str, str] = {}
    for number, names in enumerate(files):
        name_of_file = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        progress(f"writing random weights, file {number + 1} of {len(files)}", number / len(files))
        tensors = {name: _tensor(name, shapes[name], table, list(shapes).index(name)) for name in names}
        save_file(tensors, folder / name_of_file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, name_of_file)
    total = sum(2 * int(np.prod(size)) for size in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")


def _cut(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Names of tensors, file by file, so that no more than one file is ever held in memory."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        num_bytes = 2 * int(np.prod(shape))
        if names and size + num_bytes > _BYTES_PER_FILE:
            yield names
            names, size = [], 0
        names.append(name)
        size += num_bytes
    yield names


def _tensor(name: str, shape: tuple[int, ...], table: torch.Tensor, number: int) -> torch.Tensor:
    """Norms are 1; everything else is the table from another place on, over and over."""
    if len(shape) == 1 and name.endswith("weight"):
        return torch.ones(shape, dtype=table.dtype)
    turned = table.roll(-(number * _STRIDE) % _TABLE_SIZE)
    size = int(np.prod(shape))
    return turned.repeat(-(-size // _TABLE_SIZE))[:size].reshape(shape)


def _write_tokenizer(source: Path, folder: Path, vocab_size: int) -> int:
    """Copy a byte-pair tokenizer and name the ids it lacks, which no text gives but a sampler may draw; returns the id
    that ends an answer."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    known = {*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    if max(known) >= vocab_size:
        raise DataError(f"a tokenizer of {max(known) + 1} tokens does not fit a vocabulary of {vocab_size}")
    vocabulary |= {f"<|unused-{number}|>": number for number in range(vocab_size) if number not in known}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "Qwen2Tokenizer"  # what a Qwen2 folder is read with anyway, by vLLM too
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return int(ids[settings["eos_token"]])
