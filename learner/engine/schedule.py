"""Learning-rate schedules: those of `transformers.get_scheduler`, with their meaning.

A schedule is a function of the number of optimizer steps made so far. Its warm-up starts at 0: with `warmup_steps` W
the first step is made at rate 0 and moves nothing, step W + 1 at the full rate. Schedules with an end come to it after
`max_steps` batches, which are `max_steps` × `num_iterations` optimizer steps.
"""

from __future__ import annotations

import inspect

import torch
from torch.optim.lr_scheduler import LambdaLR

from learner.config import LearnerConfig
from learner.errors import LearnerError

_GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}


def make_schedule(optimizer: torch.optim.Optimizer, config: LearnerConfig, *, max_steps: int | None = None) -> LambdaLR:
    """The configured schedule of `optimizer`'s rate, before its first step.

    Args:
        optimizer: Whose rate it sets.
        config: The schedule and its arguments.
        max_steps: Batches of the run, at which a schedule with an end comes to it; None: there is no end.

    Raises:
        LearnerError: `lr_scheduler_kwargs` has what the schedule does not know, lacks what it needs, or has a value
            that it refuses.
    """
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler

    kind, kwargs = config.lr_scheduler_type, dict(config.lr_scheduler_kwargs)
    parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[kind]).parameters
    known = {name: parameter for name, parameter in parameters.items() if name not in _GIVEN}
    unknown = sorted(kwargs.keys() - known.keys())
    if unknown:
        raise LearnerError(
            f"lr_scheduler_type={kind!r} does not know lr_scheduler_kwargs {', '.join(unknown)}; "
            f"it knows {', '.join(known) or 'none'}"
        )
    needed = {name for name, parameter in known.items() if parameter.default is inspect.Parameter.empty}
    if needed - kwargs.keys():
        raise LearnerError(
            f"lr_scheduler_type={kind!r} needs lr_scheduler_kwargs {', '.join(sorted(needed - kwargs.keys()))}"
        )
    total = None if max_steps is None else max_steps * config.num_iterations
    if "num_stable_steps" in kwargs:
        total = None  # the stages' lengths are given one by one
    try:
        schedule = get_scheduler(
            kind,
            optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=total,
            scheduler_specific_kwargs=kwargs,
        )
    except (ValueError, TypeError) as error:
        raise LearnerError(f"lr_scheduler_type={kind!r} with lr_scheduler_kwargs={kwargs}: {error}") from error
    assert isinstance(schedule, LambdaLR), "every LrSchedulerType is a function of the step"
    return schedule


def move_to(schedule: LambdaLR, num_steps: int) -> None:
    """Sets a schedule, and its optimizer's rate, to where it stands after so many steps, without making them.

    Args:
        schedule: Of any number of parameter groups.
        num_steps: Optimizer steps, not batches: `num_iterations` of a batch count each.
    """
    rates = [rate * factor(num_steps) for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    schedule.last_epoch = num_steps
    schedule._step_count = num_steps + 1
    schedule._last_lr = rates
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
