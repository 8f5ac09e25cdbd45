"""Families of models against plain transformers and peft: right on prefix trees, right without, or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.learner.policy.families import (
    FAMILIES,
    README,
    REFUSED,
    ROWS,
    TREES,
    alone,
    build,
    differences,
    examine,
    learned,
    load,
    some_sequences,
)

SHARED = (
    "mistral",
    "gemma4_text, capped",
    "mixtral",
    "phi3",
    "olmo",
    "longcat_flash",
    "granite",
    "hyperclovax, scaled",
)
SHARED += ("gemma3", "qwen3_vl")
"""A window; two windows, two sizes of heads and capped logits; jitter, dropout, a clamp in place, latent attention;
logits divided and multiplied; with towers for images."""
HYBRIDS = ("qwen3_next", "qwen3_5", "lfm2", "falcon_h1", "jamba", "inkling_text")
OTHER_ATTENTION = ("phimoe", "bloom", "gpt_oss", "llama4_text, whole", "deepseek_v32", "deepseek_v4, sliding", "gemma2")
"""A window in the mask alone, ALiBi, sinks, a scale that counts packed tokens beyond the self-test's, an indexer that
chooses what is attended to, products in groups, capped scores."""


def readme_says(family: str) -> str:
    lines = [line for line in README.read_text().splitlines() if line.count("|") == 5]
    (how,) = [
        cells[2].strip() for cells in (line.split("|") for line in lines) if family in cells[1].strip().split("; ")
    ]
    return how


@pytest.mark.parametrize("family", [*SHARED, *HYBRIDS, *OTHER_ATTENTION])
def test_a_family_is_one_at_a_time(family: str) -> None:
    row = examine(family)
    assert row.how == (TREES if family in SHARED else ROWS) == readme_says(family)
    assert row.nats < 1e-4
    assert row.gradient < 1e-4


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("llama, dynamic", "rope_type=dynamic"),
        ("laguna", "peft does not read the adapters on shared_experts.down_proj, .* back from a file"),
        ("bert", "BertLMHeadModel looks ahead: .* changes by .* nats with the tokens behind it"),
        ("modernbert-decoder", "ModernBertDecoderAttention .* nats, and its gradient by .* one sequence a row"),
    ],
)
def test_a_family_is_refused_with_the_reason(family: str, why: str) -> None:
    row = examine(family)
    assert row.how == REFUSED == readme_says(family)
    assert re.search(why, row.why)


def test_every_family_stands_in_the_readme() -> None:
    assert len(FAMILIES) >= 40
    assert {readme_says(family) for family in FAMILIES} == {TREES, ROWS, REFUSED}


@pytest.mark.parametrize("family", ["phi3", "phimoe", "qwen3_next"])
def test_recomputed_activations_bring_no_dropout_back(family: str, tmp_path: Path) -> None:
    build(family, tmp_path)
    policy, sequences = load(tmp_path, gradient_checkpointing=True), some_sequences()
    assert max(differences(learned(policy, sequences), alone(tmp_path, policy, sequences))) < 1e-4


def test_frequencies_are_those_of_each_sequence(tmp_path: Path) -> None:
    build("llama, longrope", tmp_path)  # they change beyond 32 tokens
    policy, sequences = load(tmp_path), some_sequences()
    lengths = [len(sequence.token_ids) for sequence in sequences]
    assert min(lengths) <= 32 < max(lengths)
    assert policy.must_be_alone(max(lengths))
    assert not policy.must_be_alone(32)
    assert "a batch with a sequence of more than 32 tokens is taken one by one" in policy.notes
    assert max(differences(learned(policy, sequences), alone(tmp_path, policy, sequences))) < 1e-4


def test_what_training_would_have_had_is_said(tmp_path: Path) -> None:
    build("phi3", tmp_path)
    assert "switched off: dropout=0.1" in load(tmp_path).notes
