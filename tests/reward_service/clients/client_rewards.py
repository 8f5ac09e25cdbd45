"""Rewards that tests of the clients serve, in a module because workers load them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def distance(completion: str, reference: Mapping[str, Any] | None, params: object) -> float | None:
    """How far the completion's length is from the reference's `length`, downwards from 0; None if that is unknown."""
    wanted = None if reference is None else reference.get("length")
    return None if wanted is None else -abs(len(completion) - float(wanted)) / 1000
