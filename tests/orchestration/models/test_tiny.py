"""The tiny model: its tokenizer round-trips, it is deterministic, and it has something to learn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestration.data.prompts import PromptBuilder
from orchestration.data.tasks.copying import Copy
from orchestration.models.resolve import resolve_model
from orchestration.models.tiny import tiny_model
from orchestration.models.tiny_settings import TinySettings
from orchestration.storage.cache import cache_root

SHORT = dataclasses.replace(TinySettings(), num_layers=1, intermediate_size=64, warm_start_steps=2)


def test_the_tokenizer_survives_saving_and_prompts_are_short(tmp_path: Path) -> None:
    folder = tiny_model(SHORT, tmp_path, lambda message, share: None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == SHORT.vocab_size
    text = "#### The final answer is 47<|end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) <= 9
    builder = PromptBuilder(tokenizer, layout=Copy().layout())
    assert builder.stop_token_ids == (tokenizer.eos_token_id,)
    prompts = builder.build_all(Copy().load().train).prompts
    assert max(len(built.prompt.token_ids) for built in prompts) <= 40
    for built in prompts:
        assert list(built.prompt.token_ids) == tokenizer.encode(built.text, add_special_tokens=False)


def test_the_same_settings_give_the_same_weights_and_leave_torchs_state_alone(tmp_path: Path) -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    weights = [
        (tiny_model(SHORT, tmp_path / name, lambda message, share: None) / "model.safetensors").read_bytes()
        for name in ("first", "second")
    ]
    assert weights[0] == weights[1]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


def test_other_settings_lie_in_another_folder(tmp_path: Path) -> None:
    first = tiny_model(SHORT, tmp_path, lambda message, share: None)
    second = tiny_model(dataclasses.replace(SHORT, seed=1), tmp_path, lambda message, share: None)
    assert first != second


@pytest.mark.slow
def test_the_warm_start_leaves_room_to_learn() -> None:
    """Greedy answers are in the required form for some wordings only, and nearly always name the right number."""
    folder = resolve_model("tiny")
    assert folder.parent == cache_root() / "models"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert 0.8e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.5e6
    problems = Copy().load()
    builder = PromptBuilder(tokenizer, layout=Copy().layout())
    texts = [built.text for built in builder.build_all(problems.eval).prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    with torch.no_grad():
        output = model.generate(**batch, max_new_tokens=16, do_sample=False)
    answers = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    pairs = list(zip(answers, problems.eval, strict=True))
    strict = sum(answer == problem.solution for answer, problem in pairs)
    named = sum(answer.split()[-1:] == [problem.reference["final_answer"]] for answer, problem in pairs)
    assert 0.1 <= strict / len(problems.eval) <= 0.6
    assert named / len(problems.eval) >= 0.7
