"""Embeddings and output head trained whole beside the adapter: gradients, tying, files, and an update of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.testing import assert_close

from learner.config import LearnerConfig, LoraSettings
from learner.policy.adapter_files import AdapterFormat
from learner.policy.policy import Policy, load_policy, tree_inputs, tree_logprobs
from learner.tree.prefix_tree import build_tree
from learner.worker import LearnerRank
from tests.learner.helpers import make_rank, random_groups, run_ranks
from tests.learner.policy.test_policy import CPU, assert_same, packed, plain, sequences, trained
from tests.models import random_model

BOTH = ("embed_tokens", "lm_head")
CHOICES = (("embed_tokens",), ("lm_head",), BOTH)


def config(modules: tuple[str, ...], **settings: Any) -> LearnerConfig:
    return LearnerConfig(lora=LoraSettings(r=4, modules_to_save=modules), **settings)


def moved_policy(model_path: str, modules: tuple[str, ...], **settings: Any) -> Policy:
    """A policy whose adapter and whole modules differ from the base."""
    policy = load_policy(model_path, config(modules, **settings), device=CPU, seed=0)
    torch.manual_seed(1)
    for name, parameter in trained(policy):
        if "lora_A" not in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return policy


def whole(policy: Policy) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in trained(policy) if "lora_" not in name}


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> str:
    """llama has a head of its own, qwen2 one that is tied to the embeddings."""
    return str(random_model(request.param))


def weights(files: Sequence[tuple[str, bytes]]) -> dict[str, torch.Tensor]:
    return load(dict(files)["adapter_model.safetensors"])


def is_tied(model_path: str) -> bool:
    return bool(json.loads((Path(model_path) / "config.json").read_text())["tie_word_embeddings"])


@pytest.mark.parametrize("modules", CHOICES)
def test_the_gradient_is_that_of_plain_transformers(model: str, modules: tuple[str, ...]) -> None:
    policy = moved_policy(model, modules)
    assert_same(packed(policy, sequences(), share=True), plain(policy, sequences()))


def test_scaled_embeddings() -> None:
    policy = moved_policy(str(random_model("gemma3")), BOTH)
    assert_same(packed(policy, sequences(), share=True), plain(policy, sequences()))


@pytest.mark.parametrize("modules", CHOICES)
def test_tied_embeddings_are_one_tensor_and_have_the_gradient_of_both_uses(
    model: str, modules: tuple[str, ...]
) -> None:
    policy = moved_policy(model, modules)
    assert len(whole(policy)) == (1 if is_tied(model) else len(modules))
    if is_tied(model):
        base = policy.model.get_base_model()
        assert base.get_input_embeddings().weight is base.get_output_embeddings().weight
        # An update of a row that no text uses can only come from the head; one of a used row has the embedding's too.
        (parameter,) = whole(policy).values()
        inputs = tree_inputs(build_tree(sequences()), CPU)
        (tree_logprobs(policy, inputs, temperature=1.0)[0] * inputs.mask_BT).sum().backward()
        assert parameter.grad is not None
        assert float(parameter.grad.norm(dim=1).min()) > 0


def test_without_the_adapter_it_is_the_base(model: str) -> None:
    inputs = tree_inputs(build_tree(sequences()), CPU)
    policy, fresh = moved_policy(model, BOTH), load_policy(model, LearnerConfig(), device=CPU, seed=0)
    with torch.no_grad():
        off = tree_logprobs(policy, inputs, temperature=1.0, use_adapter=False)[0]
        on = tree_logprobs(policy, inputs, temperature=1.0)[0]
        base = tree_logprobs(fresh, inputs, temperature=1.0)[0]
    assert_close(off, base)
    assert float((on - base).abs().max()) > 1e-2
    assert whole(policy)


def test_a_bfloat16_base_beside_float32_modules(model: str) -> None:
    policy = moved_policy(model, BOTH, dtype="bfloat16", gradient_checkpointing=True)
    packed(policy, sequences(), share=True)
    for name, parameter in policy.named_parameters():
        trained = "lora_" in name or "modules_to_save" in name
        assert parameter.requires_grad == trained, name
        assert parameter.dtype == (torch.float32 if trained else torch.bfloat16), name


@pytest.mark.parametrize("modules", CHOICES)
def test_the_files_load_with_plain_peft(model: str, modules: tuple[str, ...], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = moved_policy(model, modules)
    tensors = {name.removeprefix("model."): parameter for name, parameter in trained(policy)}
    found = AdapterFormat.of(policy.model, tensors, base_model=model)
    files, sent = found.files(tensors), found.files(tensors, tied_once=True)
    assert weights(files.files).keys() == weights(sent.files).keys() | {name for name, _ in sent.tied}
    assert len(sent.tied) == len(weights(files.files)) - len(weights(sent.files)) == int(is_tied(model))
    for name, stored in sent.tied:
        assert torch.equal(weights(files.files)[name], weights(sent.files)[stored])
    for name, content in files.files:
        (tmp_path / name).write_bytes(content)
    assert dict(files.files)["adapter_model.safetensors"] == save(weights(files.files), {"format": "pt"})
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), tmp_path)
    token_ids = torch.tensor([sequences()[0].token_ids])
    policy.model.get_base_model().config._attn_implementation = "sdpa"
    with torch.no_grad():
        assert_close(again(token_ids).logits, policy.model(input_ids=token_ids).logits)


def update_and_export(rank: LearnerRank) -> dict[str, Any]:
    """One update, exported before and after; what of the files moved, and the probe."""
    before = rank.export_adapter()
    rank.update(random_groups(0), max_staleness=0)
    after = rank.export_adapter()
    probe = rank.probe_adapter()  # by all ranks, as each holds a part of the parameters
    if not after.files:
        return {}
    old, new = (weights(payload.files) for payload in (before, after))
    return {
        "moved": {name: float((new[name] - old[name]).abs().max()) for name in new if "lora_" not in name},
        "tensors": {name: tensor.tolist() for name, tensor in new.items() if "lora_" not in name},
        "probe": probe.training_logprobs,
    }


def updated(model_path: str, settings: LearnerConfig) -> dict[str, Any]:
    rank = make_rank(model_path, settings)
    rank.start()
    try:
        return update_and_export(rank)
    finally:
        rank.shutdown()


def test_an_update_moves_them_and_they_are_exported_once(model: str) -> None:
    answer = updated(model, config(BOTH, learning_rate=1e-3))
    names = {"base_model.model.model.embed_tokens.weight"}
    assert answer["moved"].keys() == (names if is_tied(model) else names | {"base_model.model.lm_head.weight"})
    assert all(0 < moved < 2e-3 for moved in answer["moved"].values())


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_are_one(zero_stage: int) -> None:
    model = str(random_model("qwen2"))
    alone = updated(model, config(BOTH, learning_rate=1e-3))
    divided = config(BOTH, learning_rate=1e-3, zero_stage=zero_stage, num_ranks=2)
    both = run_ranks(2, model, divided, update_and_export)[0]
    assert both["probe"] == pytest.approx(alone["probe"], abs=1e-4)
    for name, rows in alone["tensors"].items():
        assert_close(torch.tensor(both["tensors"][name]), torch.tensor(rows), rtol=1e-4, atol=1e-5)


def test_beside_a_4_bit_base(model: str) -> None:
    policy = moved_policy(model, BOTH, quantization="nf4")
    packed(policy, sequences(), share=True)
    assert all(parameter.dtype == torch.float32 for parameter in whole(policy).values())
