"""How many multiply-adds one optimizer step needs at the least, counted from the model's own configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learner.config import LoraSettings
from learner.tree.prefix_tree import PrefixTree, TokenSequence, build_tree


def multiply_adds(model_path: Path, sequences: Sequence[TokenSequence], *, gradient_checkpointing: bool) -> float:
    """Multiply-adds of one step over the tree's distinct tokens, with a frozen base and LoRA on its linear layers.

    Forward: every linear layer, the adapter, and the query-key pairs that attention sees, twice (scores, and values).
    Backward: towards the input of every frozen layer as much again; of the adapter twice its forward (input and
    weights); of attention twice its forward. Under gradient checkpointing one more forward of the layers. The output
    head, over the positions that predict a completion token: its logits and their gradient towards the hidden state.

    Args:
        model_path: A folder whose configuration gives the shapes; no weights are read.
        sequences: The batch.
        gradient_checkpointing: Whether the layers' forward pass is done a second time.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(model_path, local_files_only=True)
    with torch.device("meta"):  # shapes only
        model = transformers.AutoModelForCausalLM.from_config(config)
    lora = LoraSettings()
    base = adapter = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in lora.target_modules:
            base += module.in_features * module.out_features
            adapter += lora.r * (module.in_features + module.out_features)
    tree = build_tree(sequences)
    text = config.get_text_config()
    attention = 2 * num_pairs(tree) * attention_width(text)
    forward = tree.num_tokens * (base + adapter) + attention
    backward = tree.num_tokens * (base + 2 * adapter) + 2 * attention
    head = 2 * len(np.unique(tree.predictor_R)) * text.hidden_size * text.vocab_size
    return float(forward * (2 if gradient_checkpointing else 1) + backward + head)


def attention_width(text: Any) -> int:
    """Numbers of all heads of all layers; the heads of Gemma 4 are of two sizes."""
    layers = [text] * text.num_hidden_layers
    if getattr(text, "per_layer_config", None) is not None:
        layers = [text.per_layer_config[index] for index in range(text.num_hidden_layers)]
    return sum(
        layer.num_attention_heads * (getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads)
        for layer in layers
    )


def num_pairs(tree: PrefixTree) -> int:
    """Query-key pairs that are seen: every token sees its path, itself included."""
    return int((tree.position_ids_N + 1).sum())
