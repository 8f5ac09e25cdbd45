"""The settings of `data/curriculum.py`."""

from __future__ import annotations

from pydantic import Field

from orchestration.section import Section


class CurriculumConfig(Section):
    """Which problems are drawn how often; with nothing set, all of them once an epoch."""

    weights: dict[str, float] = Field(
        default_factory=dict,
        description="Share of the prompts by category, such as {easy: 1, hard: 3}; a category that is not named has 1, "
        "one with 0 is not drawn. Unset: by the number of problems, or the task's own.",
    )
    drop_solved_after: int = Field(
        0, ge=0, description="Leave a problem out once all its completions were right so many times in a row; 0: never."
    )
    drop_unsolved_after: int = Field(0, ge=0, description="The same where none was right.")
    target_pass_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Prefer problems with such a measured share of right completions; one that is not measured yet is "
        "always taken.",
    )
    least_share: float = Field(
        0.1, gt=0, le=1, description="With target_pass_rate: how often the problem farthest from it is taken."
    )
