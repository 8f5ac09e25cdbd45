"""How long to wait before a remote call is tried again."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_FIRST_S = 0.1
_MAX_S = 10.0


def backoff_s(num_tries: int) -> float:
    """Seconds after `num_tries` failures: exponential with full jitter, at most ten."""
    return random.uniform(0.0, min(_MAX_S, _FIRST_S * 2.0 ** min(num_tries, 30)))


def retry_after_s(value: str | None) -> float:
    """Seconds that a Retry-After header asks to wait (it may be a number or a date); 0 if it does not say."""
    if value is None:
        return 0.0
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
