"""What the loop needs of the rooms. The rooms do not know these protocols; they only fit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from learner.types import ScoredCompletion, ScoredGroup, UpdateMetrics
from orchestration.types import BuiltPrompt, CurriculumState, Problem
from rollout_server.types import (
    AdapterPayload,
    Completion,
    Prompt,
    PublishReport,
    SamplingParams,
)


class Source(Protocol):
    """Problems in the order of training."""

    def next(self) -> BuiltPrompt: ...


class ResumableSource(Source, Protocol):
    """A source that can say where it is and go back there."""

    @property
    def position(self) -> int: ...

    @property
    def waiting(self) -> Sequence[str]: ...

    @property
    def curriculum(self) -> CurriculumState: ...

    @property
    def num_dropped(self) -> int: ...

    def digest(self) -> str: ...

    def observe(self, problem_id: str, pass_rate: float) -> None: ...

    def restore(self, position: int, pending: Sequence[str], curriculum: CurriculumState | None) -> None: ...


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """Completions of one prompt, as they come from their worker."""

    completions_G: Sequence[Completion] = ()
    """Still to be scored."""
    group: ScoredGroup | None = None
    """Or scored there."""
    scoring_s: float = 0.0
    """How much of the time they took was spent on scores, the last of it; seconds."""
    problem: str = ""
    """Why they were not scored there."""


def scored_group(built: BuiltPrompt, members_G: Sequence[ScoredCompletion]) -> ScoredGroup:
    """The completions of a problem, with their scores, as what is learned from."""
    return ScoredGroup(
        prompt_id=built.prompt.prompt_id,
        prompt_token_ids=built.prompt.token_ids,
        members=tuple(members_G),
        category=built.problem.category,
    )


@runtime_checkable
class ScoringGenerator(Protocol):
    """What a `Generator` may do besides: have groups scored where they were made."""

    async def generate_scored(self, built: BuiltPrompt, prompt: Prompt, sampling: SamplingParams) -> Drawn:
        """As `Generator.generate`, of the problem's prompt with a seed and a turn; with scores as the run's `Scorer`
        gives them, where the service answers there at the first try. For all else there is the `Scorer`."""
        ...


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
