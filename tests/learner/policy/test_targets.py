"""Which layers get an adapter: what is said, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.config import LoraSettings
from learner.errors import LearnerError
from learner.policy.policy import Policy
from tests.learner.policy.families import build, load

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def ranks(policy: Policy) -> set[int]:
    return {len(p) for name, p in policy.named_parameters() if "lora_A" in name}


def test_what_matched_is_said_with_its_number(llama: str) -> None:
    policy = load(Path(llama), lora=LoraSettings(r=3, target_modules=("q_proj", "down_proj")))
    assert policy.notes == ("adapters of rank 3 on q_proj (2), down_proj (2)",)


@pytest.mark.parametrize(
    ("family", "targets", "absent", "there"),
    [
        ("phi3", LoraSettings().target_modules, "q_proj, k_proj, v_proj, gate_proj, up_proj", "qkv_proj, gate_up_proj"),
        ("llama", ("q_proj", "qproj"), "qproj", "q_proj, k_proj"),
        ("gpt2", ("q_proj",), "q_proj", "c_attn, c_proj"),
        ("deepseek_v3", LoraSettings().target_modules, "q_proj, k_proj, v_proj", "q_a_proj, q_b_proj"),
    ],
)
def test_a_name_that_matches_nothing_is_refused(
    family: str, targets: tuple[str, ...], absent: str, there: str, tmp_path: Path
) -> None:
    build(family, tmp_path)
    with pytest.raises(LearnerError, match=rf"names {absent}: .* no layer; .*{there}.* or all-linear"):
        load(tmp_path, lora=LoraSettings(target_modules=targets))


def test_all_linear_is_all_but_the_head(tmp_path: Path) -> None:
    build("phi3", tmp_path)
    (matched, _) = load(tmp_path).notes
    assert matched == "adapters of rank 4 on o_proj (2), qkv_proj (2), gate_up_proj (2), down_proj (2)"


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_next", "mixtral"])
def test_fused_experts_are_left_out_by_default(family: str, tmp_path: Path) -> None:
    build(family, tmp_path)
    policy = load(tmp_path, lora=LoraSettings(r=16))
    assert "no adapters on down_proj, gate_proj, up_proj: these are experts" in policy.notes[1]
    assert ranks(policy) == {16}


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "qwen3_next"])
def test_fused_experts_are_refused_by_name(family: str, tmp_path: Path) -> None:
    build(family, tmp_path)
    with pytest.raises(LearnerError, match=r"gate_proj, up_proj: .*fused experts, to which adapters are not served"):
        load(tmp_path, lora=LoraSettings(target_modules=(*ATTENTION, "gate_proj", "up_proj")))


def test_what_peft_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    build("falcon_h1", tmp_path)
    with pytest.raises(LearnerError, match=r"no adapter for this FalconH1ForCausalLM: .*'out_proj' is incompatible"):
        load(tmp_path, lora=LoraSettings(target_modules=("q_proj", "out_proj")))
