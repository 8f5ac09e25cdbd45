"""The `tiny` model: about a million parameters, made here in seconds, for tests and first tries of the whole stack.

A Qwen2 network with a tokenizer of its own, warm-started on the copy task so that it knows how to answer but often uses
the wrong form: reinforcement learning has something to raise within a few steps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from orchestration.data.arithmetic_templates import TEMPLATES
from orchestration.data.copying import WORDINGS
from orchestration.data.prompts import INSTRUCTION
from orchestration.storage.cache import Progress, cached_folder, settings_hash

_VERSION = 1
"""Raise it when the training code changes: folders made before are then made again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinySettings:
    """How the model is made; models of different settings lie in different cache folders."""

    seed: int = 0
    vocab_size: int = 384
    """256 bytes, three special tokens, and the commonest pieces of our own problems."""
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    """Heads of 32: the smallest size vLLM's CPU attention takes."""
    num_kv_heads: int = 2
    intermediate_size: int = 512
    warm_start_steps: int = 150
    batch_size: int = 32
    learning_rate: float = 3e-3


def tiny_model(settings: TinySettings, root: Path, progress: Progress, *, verify: bool = False) -> Path:
    """The folder of the tiny model with these settings, made now unless it is in the cache `root`.

    Raises:
        DataError: the cache cannot be written.
    """
    key = settings_hash(_VERSION, dataclasses.astuple(settings), INSTRUCTION, WORDINGS, TEMPLATES)

    def build(folder: Path) -> None:
        from orchestration.models.tiny_training import make_tiny_model  # loads torch and transformers

        make_tiny_model(settings, folder, progress)

    folder = cached_folder(root / f"tiny-{key}", build, verify=verify, progress=progress)
    progress(f"tiny is ready in {folder}", 1.0)
    return folder
