"""Labels of other people's data sets, as references. Pure, standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

FINAL_ANSWER: Final = "final_answer"
_SEPARATOR: Final = "####"
_MISSING_TYPES: Final = frozenset({"NAType", "NaTType"})
"""pandas' own, which need not be installed."""


def reference_of(label: Any, key: str = FINAL_ANSWER) -> dict[str, Any]:
    """A label as the reference that completions are compared with.

    Args:
        label: an object, or the JSON text of one, is the whole reference; nothing, NaN or a blank text is none;
            anything else is what `key` holds: bytes as UTF-8, arrays as lists, the JSON text of a list of texts or of
            objects as that list.
        key: the reference's key for it; under `final_answer`, GSM8K's answer column gives its answer alone, and none
            where nothing follows its `####`.

    Raises:
        ValueError: bytes that are not UTF-8.
    """
    label = _read(_plain(label))
    if isinstance(label, Mapping):
        return dict(label)
    if is_missing(label) or (isinstance(label, str) and not label.strip()):
        return {}
    if key != FINAL_ANSWER:
        return {key: label}
    answer = answer_of(label)
    return {} if isinstance(answer, str) and answer.rstrip().endswith(_SEPARATOR) else {key: answer}


def answer_of(label: Any) -> Any:
    """What follows the last `####` of a text, where that is one line, as in GSM8K's answer column: "… #### 72" is 72;
    of a list the answers, of a list of one that one. Anything else comes back as it is."""
    if isinstance(label, list | tuple):
        answers = [answer_of(one) for one in label]
        return answers[0] if len(answers) == 1 else answers
    if not isinstance(label, str) or _SEPARATOR not in label:
        return label
    answer = label.rpartition(_SEPARATOR)[2].strip()
    return label if not answer or "\n" in answer else answer


def is_missing(value: Any) -> bool:
    """What tables hold where there is nothing: None, NaN, pandas' NA and NaT."""
    return (
        value is None or (isinstance(value, float) and value != value) or type(value).__name__ in _MISSING_TYPES
    )  # NaN alone


def _plain(label: Any) -> Any:
    if isinstance(label, bytes | bytearray):
        try:
            return label.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the label {bytes(label)!r:.60} is bytes that are not UTF-8: {error.reason}") from None
    return label.tolist() if hasattr(label, "tolist") else label


def _read(label: Any) -> Any:
    """JSON texts that can be meant as nothing else: "[1, 2]" may be an interval."""
    if not isinstance(label, str) or label.lstrip()[:1] not in ("{", "["):
        return label
    try:
        value = json.loads(label)
    except (ValueError, RecursionError):
        return label
    texts_or_objects = isinstance(value, list) and value and all(isinstance(one, str | dict) for one in value)
    return value if isinstance(value, dict) or texts_or_objects else label
