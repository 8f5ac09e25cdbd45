"""The model that vLLM serves when the learner's base is quantised: the quantised base's own values, kept in the cache.

No heavy library here: the learner's `DEQUANTIZE_MODULE` works in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

from learner.config import BITSANDBYTES_SETTINGS, DEQUANTIZE_MODULE
from orchestration.errors import DataError
from orchestration.settings.config import RunConfig
from orchestration.storage.cache import Progress, cache_root, cached_folder, ignore_progress, settings_hash

_VERSION = 1
"""Raise it when `DEQUANTIZE_MODULE` writes something else: folders made before are then made again."""


def served_model(
    model_path: Path,
    config: RunConfig,
    *,
    device: Literal["cpu", "cuda"],
    cache_dir: Path | None = None,
    progress: Progress = ignore_progress,
) -> Path:
    """The folder for vLLM: the model's own, or with `learner.quantization` its dequantised values.

    Args:
        model_path: the original model, `config.model` resolved.
        config: says whether and how the base is quantised; the values are stored in the sampler's precision.
        device: where the learner quantises; another kind of device may round differently.
        cache_dir: as for `resolve_model`.

    Raises:
        DataError: one line: the model cannot be loaded or quantised, or the cache cannot be written.
    """
    learner, name = config.learner, config.model.name
    if learner.quantization == "none" or not learner.serve_dequantized_base:
        return model_path
    default = "float32" if device == "cpu" else "bfloat16"
    dtype, stored_dtype = (default if dtype == "auto" else dtype for dtype in (learner.dtype, config.rollout.dtype))
    settings = sorted(BITSANDBYTES_SETTINGS[learner.quantization].items())
    version = importlib.metadata.version("bitsandbytes")
    key = settings_hash(_VERSION, _contents(model_path), settings, version, dtype, stored_dtype, device)
    short = re.sub(r"[^\w.-]+", "-", Path(name).name) or "model"

    def build(folder: Path) -> None:
        progress(f"quantising {name} and writing the values that vLLM serves", 0.1)
        words = ("--quantization", learner.quantization, "--dtype", dtype, "--stored-dtype", stored_dtype)
        _run(
            DEQUANTIZE_MODULE,
            str(model_path),
            str(folder),
            *words,
            "--device",
            device,
            timeout_s=learner.start_timeout_s,
        )

    root = (cache_dir or cache_root()) / "models"
    folder = cached_folder(root / f"{short}-{learner.quantization}-{key}", build, progress=progress)
    progress(f"the dequantised {name} is ready in {folder}", 1.0)
    return folder


def _contents(folder: Path) -> list[tuple[str, int, int]]:
    """Tells a model folder from another, and from itself after a change."""
    states = ((file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file())
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def _run(module: str, *words: str, timeout_s: float) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"the base was not dequantised within {timeout_s:g} s; raise learner.start_timeout_s"
        ) from error
    if done.returncode:
        reason = next(reversed(done.stderr.strip().splitlines()), f"exit status {done.returncode}")
        raise DataError(f"the base cannot be dequantised for vLLM: {reason}")
