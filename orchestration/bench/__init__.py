"""`rlvr bench …`: measurements as ratios within one run, printed as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestration.storage.cache import Progress


def run_bench(name: str, measure: Callable[[Progress], dict[str, Any]], *, as_json: bool) -> int:
    """Run a benchmark and print what it measured; standard error says how far it is.

    Args:
        name: Of the benchmark.
        measure: Returns `machine`, `settings` and `figures` (flat: name → number), where there is a choice `attention`
            (contender → kernel), and reports its progress.
        as_json: Print one JSON object instead of lines for a person.

    Returns:
        The exit status.

    Raises:
        RlvrError: It cannot be measured.
    """
    from learner.errors import LearnerError
    from orchestration.errors import RlvrError
    from orchestration.noise import noise_to_file
    from orchestration.report.progress import progress_printer
    from rollout_server.errors import RolloutError

    try:
        with noise_to_file(f"rlvr-bench-{name}-") as stderr, progress_printer(stderr) as progress:
            result = measure(progress)
    except (LearnerError, RolloutError) as error:
        raise RlvrError(str(error)) from error
    print(json.dumps(result) if as_json else _readable(result))
    return 0


def _readable(result: Mapping[str, Any]) -> str:
    lines = [f"{result['machine']}", ""]
    lines += [f"attention of {name}: {kernel}" for name, kernel in result.get("attention", {}).items()]
    lines += [f"{name:<32} {value:.4g}" for name, value in result["figures"].items()]
    return "\n".join(lines)
