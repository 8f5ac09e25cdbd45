"""What a user, a tool or an environment says is text, also where it spells a model's control tokens.

Tokenizers read `<|im_end|>` in a text as the token that ends a turn: a web page that a tool found could end it, and
speak as the user or the model. A word joiner (U+2060), which nobody sees, behind the first character makes it letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

_JOINER = "\u2060"


def as_letters(tokenizer: Any) -> Callable[[str], str]:
    """Writes a text so that this tokenizer finds none of its control tokens in it; what has none stays as it is.

    Args:
        tokenizer: of Hugging Face; its control tokens are the added ones that are marked `special`.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = sorted((str(token) for token in added if token.special and len(str(token)) > 1), key=len, reverse=True)
    if not names:
        return lambda text: text
    found = re.compile("|".join(map(re.escape, names)))
    return lambda text: found.sub(lambda match: match[0][0] + _JOINER + match[0][1:], text)


def not_the_models(messages: Sequence[dict[str, str]], write: Callable[[str], str]) -> list[dict[str, str]]:
    """A conversation in which all turns but the assistant's are written so."""
    return [
        message if message["role"] == "assistant" else {**message, "content": write(message["content"])}
        for message in messages
    ]
