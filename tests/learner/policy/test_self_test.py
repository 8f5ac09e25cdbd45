"""What the policy finds out about its model at start, and what it leaves as it was."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import learner.policy.self_test as self_test
from learner.config import LoraSettings
from learner.errors import LearnerError
from learner.policy.policy import tree_inputs, tree_logprobs
from learner.tree.prefix_tree import build_tree
from tests.learner.policy.families import CPU, build, load, some_sequences

EVERY_LAYER = LoraSettings(target_modules=("all-linear",), lora_dropout=0.5)


def why_no_trees(folder: Path) -> str:
    (note,) = [note for note in load(folder).notes if note.startswith("share_prefixes=false")]
    return note


@pytest.mark.parametrize(("family", "layer"), [("qwen3_next", "Qwen3NextGatedDeltaNet"), ("bloom", "BloomAttention")])
def test_layers_that_ignore_the_tree_are_found_by_their_numbers(
    family: str, layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "other_layers", lambda base: None)  # as if the configuration named none
    build(family, tmp_path)
    assert f"on a prefix tree {layer}" in why_no_trees(tmp_path)
    assert "nats, and its gradient by" in why_no_trees(tmp_path)


def test_layers_of_another_kind_are_named(tmp_path: Path) -> None:
    build("lfm2", tmp_path)
    assert "layers of the kind conv (Lfm2ShortConv)" in why_no_trees(tmp_path)


def test_a_window_that_is_longer_than_the_test_is_missed_all_the_same(tmp_path: Path) -> None:
    build("phimoe", tmp_path, sliding_window=200)
    assert "has the sliding windows [200, 200], but asks the attention for [None, None]" in why_no_trees(tmp_path)


def test_what_depth_hides_is_seen_where_it_enters_a_layer(tmp_path: Path) -> None:
    build("bart, deep", tmp_path)
    # Log-probs and gradients differ by less than their tolerances.
    assert re.search(r"by \d\.\de-05 nats, .* what enters its layers by up to 4\d %", why_no_trees(tmp_path))


def test_positions_that_rounding_hides_are_not_taken_for_right(llama: str, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    flat = {
        name: 1e-3 * one if "q_proj" in name else one for name, one in weights.items()
    }  # every token sees all alike
    save_file(flat, tmp_path / "model.safetensors", {"format": "pt"})
    policy = load(tmp_path, dtype="bfloat16")
    assert policy.own_attention
    assert "cannot be told from a wrong one: where positions are wrong by one" in " ".join(policy.notes)
    assert not load(tmp_path).own_attention  # in float32 they are seen


def test_a_model_without_positions_takes_trees(tmp_path: Path) -> None:
    build("smollm3, no positions", tmp_path)
    assert not load(tmp_path).own_attention


def test_every_layer_must_call_the_attention() -> None:
    assert self_test._wrong_calls([], [None, None]) == "calls the attention 0 times in 2 layers"
    assert self_test._wrong_calls([None], [None, None]) == "calls the attention 1 times in 2 layers"
    assert self_test._wrong_calls([None, None, 6, 6], [None, 6]) is None


def test_it_leaves_modes_gradients_and_random_numbers_alone(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(Path(llama), lora=EVERY_LAYER)
    assert policy.training
    assert all(module.training for module in policy.modules() if isinstance(module, nn.Dropout))
    assert all(parameter.grad is None for parameter in policy.parameters())
    after = torch.get_rng_state()
    monkeypatch.setattr("learner.policy.policy.settle", lambda *arguments: None)
    load(Path(llama), lora=EVERY_LAYER)
    assert torch.equal(after, torch.get_rng_state())


def test_the_models_own_attention_may_be_asked_for(llama: str) -> None:
    policy = load(Path(llama), attention="own")
    assert policy.own_attention
    assert "share_prefixes=false: attention=own" in policy.notes


@pytest.mark.parametrize("own", [False, True])
def test_inputs_of_the_other_kind_are_refused(llama: str, own: bool) -> None:
    policy = load(Path(llama), attention="own" if own else "auto")
    inputs = tree_inputs(build_tree(some_sequences(), share=False), CPU, "auto" if own else "own")
    with pytest.raises(ValueError, match="own_attention"):
        tree_logprobs(policy, inputs, temperature=1.0)


def test_rounding_in_bfloat16_is_let_through(llama: str) -> None:
    assert not load(Path(llama), dtype="bfloat16").own_attention


def test_running_out_of_memory_says_nothing_about_the_model(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(self_test, "tree_logprobs", full)
    with pytest.raises(torch.OutOfMemoryError):
        load(Path(llama))


def test_a_model_whose_own_forward_fails_is_refused_in_a_sentence(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no such kernel\nat a place that nobody knows")

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", fail)
    with pytest.raises(
        LearnerError, match=r"^the forward pass of LlamaForCausalLM fails: RuntimeError: no such kernel$"
    ):
        load(Path(llama))


def test_an_adapter_that_the_model_goes_around_is_refused(tmp_path: Path) -> None:
    build("jamba", tmp_path)
    with pytest.raises(LearnerError, match="no gradient reaches the adapters on dt_proj: JambaForCausalLM"):
        load(tmp_path, lora=LoraSettings(target_modules=("q_proj", "dt_proj")))
