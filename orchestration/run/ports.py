"""What the loop needs of the rooms. The rooms do not know these protocols; they only fit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from learner.types import ScoredCompletion, ScoredGroup, UpdateMetrics
from orchestration.types import Problem
from rollout_server.types import (
    AdapterPayload,
    Completion,
    Prompt,
    PublishReport,
    SamplingParams,
)


class AdapterHandle(Protocol):
    """A trained adapter wherever it lies, so that its bytes go to the workers without passing the loop."""

    async def fetch(self) -> AdapterPayload: ...


class Generator(Protocol):
    """Rollout workers behind one door."""

    @property
    def max_sequences(self) -> int | None:
        """Completions to ask for at once: as many as keep the workers there are busy. More would only wait. None: it
        does not matter."""
        ...

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]: ...

    async def publish(self, adapter: AdapterHandle) -> Sequence[PublishReport]: ...


class Scorer(Protocol):
    """The reward service, or a stand-in for a control experiment."""

    @property
    def reward_names(self) -> Sequence[str]: ...

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]: ...


class Learner(Protocol):
    """The DeepSpeed learner behind one door."""

    async def update(self, groups_P: Sequence[ScoredGroup]) -> UpdateMetrics:
        """One optimizer step. The learner counts the policy's versions: the answer's `step` is the new one."""
        ...

    async def export_adapter(self) -> AdapterHandle: ...

    async def save_checkpoint(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Writes FOLDER/step-000012, for step 12, with these files (name → content) beside its own: whole, or not at
        all. Older ones are removed as its settings say."""
        ...

    async def load_checkpoint(self, folder: str) -> int:
        """Goes on from one step's folder; returns the step, which is the policy's version."""
        ...
