"""The model's tokenizer. The only file of this package that imports transformers for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestration.errors import DataError


def load_tokenizer(model_path: Path) -> Any:
    """The tokenizer in a model's folder.

    Raises:
        DataError: there is none that loads.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model_path))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the tokenizer in {model_path} does not load: {reason}; is tokenizer.json there?") from error
