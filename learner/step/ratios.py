"""How far the sampler was from the learner at each token of a step, in whole numbers that may leave the learner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.step.passes import Microbatch
from learner.step.plan import StepPlan
from learner.types import UNITS_PER_NAT, UNKNOWN, LogRatios, ScoredGroup


def log_ratios(
    groups: Sequence[ScoredGroup], plan: StepPlan, microbatches: Sequence[Microbatch]
) -> tuple[tuple[LogRatios | None, ...], ...]:
    """learner - sampler, nats, of the log-probs that the first iteration found: `UpdateMetrics.log_ratios`.

    Args:
        groups: The step's, whole.
        plan: Of them.
        microbatches: This rank's, after their first pass. A GPU is waited for.
    """
    rows = [[len(member.completion.token_ids) for member in group.members] for group in groups]
    found: dict[tuple[int, int], NDArray[np.int16]] = {}
    for microbatch in microbatches:
        assert microbatch.old_logprobs_BT is not None, "no pass was made yet"
        units_BT = _units(microbatch.old_logprobs_BT - microbatch.sampling_logprobs_BT).cpu().numpy()
        for units_T, index in zip(units_BT, microbatch.indices, strict=False):  # a pass that adds nothing has a row too
            p, g = plan.places[index]
            own = found.setdefault((p, g), np.full(rows[p][g], UNKNOWN, dtype=np.int16))
            at = 0
            for start, stop in plan.spans[index]:
                own[start:stop] = units_T[at : at + stop - start]
                at += stop - start
    return tuple(
        tuple(LogRatios.of_bytes(found[p, g]) if (p, g) in found else None for g in range(len(row)))
        for p, row in enumerate(rows)
    )


def _units(log_ratio_BT: Tensor) -> Tensor:
    """As `LogRatios` has them, 16 bits each."""
    bounded_BT = torch.round(UNITS_PER_NAT * log_ratio_BT).clamp(UNKNOWN + 1, -UNKNOWN - 1)
    return torch.where(log_ratio_BT.isnan(), UNKNOWN, bounded_BT).to(torch.int16)
