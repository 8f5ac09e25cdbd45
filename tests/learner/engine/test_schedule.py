"""Schedules are transformers': rates by hand, refusals, and going on in the middle."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from learner.config import LearnerConfig
from learner.engine.schedule import make_schedule, move_to
from learner.errors import LearnerError


def schedule_of(max_steps: int | None = None, **settings: Any) -> LambdaLR:
    config = LearnerConfig(learning_rate=1.0, **settings)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    return make_schedule(optimizer, config, max_steps=max_steps)


def rates(schedule: LambdaLR, count: int) -> list[float]:
    """Of the next `count` optimizer steps."""
    found = []
    for _ in range(count):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}, [0, 1 / 2, 1, 1]),
        # Four batches of one step, one of them warm-up: 0, then from 1 down by thirds.
        ({"lr_scheduler_type": "linear", "max_steps": 4, "warmup_steps": 1}, [0, 1, 2 / 3, 1 / 3, 0]),
        # Two batches of two steps each are the same four steps.
        ({"lr_scheduler_type": "linear", "max_steps": 2, "num_iterations": 2, "warmup_steps": 1}, [0, 1, 2 / 3, 1 / 3]),
        # (1 + cos(pi t / 4)) / 2 at t = 0, 2, 4 is 1, 1/2, 0.
        ({"lr_scheduler_type": "cosine", "max_steps": 2, "num_iterations": 2}, [1, 0.853553, 0.5, 0.146447, 0]),
        # The same between 1 and 0.1: 0.1 + 0.9 times it.
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "max_steps": 2, "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
            [1, 0.55, 0.1],
        ),
        # Two waves over four steps: each starts at 1 and is half way down at its middle.
        (
            {"lr_scheduler_type": "cosine_with_restarts", "max_steps": 4, "lr_scheduler_kwargs": {"num_cycles": 2}},
            [1, 0.5, 1, 0.5, 0],
        ),
        # (1 - t / 2)^2.
        (
            {"lr_scheduler_type": "polynomial", "max_steps": 2, "lr_scheduler_kwargs": {"power": 2.0, "lr_end": 0.0}},
            [1, 0.25, 0],
        ),
        # sqrt(timescale / t), the time scale being the warm-up's length.
        ({"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 1}, [0, 1, 2**-0.5, 3**-0.5]),
        # 1 step of warm-up, 4 - 1 - 2 = 1 stable one, 2 of decay.
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "max_steps": 4,
                "warmup_steps": 1,
                "lr_scheduler_kwargs": {"num_decay_steps": 2, "decay_type": "linear"},
            },
            [0, 1, 1, 0.5, 0],
        ),
    ],
)
def test_rates(settings: dict[str, Any], expected: list[float]) -> None:
    assert rates(schedule_of(**settings), len(expected)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lr_scheduler_type": "cosine"}, "'cosine' needs max_steps"),
        ({"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}}, "max_steps"),
        ({"warmup_steps": 3}, "warmup_steps=3: use lr_scheduler_type=constant_with_warmup"),
        (
            {"lr_scheduler_type": "linear", "max_steps": 2, "num_iterations": 2, "warmup_steps": 4},
            "max_steps=2 with num_iterations=2 leaves nothing",
        ),
        ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], says: str) -> None:
    own = {name: value for name, value in settings.items() if name != "max_steps"}
    with pytest.raises(ValueError, match=re.escape(says)):
        LearnerConfig(**own).check_run(max_steps=settings.get("max_steps"), max_completion_length=16)


def test_a_run_without_steps_needs_no_room_for_a_schedule() -> None:
    settings = {"lr_scheduler_type": "linear", "warmup_steps": 4}
    LearnerConfig(**settings).check_run(max_steps=0, max_completion_length=16)
    assert schedule_of(max_steps=0, **settings).get_last_lr() == [0.0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lr_scheduler_kwargs": {"power": 2}}, "'constant' does not know lr_scheduler_kwargs power; it knows none"),
        (
            {"lr_scheduler_type": "cosine", "max_steps": 2, "lr_scheduler_kwargs": {"num_cycle": 2, "cycles": 1}},
            "does not know lr_scheduler_kwargs cycles, num_cycle; it knows num_cycles",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay", "max_steps": 4}, "needs lr_scheduler_kwargs num_decay_steps"),
        ({"lr_scheduler_type": "cosine_with_min_lr", "max_steps": 4}, "One of min_lr or min_lr_rate"),
        (
            {"lr_scheduler_type": "polynomial", "max_steps": 4, "lr_scheduler_kwargs": {"lr_end": 2.0}},
            "must be smaller than initial lr",
        ),
    ],
)
def test_arguments_that_the_schedule_does_not_take(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(LearnerError) as caught:
        schedule_of(**settings)
    assert says in str(caught.value)


def test_a_schedule_of_given_stages_needs_no_end() -> None:
    kwargs = {"num_stable_steps": 1, "num_decay_steps": 2, "decay_type": "linear"}
    schedule = schedule_of(lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=kwargs, max_steps=100)
    assert rates(schedule, 4) == [1.0, 1.0, 0.5, 0.0]


def test_going_on_in_the_middle_is_exact() -> None:
    settings = {"lr_scheduler_type": "cosine", "max_steps": 7, "num_iterations": 3, "warmup_steps": 4}
    straight, moved = schedule_of(**settings), schedule_of(**settings)
    expected = rates(straight, 21)
    move_to(moved, 9)
    assert moved.optimizer.param_groups[0]["lr"] == expected[9]
    assert rates(moved, 12) == expected[9:]
