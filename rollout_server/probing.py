"""Does a worker serve what was trained? The judgement behind the probe of each publish. Pure.

The learner sends log-probabilities of a few fixed tokens; the engine computes its own. Two kernels in finite precision
never agree exactly, so agreement has a tolerance, stated by the learner for its precision. An update can be smaller
than that tolerance, and a stale adapter would pass; so the learner also sends the previous version's log-probabilities,
and what is served must be nearer to the new ones than to those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rollout_server.errors import AdapterMismatchError, StaleAdapterError
from rollout_server.types import AdapterProbe


def largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Largest absolute difference between two sequences of log-probabilities, nats; inf if one is not finite."""
    differences = [abs(a - b) for a, b in zip(first, second, strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def check_agreement(served: Sequence[float], probe: AdapterProbe, *, worker: str, version: int) -> float:
    """Holds what is served against what was trained.

    Args:
        served: Log-probabilities of the probe's tokens, as the engine gives them.
        probe: The tokens, and the learner's log-probabilities of them.
        worker, version: For the message.

    Returns:
        The largest difference, nats.

    Raises:
        AdapterMismatchError: It exceeds the probe's tolerance.
    """
    difference = largest_difference(served, probe.training_logprobs)
    if difference > probe.tolerance:
        raise AdapterMismatchError(
            f"worker {worker} does not serve adapter version {version} as it was trained: its log-probabilities of the "
            f"probe differ by {difference:.3g} nats (tolerance {probe.tolerance:.3g})"
        )
    return difference


def looks_stale(served: Sequence[float], probe: AdapterProbe) -> bool:
    """Whether the served log-probabilities are nearer to the previous version's than to the new one's (Euclidean)."""
    previous = probe.previous_training_logprobs
    if previous is None or previous == probe.training_logprobs:
        return False
    return math.dist(served, previous) < math.dist(served, probe.training_logprobs)


def check_not_stale(
    served: Sequence[float],
    served_before: Sequence[float],
    probe: AdapterProbe,
    *,
    worker: str,
    version: int,
    previous_version: int,
) -> None:
    """Decide a probe that `looks_stale`, with the engine's own log-probabilities under the version before.

    An update smaller than the disagreement between engine and learner can look stale by chance. That disagreement is
    mostly the same for both versions, so it cancels in what the engine *moved* from one version to the next:
    d_served = served - served_before, to be compared with d_trained = training - previous.

    - d_served = 0 while d_trained is not: stale, whatever the precision;
    - |d_served - d_trained| <= |d_served|: it moved to where the update points;
    - otherwise it is stale if the update is larger than the disagreement |served_before - previous|, and cannot be
      told if it is smaller: it passes, since something did change.

    Raises:
        StaleAdapterError: What is served is the version before.
    """
    previous = probe.previous_training_logprobs
    assert previous is not None
    d_served = [new - old for new, old in zip(served, served_before, strict=True)]
    d_trained = [new - old for new, old in zip(probe.training_logprobs, previous, strict=True)]
    if any(d_served):
        if math.dist(d_served, d_trained) <= math.hypot(*d_served):
            return
        if math.hypot(*d_trained) <= math.dist(served_before, previous):
            return
    raise StaleAdapterError(
        f"worker {worker} still serves adapter version {previous_version} in place of {version}: the update moved the "
        f"probe's log-probabilities by up to {max(map(abs, d_trained)):.3g} nats in the learner and by "
        f"{max(map(abs, d_served)):.3g} in the worker, and what is served differs by "
        f"{largest_difference(served, probe.training_logprobs):.3g} from the new version and by "
        f"{largest_difference(served, previous):.3g} from the previous one"
    )
