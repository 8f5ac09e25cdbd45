"""The cases of `code`, each in a sandbox; see `code.jsonl`, a line each."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from reward_service.rewards.base import NotScorableError
from reward_service.rewards.code import Params, score
from reward_service.sandbox import probe
from reward_service.sandbox.settings import SandboxSettings

SANDBOX = SandboxSettings(mode="strict", wall_s=20, total_s=60)
"""With time for a busy machine; what must run into the limit says so by a parameter."""
CASES = [json.loads(line) for line in Path(__file__).with_name("code.jsonl").read_text(encoding="utf-8").splitlines()]


def mistake(case: dict[str, Any]) -> str | None:
    try:
        got = score(case["completion"], case["reference"], Params(**case.get("parameters", {})), SANDBOX).score
    except NotScorableError as error:
        return None if case["score"] is None else f"{case['why']}: {error}"
    wanted = case["score"]
    low, high = (wanted["min"], wanted["max"]) if isinstance(wanted, dict) else (wanted, wanted)
    if low is not None and got is not None and low - 1e-9 <= got <= high + 1e-9:
        return None
    return f"{case['why']} ({case['source']}): {got} for {wanted}, {case['completion']!r:.200}"


@pytest.mark.skipif(
    probe.try_backend(SANDBOX, "namespaces") is not None and probe.try_backend(SANDBOX, "bubblewrap") is not None,
    reason="no sandbox on this machine",
)
def test_every_case_of_code_has_its_score() -> None:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        assert [said for said in pool.map(mistake, CASES) if said is not None] == []
