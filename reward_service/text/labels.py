"""Labels of other people's data sets, as references. Pure, standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

FINAL_ANSWER: Final = "final_answer"
_SEPARATOR: Final = "####"


def reference_of(label: Any, key: str = FINAL_ANSWER) -> dict[str, Any]:
    """A label as the reference that completions are compared with.

    Args:
        label: an object is the whole reference; nothing or a blank text is none; anything else is what `key` holds.
        key: the reference's key for it; under `final_answer`, GSM8K's answer column gives its answer alone.
    """
    if isinstance(label, Mapping):
        return dict(label)
    if label is None or (isinstance(label, str) and not label.strip()):
        return {}
    return {key: answer_of(label) if key == FINAL_ANSWER else label}


def answer_of(label: Any) -> Any:
    """What follows the last `####` of a text, where that is one line, as in GSM8K's answer column: "… #### 72" is 72.
    Anything else comes back as it is."""
    if not isinstance(label, str) or _SEPARATOR not in label:
        return label
    answer = label.rpartition(_SEPARATOR)[2].strip()
    return label if not answer or "\n" in answer else answer
