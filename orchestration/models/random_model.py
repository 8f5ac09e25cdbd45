"""Models of real shapes with random weights, made once and kept like the embedded ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from orchestration.models.random_shapes import RandomShape
from orchestration.storage.cache import Progress, cached_folder, settings_hash

_VERSION = 1
"""Raise it when what is written changes: folders made before are then made again."""


def random_model(name: str, shape: RandomShape, tokenizer_folder: Path, root: Path, progress: Progress) -> Path:
    """The model of this shape, made now unless it is in the cache.

    Args:
        name: For its folder.
        shape: What is made.
        tokenizer_folder: The model whose tokenizer it gets.
        root: The cache folder.
        progress: Told what is being done, and the share that is done.

    Returns:
        Its folder.

    Raises:
        DataError: The cache cannot be written.
    """
    key = settings_hash(_VERSION, dataclasses.astuple(shape), tokenizer_folder.name)

    def build(folder: Path) -> None:
        from orchestration.models.random_weights import make_random_model  # loads torch and transformers

        make_random_model(shape, tokenizer_folder, folder, progress)

    folder = cached_folder(root / f"{name}-{key}", build, progress=progress)
    progress(f"random weights are ready in {folder}", 1.0)
    return folder
