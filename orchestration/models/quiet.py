"""Keeps transformers' own progress bars off the terminal, where the caller shows progress. Loads transformers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence them within the block.

    The bar of the GGUF reader obeys no setting, so standard error is held back; what goes wrong is raised as ever.
    """
    bars_were_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if bars_were_shown:
            transformers_logging.enable_progress_bar()
