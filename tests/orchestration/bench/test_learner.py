"""`rlvr bench learner`: its floor is counted right, and its contenders do the same work."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from transformers import Gemma4TextConfig

from learner.config import LoraSettings
from learner.tree.prefix_tree import TokenSequence
from orchestration.bench.learner_floor import attention_width, multiply_adds
from tests.models import VOCABULARY, random_model


def test_the_floor_of_two_completions_by_hand() -> None:
    model = random_model("llama")  # 2 layers, hidden 32, inner 48, 4 heads of 8, 2 key-value heads
    batch = [TokenSequence(prompt_token_ids=(1, 2), completion_token_ids=(3, last)) for last in (4, 5)]
    # Distinct inputs: 1, 2, 3; seen pairs: 1 + 2 + 3; positions that predict: at 2 (token 3) and at 3 (tokens 4, 5).
    tokens, pairs, predicting = 3, 6, 2
    base = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    adapter = 2 * LoraSettings().r * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    attention = 2 * 2 * pairs * 4 * 8
    head = predicting * 32 * VOCABULARY
    forward, backward = tokens * (base + adapter) + attention, tokens * (base + 2 * adapter) + 2 * attention
    assert multiply_adds(model, batch, gradient_checkpointing=False) == forward + backward + 2 * head
    assert multiply_adds(model, batch, gradient_checkpointing=True) == 2 * forward + backward + 2 * head


def test_the_floor_knows_heads_of_two_sizes() -> None:
    kinds = ["sliding_attention", "full_attention"]
    sizes = {"head_dim": 8, "global_head_dim": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
    assert attention_width(Gemma4TextConfig(**sizes, layer_types=kinds)) == 4 * 8 + 4 * 16


@pytest.mark.slow
def test_the_contenders_agree() -> None:
    sizes = ["--shots", "1", "--num-prompts", "2", "--num-generations", "4", "--completion-length", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "bench", "learner", "--model", "tiny", *sizes, "--json"],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # standard output holds that alone
    figures, attention = result["figures"], result["attention"]
    # What takes no second is not said; the first waits for the imports of all.
    assert re.search(r"^rlvr: loading and warming up matmul \d+%, [\d.]+ s$", done.stderr, re.MULTILINE), done.stderr
    assert figures["distinct_tokens"] < figures["total_tokens"]
    for theirs in ("trl", "trl_async"):
        assert figures["tree_on_grad_norm"] == pytest.approx(figures[f"{theirs}_grad_norm"], rel=1e-3)
    assert attention["tree_on"] == "blocks"
    assert "in place of flash attention 3" in attention["trl_async"]
    for name in ("ratio_to_trl", "ratio_to_trl_async", "memory_ratio_to_trl", "tree_speedup", "share_of_floor"):
        assert figures[name] > 0
