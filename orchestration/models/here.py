"""The run's model on the node of the caller: nodes share no disk, so each makes or fetches it by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from orchestration.models.dequantized import served_model
from orchestration.models.resolve import EMBEDDED_MODELS, resolve_model
from orchestration.settings.config import RunConfig


def model_here(config: RunConfig, *, device: Literal["cpu", "cuda"], served: bool) -> Path:
    """Prepare the run's model on this node, unless that was done.

    Processes of one node that ask at the same time wait for the first (the cache has locks).

    Args:
        config: The run.
        device: Where the learner quantises, if it does.
        served: What vLLM serves of the base model, rather than the base model itself.

    Returns:
        The folder.

    Raises:
        DataError: one line, what is missing or unreachable on this node.
    """
    base = resolve_model(config.model.name, config.model.revision)
    return served_model(base, config, device=device) if served else base


def named_anywhere(config: RunConfig) -> RunConfig:
    """The run with a model folder's whole path, for processes that work in another folder."""
    folder = Path(config.model.name).expanduser()
    if config.model.name in EMBEDDED_MODELS or not folder.is_dir():
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"name": str(folder.absolute())})})
