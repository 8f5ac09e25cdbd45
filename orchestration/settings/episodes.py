"""Settings of episodes: how long one may be. They matter for tasks with an environment alone."""

from __future__ import annotations

from pydantic import Field

from orchestration.section import Section


class EpisodeConfig(Section):
    """Bounds of one episode; its tokens, given ones included, are at most `rollout.max_completion_length`."""

    max_turns: int = Field(8, ge=1, description="Turns of the model in an episode.")
    max_turn_length: int | None = Field(
        None, ge=1, description="Tokens of one turn, which then goes to the environment as it is; unset: no own bound."
    )
    timeout_s: float = Field(600.0, gt=0, description="Wall time of an episode, looked at between its turns; seconds.")
    step_timeout_s: float = Field(
        60.0, gt=0, description="What one call of an environment may take; then its episode has failed; seconds."
    )
