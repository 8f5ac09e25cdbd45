"""Texts out of chat messages, for requests that hold those. Pure, standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]


def transcript(prompt: str | Messages) -> str:
    """A prompt as text: chat messages are put down as `role: content` lines."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role') or ''}: {content_text(message)}" for message in prompt)


def written(completion: str | Messages) -> str:
    """What the model wrote: the contents of the assistant's messages, a line break between them. Reasoning that a chat
    template has put in a field of its own, calls of tools and the tools' answers are no part of it."""
    if isinstance(completion, str):
        return completion
    texts = [content_text(message) for message in completion if message.get("role", "assistant") == "assistant"]
    return "\n".join(text for text in texts if text)


def content_text(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may be a text, a list of blocks, or nothing."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(str(block.get("text") or "") for block in content if isinstance(block, Mapping))
    return str(content)
