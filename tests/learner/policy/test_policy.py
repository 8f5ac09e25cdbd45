"""Log-probabilities and gradients over the packed tree against plain transformers, one sequence at a time."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from learner.config import LearnerConfig, LoraSettings
from learner.errors import LearnerError
from learner.policy.logprob_head import LOGITS_PER_CHUNK, token_logprobs
from learner.policy.lora_linear import fused_lora_layer
from learner.policy.policy import Policy, load_policy, tree_inputs, tree_logprobs
from learner.tree.attention import ATTENTION_NAME
from learner.tree.blocks import BlockAttention
from learner.tree.prefix_tree import TokenSequence, build_tree
from tests.learner.helpers import random_groups
from tests.learner.tree.varlen_reference import by_levels

CPU = torch.device("cpu")
TEMPERATURE = 0.7


def trained(policy: Policy) -> list[tuple[str, torch.nn.Parameter]]:
    """Names and parameters of the adapter, in the model's order."""
    return [(name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad]


def make_policy(model_path: str, **settings: object) -> Policy:
    """A policy whose adapter does something: a fresh one has B = 0."""
    policy = load_policy(model_path, LearnerConfig(**settings), device=CPU, seed=0)
    torch.manual_seed(1)
    for name, parameter in trained(policy):
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return policy


def sequences() -> list[TokenSequence]:
    return [
        TokenSequence(prompt_token_ids=group.prompt_token_ids, completion_token_ids=tuple(member.completion.token_ids))
        for group in random_groups(0)
        for member in group.members
    ]


Outcome = tuple[list[Tensor], dict[str, Tensor]]
"""Log-probs of each sequence, and gradients by name."""


def gradients(policy: Policy) -> dict[str, Tensor]:
    """Of every trained parameter."""
    found = {name: parameter.grad for name, parameter in trained(policy) if parameter.grad is not None}
    policy.zero_grad()
    return found


def plain(policy: Policy, batch: Sequence[TokenSequence]) -> Outcome:
    """Log-probs of each sequence and the gradient of their weighted sum, through transformers' own sdpa attention."""
    config = policy.model.get_base_model().config
    config._attn_implementation = "sdpa"
    found = []
    for index, sequence in enumerate(batch):
        ids = torch.tensor([sequence.token_ids])
        logits = policy.model(input_ids=ids, use_cache=False).logits[0, :-1] / TEMPERATURE
        every = logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        logprobs = every[len(sequence.prompt_token_ids) - 1 :]
        (logprobs.sum() * (index + 1)).backward()
        found.append(logprobs.detach())
    config._attn_implementation = ATTENTION_NAME
    return found, gradients(policy)


def packed(
    policy: Policy, batch: Sequence[TokenSequence], *, share: bool, first: int = 0, levels: bool = False
) -> Outcome:
    tree = build_tree(batch, share=share, coarse=levels)
    inputs = tree_inputs(tree, CPU)
    if levels:
        inputs = replace(inputs, attention=by_levels(tree, otherwise=BlockAttention))
    logprobs_BT, _ = tree_logprobs(policy, inputs, temperature=TEMPERATURE)
    weights = torch.arange(first + 1, first + len(batch) + 1).unsqueeze(1)
    (logprobs_BT * inputs.mask_BT * weights).sum().backward()
    return [
        row[: len(sequence.completion_token_ids)].detach() for row, sequence in zip(logprobs_BT, batch, strict=True)
    ], gradients(policy)


def assert_same(found: Outcome, expected: Outcome) -> None:
    for a, b in zip(found[0], expected[0], strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    assert len(expected[1]) > 0
    for name, gradient in expected[1].items():
        assert float((found[1][name] - gradient).norm() / gradient.norm()) < 1e-5, name


@pytest.mark.parametrize("share", [True, False])
def test_a_tree_is_one_at_a_time(tiny_model: str, share: bool) -> None:
    policy = make_policy(tiny_model)
    assert_same(packed(policy, sequences(), share=share), plain(policy, sequences()))


def test_a_tree_is_one_at_a_time_over_a_quantised_base(llama: str) -> None:
    policy = make_policy(llama, quantization="nf4")
    assert_same(packed(policy, sequences(), share=True), plain(policy, sequences()))


def test_the_fused_layer_is_pefts(llama: str) -> None:
    fused = make_policy(llama)
    layers = [module for module in fused.modules() if isinstance(module, fused_lora_layer())]
    assert len(layers) == 14  # seven projections of two layers
    found = packed(fused, sequences(), share=True)
    for layer in layers:
        layer.forward = super(fused_lora_layer(), layer).forward
    assert_same(found, packed(fused, sequences(), share=True))


def test_dropout_is_left_to_peft(llama: str) -> None:
    policy = make_policy(llama, lora=LoraSettings(lora_dropout=0.5))
    torch.manual_seed(0)
    first = packed(policy, sequences(), share=True)[0]
    assert float((first[0] - packed(policy, sequences(), share=True)[0][0]).abs().max()) > 1e-3


def test_attention_by_levels_is_one_at_a_time(tiny_model: str) -> None:
    policy = make_policy(tiny_model)
    assert_same(packed(policy, sequences(), share=True, levels=True), plain(policy, sequences()))


def test_flex_attention_is_one_at_a_time(tiny_model: str) -> None:
    policy = make_policy(tiny_model)
    expected, _ = plain(policy, sequences())
    with torch.no_grad():  # flex has no backward pass on CPUs
        inputs = tree_inputs(build_tree(sequences()), CPU, "flex")
        logprobs_BT, _ = tree_logprobs(policy, inputs, temperature=TEMPERATURE)
    for row, logprobs in zip(logprobs_BT, expected, strict=True):
        assert_close(row[: len(logprobs)], logprobs, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(llama: str) -> None:
    policy = make_policy(llama, gradient_checkpointing=True)
    assert_same(packed(policy, sequences(), share=True), plain(policy, sequences()))


def test_microbatches_change_nothing(llama: str) -> None:
    policy, batch = make_policy(llama), sequences()
    parts = [packed(policy, batch[i : i + 3], share=True, first=i) for i in range(0, len(batch), 3)]
    totals = {name: torch.stack([part[1][name] for part in parts]).sum(0) for name in parts[0][1]}
    found = [row for part in parts for row in part[0]], totals
    assert_same(found, packed(policy, batch, share=True))


def test_without_the_adapter_it_is_the_base(llama: str) -> None:
    policy = make_policy(llama)
    fresh = load_policy(llama, LearnerConfig(), device=CPU, seed=0)  # B = 0
    inputs = tree_inputs(build_tree(sequences()), CPU)
    with torch.no_grad():
        off = tree_logprobs(policy, inputs, temperature=1.0, use_adapter=False)[0]
        on = tree_logprobs(policy, inputs, temperature=1.0)[0]
        base = tree_logprobs(fresh, inputs, temperature=1.0)[0]
    assert_close(off, base)
    assert float((on - base).abs().max()) > 1e-2
    assert len(trained(policy)) > 0  # switching off and on left it trainable


def test_only_the_adapter_trains_and_it_is_float32(llama: str) -> None:
    policy = make_policy(llama, dtype="bfloat16")
    packed(policy, sequences(), share=True)
    for name, parameter in policy.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
        assert parameter.requires_grad or parameter.grad is None


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("trained", [False, True])
def test_the_head_in_chunks(monkeypatch: pytest.MonkeyPatch, trained: bool, softcap: float | None, bonus: bool) -> None:
    monkeypatch.setitem(LOGITS_PER_CHUNK, "cpu", 3 * 11)  # three rows of eleven logits
    torch.manual_seed(0)
    hidden = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=trained)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=trained)
    wanted = [hidden, weight, bias] if trained else [hidden]
    target, upstream, of_entropy = torch.randint(11, (10,)), torch.randn(10), torch.randn(10)
    logprobs, entropy = token_logprobs(
        hidden, weight, bias, target, temperature=0.5, softcap=softcap, entropy_gradient=bonus
    )
    assert entropy.requires_grad == bonus
    gradients = torch.autograd.grad((upstream * logprobs).sum() + (of_entropy * entropy).sum(), wanted)
    logits = hidden @ weight.T + bias
    expected = ((logits if softcap is None else softcap * (logits / softcap).tanh()) / 0.5).log_softmax(-1)
    expected_entropy = -(expected.exp() * expected).sum(-1)
    expected_loss = (upstream * expected[range(10), target]).sum() + bonus * (of_entropy * expected_entropy).sum()
    expected_gradients = torch.autograd.grad(expected_loss, wanted)
    assert_close(logprobs.double(), expected[range(10), target], rtol=1e-5, atol=1e-5)
    assert_close(entropy.double(), expected_entropy, rtol=1e-5, atol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


def test_a_model_that_is_there_in_part_is_refused(llama: str, tmp_path: Path) -> None:
    """transformers draws what is missing at random, and warns."""
    folder = shutil.copytree(llama, tmp_path / "part")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if name.endswith("o_proj.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(LearnerError, match=f"lack 1 of the model's weights .{re.escape(lost)}., which transformers"):
        load_policy(str(folder), LearnerConfig(), device=CPU, seed=0)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(LearnerError, match="cannot load a model from"):
        load_policy(str(folder), LearnerConfig(), device=CPU, seed=0)


def test_what_is_not_supported_is_refused(llama: str, tmp_path: Path) -> None:
    with pytest.raises(LearnerError, match="no model folder"):
        load_policy(str(tmp_path), LearnerConfig(), device=CPU, seed=0)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(LearnerError, match=r"Unrecognized configuration class .*AutoModelForCausalLM\.$"):
        load_policy(str(tmp_path), LearnerConfig(), device=CPU, seed=0)
    with pytest.raises(LearnerError, match="output projection"):
        load_policy(llama, LearnerConfig(lora=LoraSettings(target_modules=("lm_head",))), device=CPU, seed=0)
    with pytest.raises(ValueError, match="temperature"):
        tree_logprobs(make_policy(llama), tree_inputs(build_tree(sequences()), CPU), temperature=0.0)
