"""Texts out of chat messages, for requests that hold those. Pure, standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

Messages = Sequence[Mapping[str, Any]]

_WRITERS: Final = frozenset({"assistant", "model"})
_OTHERS: Final = frozenset({"user", "system", "developer", "tool", "function", "ipython"})
_REASONING: Final = frozenset({"reasoning", "thinking"})


def transcript(prompt: str | Messages | None) -> str:
    """A prompt as text: chat messages are put down as `role: content` lines."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    return "\n".join(f"{message.get('role') or ''}: {content_text(message)}" for message in _messages(prompt))


def written(completion: str | Messages) -> str:
    """What the model wrote: the contents of the assistant's messages, a line break between them. Reasoning that a chat
    template has put in a field or a block of its own, calls of tools and the tools' answers are no part of it.

    Raises:
        ValueError: What is no message, or one of a role that may be the model's: an answer that is passed over would
            be scored as if there were none.
    """
    if isinstance(completion, str):
        return completion
    texts = [content_text(message) for message in _messages(completion) if _is_the_models(message)]
    return "\n".join(text for text in texts if text)


def content_text(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may be a text, a list of blocks, a block, or nothing."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, Sequence) and not isinstance(content, str):
        return "".join(_block_text(block) for block in content)
    return _block_text(content)


def _messages(messages: Any) -> Iterable[Mapping[str, Any]]:
    if isinstance(messages, Mapping):
        return [messages]
    for message in messages if isinstance(messages, Iterable) and not isinstance(messages, bytes) else (messages,):
        if not isinstance(message, Mapping):
            raise ValueError(  # callers know one kind of error for what cannot be read
                f"neither a text nor chat messages: {message!r:.100}; a message has a `role` and a `content`"
            )
    return messages  # type: ignore[no-any-return]


def _is_the_models(message: Mapping[str, Any]) -> bool:
    role = str(message.get("role", "assistant")).lower()
    if role not in _WRITERS | _OTHERS or not message.keys() & {"role", "content"}:
        raise ValueError(
            f"a message that cannot be read: {dict(message)!r:.100}; its `role` is one of"
            f" {', '.join(sorted(_WRITERS | _OTHERS))}, and its text is its `content`"
        )
    return role in _WRITERS


def _block_text(block: Any) -> str:
    if isinstance(block, Mapping):
        return "" if block.get("type") in _REASONING else str(block.get("text") or "")
    return str(block)
