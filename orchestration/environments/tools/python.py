"""The tool `python`: a program of the model's, in the reward service's sandbox and nowhere else."""

from __future__ import annotations

from orchestration.environments.environment import Scoring, Surroundings
from orchestration.environments.tools.tool import ToolOutOfOrderError
from reward_service.types import RewardItem, RewardSpec

RUNS = RewardSpec(name="python", params={"extract": "whole"})
"""By which the service is asked to run a program: its details say what was printed."""


class Python:
    """Asks the run's reward service."""

    def __init__(self) -> None:
        self._scoring: Scoring | None = None

    def enter(self, surroundings: Surroundings) -> None:
        self._scoring = surroundings.scoring

    async def python(self, code: str) -> str:
        """Run a Python program.

        Args:
            code: The whole program; what it prints comes back.

        Returns:
            What it printed, and the error that ended it, if one did.
        """
        if self._scoring is None:
            raise ToolOutOfOrderError("the tool python needs a reward service, in whose sandbox it runs")
        (result,) = await self._scoring.score([RewardItem(completion=code, reference=None)], [RUNS])
        scored = result.rewards[RUNS.name]
        if scored.score is None:
            raise ToolOutOfOrderError(f"the sandbox: {scored.reason}: {scored.details.get('message', '')}")
        said = [str(scored.details.get("output", "")).rstrip("\n"), str(scored.details.get("why") or "")]
        return "\n".join(filter(None, said)) or "(it printed nothing)"
