"""A reporter that keeps its notes."""

from __future__ import annotations

from typing import Any


class SilentReporter:
    """Takes everything, shows nothing."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.calls: list[str] = []

    def note(self, level: str, message: str) -> None:
        self.notes.append(f"{level}: {message}")

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> None:
            self.calls.append(name)

        return call
