"""`rlvr bench …`: measurements as ratios within one run, printed as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from orchestration.errors import RlvrError
from orchestration.noise import noise_to_file


def run_bench(name: str, measure: Callable[[], dict[str, Any]], *, as_json: bool) -> int:
    """Run a benchmark and print `machine`, `settings` and `figures` (flat: name → number).

    Raises RlvrError with one sentence when it cannot be measured.
    """
    from learner.errors import LearnerError
    from rollout_server.errors import RolloutError

    try:
        with noise_to_file(f"rlvr-bench-{name}-"):
            result = measure()
    except (LearnerError, RolloutError) as error:
        raise RlvrError(str(error)) from error
    print(json.dumps(result) if as_json else _readable(result))
    return 0


def _readable(result: Mapping[str, Any]) -> str:
    lines = [f"{result['machine']}", ""]
    lines += [f"{name:<32} {value:.4g}" for name, value in result["figures"].items()]
    return "\n".join(lines)
