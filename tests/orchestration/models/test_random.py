"""Random weights at known shapes: the figures, and one small model made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestration.errors import DataError
from orchestration.models.random_shapes import RANDOM_SHAPES, RandomShape, random_names, random_shape
from orchestration.models.random_weights import make_random_model
from orchestration.models.resolve import check_model_folder, resolve_model
from orchestration.models.tokenizer import load_tokenizer
from orchestration.storage.cache import ignore_progress

SMALL = RandomShape(
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    vocab_size=500,
    tied_embeddings=False,
)


def test_sizes_are_those_of_the_models() -> None:
    # as the models' cards give them: 0.49, 1.54 and 7.61 billion
    assert [shape.num_parameters for shape in RANDOM_SHAPES.values()] == [494_032_768, 1_543_714_304, 7_615_616_512]
    assert random_shape("random:qwen2.5-0.5b") is RANDOM_SHAPES["qwen2.5-0.5b"]
    assert random_shape("qwen2.5-0.5b") is None


def test_an_unknown_shape_is_named_with_those_there_are() -> None:
    with pytest.raises(DataError, match=r"did you mean 'random:qwen2\.5-7b'.*" + random_names()[0]):
        resolve_model("random:qwen2.5-8b")


def test_a_model_loads_and_is_the_same_each_time(tmp_path: Path) -> None:
    import torch
    import transformers

    tiny = resolve_model("tiny")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        make_random_model(SMALL, tiny, folder, ignore_progress)
    check_model_folder(folders[0])
    names = sorted(file.name for file in folders[0].iterdir())
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names)
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32)
    weights = dict(model.named_parameters())
    assert sum(weight.numel() for weight in weights.values()) == SMALL.num_parameters
    head, embeddings = weights["lm_head.weight"], weights["model.embed_tokens.weight"]
    assert not torch.equal(head, embeddings)
    assert torch.linalg.matrix_rank(head) == SMALL.hidden_size
    assert weights["model.norm.weight"].eq(1).all()
    assert 0.019 < float(embeddings.detach().std()) < 0.021


def test_the_tokenizer_is_filled_up(tmp_path: Path) -> None:
    tiny = resolve_model("tiny")
    make_random_model(SMALL, tiny, tmp_path, ignore_progress)
    filled, own = load_tokenizer(tmp_path), load_tokenizer(tiny)
    text = "How much is 12 + 7?"
    assert filled.encode(text) == own.encode(text)
    assert len(filled) == SMALL.vocab_size
    assert filled.decode([len(own), 499]) == f"<|unused-{len(own)}|><|unused-499|>"
    assert filled.eos_token_id == json.loads((tmp_path / "config.json").read_text())["eos_token_id"]


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not fit a vocabulary of 100"):
        make_random_model(
            RandomShape(**{name: getattr(SMALL, name) for name in RandomShape.__slots__} | {"vocab_size": 100}),
            resolve_model("tiny"),
            tmp_path,
            ignore_progress,
        )
