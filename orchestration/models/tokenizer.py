"""The model's tokenizer. The only file of this package that imports transformers for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestration.errors import DataError

_TAKEN_AS_NAMED = {("gpt2", "GPT2Tokenizer"), ("llama", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer")}
"""Kinds of model and classes of tokenizer where AutoTokenizer takes the class that the folder names."""


def load_tokenizer(model_path: Path) -> Any:
    """The tokenizer in a model's folder.

    Raises:
        DataError: there is none that loads.
    """
    try:
        return _tokenizer_class(model_path).from_pretrained(str(model_path))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the tokenizer in {model_path} does not load: {reason}; is tokenizer.json there?") from error


def _tokenizer_class(model_path: Path) -> Any:
    """AutoTokenizer; or what it would choose, where the folder says that, since looking for it imports torch."""
    import transformers

    kind, named = (_read(model_path / file, key) for file, key in _SAID_IN)
    return getattr(transformers, named if (kind, named) in _TAKEN_AS_NAMED else "AutoTokenizer")


_SAID_IN = (("config.json", "model_type"), ("tokenizer_config.json", "tokenizer_class"))


def _read(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None
