"""Settings of episodes: how long one may be, and what its turns answer for. They matter for tasks with an environment
alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from learner.config import LearnerConfig
from orchestration.section import Section
from reward_service.types import RewardSpec


class EpisodeConfig(Section):
    """Bounds of one episode; its tokens, given ones included, are at most `rollout.max_completion_length`. What a limit
    ended is truncated: `learner.mask_truncated_completions` says whether it is learned from."""

    max_turns: int = Field(8, ge=1, description="Turns of the model in an episode.")
    max_turn_length: int | None = Field(
        None, ge=1, description="Tokens of one turn, which then goes to the environment as it is; unset: no own bound."
    )
    timeout_s: float = Field(600.0, gt=0, description="Wall time of an episode, looked at between its turns; seconds.")
    step_timeout_s: float = Field(
        60.0, gt=0, description="What one call of an environment may take; then its episode has failed; seconds."
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="Environments that are open at once; episodes beyond wait for one. Unset: any number."
    )
    num_hosts: int = Field(
        0,
        ge=0,
        description="Ray actors that environments run in, started when they are needed; 0: in the driver's process, "
        "where one that blocks holds the run.",
    )
    host_nodes: str | None = Field(
        None, description="Name of a Ray resource that the nodes for these carry; unset: any node, all in turn."
    )
    credit: Literal["episode", "turn"] = Field(
        "episode",
        description="episode: all turns of an episode have one advantage, its total's. turn: each has its own, of what "
        "the environment paid from it on, compared with the same turn of the group's other episodes.",
    )
    lockstep: bool | None = Field(
        None,
        description="Begin the next turns of a step's episodes together, when all environments have answered: without "
        "staleness, on CPUs, the same run again bit for bit, and every turn waits for the slowest. Unset: where "
        "rollout.own_seeds is true.",
    )

    def takes(self, number: int) -> bool:
        """Whether so many episodes may be under way at once."""
        return self.max_concurrent is None or self.max_concurrent >= number

    def check_run(self, rewards: Sequence[RewardSpec], learner: LearnerConfig, num_generations: int) -> None:
        """Looks at what these settings have to do with others.

        Args:
            rewards: The run's.
            learner: How it makes advantages.
            num_generations: Episodes of a group, which begin together.

        Raises:
            ValueError: A group has no room, or turns cannot be judged each.
        """
        if not self.takes(num_generations):
            raise ValueError(
                f"episodes.max_concurrent={self.max_concurrent} has no room for the {num_generations} episodes of a "
                f"group (rollout.num_generations), which begin together: raise it, or lower the latter"
            )
        if self.credit == "episode":
            return
        spec = next((spec for spec in rewards if spec.name == "environment"), None)
        if spec is None or spec.params.get("credit", "sum") != "sum":
            raise ValueError(
                "episodes.credit=turn is by what an environment pays each turn: it needs the reward 'environment' in "
                "reward.rewards, with the parameter credit=sum"
            )
        if learner.multi_objective_aggregation == "normalize_then_sum" or learner.overlong_cache:
            own = "overlong_cache" if learner.overlong_cache else "multi_objective_aggregation=normalize_then_sum"
            raise ValueError(f"episodes.credit=turn does not go with learner.{own}, which is of whole completions")
