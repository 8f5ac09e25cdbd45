"""Does a worker serve what was trained? The judgement behind the probe of each publish. Pure.

The learner sends log-probabilities of a few fixed tokens; the engine computes its own. Two kernels in finite precision
never agree exactly, so agreement has limits: never more than the learner states for its precision, and less where the
two agreed better on the base model, before anything was learned. An update can be smaller than any such limit, and a
stale adapter would pass; so what the engine says is also held against what it said under the version before, and must
have moved as the learner did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rollout_server.errors import AdapterMismatchError, StaleAdapterError
from rollout_server.types import AdapterProbe

RMS_SHARE = 0.3
"""Of the largest difference allowed, what is allowed as their root mean square: 0.15 nats where one may be 0.5."""
_GROWTH = 5.0
"""How much larger than on the base model a disagreement may become: training makes distributions sharper or flatter,
and fifteen predictions of one version are a small sample."""
_LEAST_SHARE = 1 / 3
"""Of the limits, what is always allowed, however well the base model happened to agree."""
_CLEAR = 4.0
"""How many times larger than the disagreement an update must be before its direction tells anything: of those just as
large, the noise of bfloat16 turns one in ten round."""
_VISIBLE = 1e-5
"""Nats: the learner's log-probabilities themselves are rounded to some 1e-6."""


@dataclass(frozen=True, slots=True)
class Gap:
    """How far two sequences of log-probabilities are apart, nats; infinite where one is not finite."""

    rms: float
    largest: float

    def within(self, limit: Gap) -> bool:
        return self.rms <= limit.rms and self.largest <= limit.largest

    def __str__(self) -> str:
        return f"{self.largest:.3g} nats at most and {self.rms:.3g} in the root mean square"


def gap(first: Sequence[float], second: Sequence[float]) -> Gap:
    """How far two engines are apart on the same predictions.

    Args:
        first: Log-probabilities, nats.
        second: Of as many predictions, in the same order.

    Returns:
        Infinite where a difference is not finite.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if not all(map(math.isfinite, differences)):
        return Gap(math.inf, math.inf)
    return Gap(math.hypot(*differences) / math.sqrt(len(differences)), max(map(abs, differences)))


def limit_after(base: Gap | None, tolerance: float) -> Gap:
    """How far served and trained may be apart.

    Args:
        base: By how much they are apart on the base model; None where that is not known.
        tolerance: The largest difference that is ever allowed.
    """
    most = Gap(RMS_SHARE * tolerance, tolerance)
    if base is None:
        return most
    return Gap(
        min(most.rms, max(_LEAST_SHARE * most.rms, _GROWTH * base.rms)),
        min(most.largest, max(_LEAST_SHARE * most.largest, _GROWTH * base.largest)),
    )


def check_base(served: Sequence[float], probe: AdapterProbe, *, worker: str) -> Gap:
    """Holds the served base model against the learner's, once, before the first version.

    Returns:
        How far they are apart.

    Raises:
        AdapterMismatchError: Too far: they are different models, or one is computed wrongly.
    """
    found, limit = gap(served, probe.base_training_logprobs), limit_after(None, probe.tolerance)
    if not found.within(limit):
        raise AdapterMismatchError(
            f"worker {worker} serves another base model than the learner trains, before any adapter: their "
            f"log-probabilities of the probe differ by {found} (allowed: {limit}); compare rollout.dtype and "
            f"learner.dtype, and the model's folders on both nodes"
        )
    return found


def check_agreement(
    served: Sequence[float], probe: AdapterProbe, base: Gap | None, *, worker: str, version: int
) -> Gap:
    """Holds what is served against what was trained.

    Args:
        served: Log-probabilities of the probe's predictions, as the engine gives them.
        probe: The learner's.
        base: How far they are apart on the base model; None where that is not known.
        worker, version: For the message.

    Returns:
        How far they are apart.

    Raises:
        AdapterMismatchError: Too far.
    """
    found, limit = gap(served, probe.training_logprobs), limit_after(base, probe.tolerance)
    if not found.within(limit):
        raise AdapterMismatchError(
            f"worker {worker} does not serve adapter version {version} as it was trained: its log-probabilities of the "
            f"probe differ by {found} (allowed: {limit}; learner.probe_tolerance)"
        )
    return found


def is_clearly_fresh(served: Sequence[float], served_before: Sequence[float], probe: AdapterProbe) -> bool:
    """Whether the engine has moved to where the update points, by more than what engine and learner, or two batches of
    the engine's, disagree by: |d_served − d_trained| ≤ |d_served|, d the change since the version before.

    Args:
        served: Log-probabilities of the probe's predictions under the new version.
        served_before: The same under the version before.
        probe: The learner's of both.

    Returns:
        False says nothing: the update may be too small to be seen.
    """
    previous = probe.previous_training_logprobs
    if previous is None or math.dist(probe.training_logprobs, previous) <= _CLEAR * math.dist(served_before, previous):
        return False
    return _moved_along(served, served_before, probe.training_logprobs, previous)


def _moved_along(
    served: Sequence[float], served_before: Sequence[float], trained: Sequence[float], previous: Sequence[float]
) -> bool:
    """|d_served - d_trained| <= |d_served|: more than half of the update's way."""
    d_served = [new - old for new, old in zip(served, served_before, strict=True)]
    d_trained = [new - old for new, old in zip(trained, previous, strict=True)]
    return math.dist(d_served, d_trained) <= math.hypot(*d_served)


def check_not_stale(
    served: Sequence[float],
    served_before: Sequence[float],
    probe: AdapterProbe,
    *,
    same: bool,
    worker: str,
    version: int,
    previous_version: int,
) -> None:
    """Has the engine moved from the version before to this one as the learner did?

    What engine and learner disagree by is mostly the same for both versions, so it cancels in what each of them moved:
    d_served = served - served_before, to be compared with d_trained = training - previous.

    - d_trained below what is visible: nothing to tell;
    - d_served = 0 while d_trained is not, or the adapter in the engine's memory is still the one before: stale, however
      small the update and whatever the precision;
    - |d_served - d_trained| <= |d_served|: it moved to where the update points;
    - otherwise it is another adapter if the update is clearly larger than the disagreement |served_before - previous|,
      and cannot be told if it is not: it passes, since something did change.

    Args:
        served, served_before: What the engine says under this version, and said under the one before.
        same: Both adapters are bit for bit the same in the engine's memory.
        probe: What the learner says.
        worker, version, previous_version: For the message.

    Raises:
        StaleAdapterError: What is served is the version before.
    """
    previous = probe.previous_training_logprobs
    if previous is None:
        return
    d_served = [new - old for new, old in zip(served, served_before, strict=True)]
    d_trained = [new - old for new, old in zip(probe.training_logprobs, previous, strict=True)]
    if max(map(abs, d_trained)) < _VISIBLE:
        return
    if any(d_served) and not same:
        if _moved_along(served, served_before, probe.training_logprobs, previous):
            return
        if math.hypot(*d_trained) <= _CLEAR * math.dist(served_before, previous):
            return
    raise StaleAdapterError(
        f"worker {worker} still serves adapter version {previous_version} in place of {version}: the update moved the "
        f"probe's log-probabilities by up to {max(map(abs, d_trained)):.3g} nats in the learner and by "
        f"{max(map(abs, d_served)):.3g} in the worker, and what is served differs by "
        f"{gap(served, probe.training_logprobs).largest:.3g} from the new version and by "
        f"{gap(served, previous).largest:.3g} from the previous one"
    )
