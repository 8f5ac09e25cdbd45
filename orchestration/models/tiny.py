"""The `tiny` model: about a million parameters, made here in seconds, for tests and first tries of the whole stack.

A Qwen2 network with a tokenizer of its own, warm-started on the copy task so that it knows how to answer but often uses
the wrong form: reinforcement learning has something to raise within a few steps.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from orchestration.data.problems import INSTRUCTION
from orchestration.data.tasks.arithmetic_templates import TEMPLATES
from orchestration.data.tasks.copying import WORDINGS
from orchestration.models.tiny_settings import TinySettings
from orchestration.storage.cache import Progress, cached_folder, settings_hash

_VERSION = 1
"""Raise it when the training code changes: folders made before are then made again."""


def tiny_model(settings: TinySettings, root: Path, progress: Progress) -> Path:
    """The tiny model with these settings, made now unless it is in the cache.

    Args:
        settings: How it is made.
        root: The cache folder.
        progress: Told what is being done, and the share that is done.

    Returns:
        Its folder.

    Raises:
        DataError: the cache cannot be written.
    """
    key = settings_hash(_VERSION, dataclasses.astuple(settings), INSTRUCTION, WORDINGS, TEMPLATES)

    def build(folder: Path) -> None:
        from orchestration.models.tiny_training import make_tiny_model  # loads torch and transformers

        make_tiny_model(settings, folder, progress)

    folder = cached_folder(root / f"tiny-{key}", build, progress=progress)
    progress(f"tiny is ready in {folder}", 1.0)
    return folder
