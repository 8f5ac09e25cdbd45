"""Scripted stand-ins for the rooms; pure logic only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from learner.checkpoint import write_checkpoint
from learner.errors import DiskFullError
from learner.types import ScoredCompletion, ScoredGroup, UpdateMetrics
from orchestration.errors import RemoteTimeoutError
from orchestration.run.ledger.records import RunState, StepRecord
from orchestration.run.metrics import Block
from orchestration.settings.config import RunConfig
from orchestration.types import BuiltPrompt, CurriculumState, Problem
from rollout_server.types import (
    AdapterPayload,
    Completion,
    FinishReason,
    Prompt,
    PublishReport,
    SamplingParams,
)


class FakeSource:
    """Problems p0, p1, p2 …"""

    def __init__(self) -> None:
        self.position = 0
        self._first: list[str] = []
        self.observed: list[tuple[str, float]] = []

    curriculum = CurriculumState()
    num_dropped = 0

    def observe(self, problem_id: str, pass_rate: float) -> None:
        self.observed.append((problem_id, pass_rate))

    def restore(self, position: int, pending: Sequence[str], curriculum: CurriculumState | None = None) -> None:
        self.position, self._first = position, list(pending)

    @property
    def waiting(self) -> Sequence[str]:
        return tuple(self._first)

    def digest(self) -> str:
        return ""

    def next(self) -> BuiltPrompt:
        name = f"p{self.position}"
        if self._first:
            name = self._first.pop(0)
        else:
            self.position += 1
        problem = Problem(problem_id=name, question=name, reference={"final_answer": "1"})
        return BuiltPrompt(problem=problem, prompt=Prompt(prompt_id=name, token_ids=(1,)), text=name)


class FakeGenerator:
    """Answers when the test says so; `version` is what new groups are sampled from."""

    max_sequences: int | None = None

    def __init__(self) -> None:
        self.version = 0
        self.started: list[str] = []
        self.prompts: list[Prompt] = []
        self._gates: dict[str, asyncio.Event] = {}
        self.open = True
        self.failure: Exception | None = None

    def hold(self) -> None:
        self.open = False

    def release(self, *names: str) -> None:
        for name in names:
            self._gates.setdefault(name, asyncio.Event()).set()

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        self.started.append(prompt.prompt_id)
        self.prompts.append(prompt)
        version = self.version
        if self.failure is not None:
            raise self.failure
        if not self.open:
            await self._gates.setdefault(prompt.prompt_id, asyncio.Event()).wait()
        return [
            Completion(
                prompt_id=prompt.prompt_id,
                token_ids=(index + 1,),
                sampling_logprobs=(-1.0,),
                text=str(index),
                finish_reason=FinishReason.STOP,
                adapter_version=version,
            )
            for index in range(sampling.num_generations)
        ]


class FakeScorer:
    """Totals by a function of (problem id, index)."""

    def __init__(self, total: Callable[[str, int], float | None] = lambda name, index: float(index)) -> None:
        self._total = total
        self.reward_names: Sequence[str] = ("r",)

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        totals = [self._total(problem.problem_id, index) for index in range(len(completions))]
        return [
            ScoredCompletion(completion=completion, rewards=(total,), total=total)
            for completion, total in zip(completions, totals, strict=True)
        ]


class FakeClock:
    """Measures nothing."""

    def phase(self, name: str) -> AbstractContextManager[Block]:
        return nullcontext(Block())


class FakeAdapter:
    """An adapter of one file that names its version."""

    def __init__(self, version: int) -> None:
        self.version = version

    async def fetch(self) -> AdapterPayload:
        return AdapterPayload(version=self.version, files=(("adapter_model.safetensors", b"%d" % self.version),))


class KilledError(BaseException):
    """Ends a loop as a kill would: nothing of it runs any more."""


class PublishingGenerator(FakeGenerator):
    """Serves what is published, but for version `unreachable_at`."""

    unreachable_at: int | None = None
    killed_at: int | None = None

    async def publish(self, adapter: FakeAdapter) -> Sequence[PublishReport]:
        if adapter.version == self.killed_at:
            await asyncio.sleep(0.2)  # what is written beside the publish is written
            raise KilledError
        if adapter.version == self.unreachable_at:
            raise RuntimeError("a worker was not reached")
        self.version = adapter.version
        return []


class FakeLearner:
    """Counts updates; `fail_at` makes one fail."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.version = 0
        self.fail_at = fail_at
        self.full_disk = False
        self.too_late_at: int | None = None
        self.seen: list[list[str]] = []
        self.values: dict[str, float] = {"loss": 0.5}

    async def update(self, groups_P: Sequence[ScoredGroup]) -> UpdateMetrics:
        if self.version + 1 == self.fail_at:
            raise RuntimeError("the loss is not finite")
        self.seen.append([group.prompt_id for group in groups_P])
        self.version += 1
        if self.version == self.too_late_at:
            raise RemoteTimeoutError("learner-0 did not answer update within 1 s")
        advantages = tuple(tuple(0.0 for _ in group.members) for group in groups_P)
        return UpdateMetrics(
            step=self.version, values=self.values, advantages=advantages, num_tokens=10, num_distinct_tokens=5
        )

    async def export_adapter(self) -> FakeAdapter:
        return FakeAdapter(self.version)

    async def save_checkpoint(self, folder: str, files: Mapping[str, bytes]) -> None:
        if self.full_disk:
            raise DiskFullError("cannot write checkpoint: No space left on device")
        own = ("version", str(self.version).encode())
        write_checkpoint(Path(folder), self.version, [own, *files.items()], keep=2)

    async def load_checkpoint(self, folder: str) -> int:
        self.version = int(Path(folder).name.removeprefix("step-"))
        return self.version


class RecordingReporter:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rows: list[Mapping[str, Any]] = []
        self.evaluations: list[tuple[str, Mapping[str, float], int]] = []
        self.summary: Mapping[str, Any] | None = None
        self.on_step: Callable[[], None] = lambda: None

    def start(self, config: RunConfig, machine_line: str) -> None: ...

    def phase(self, name: str, detail: str = "", total: int | None = None) -> None: ...

    def progress(self, done: int, total: int) -> None: ...

    def example(self, prompt_text: str, completion_text: str, rewards: Mapping[str, float | None]) -> None: ...

    def step(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        self.on_step()

    def note(self, level: str, message: str) -> None:
        self.notes.append(message)

    def evaluation(self, when: str, accuracies: Mapping[str, float], n: int) -> None:
        self.evaluations.append((when, accuracies, n))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.summary = summary

    def close(self) -> None: ...


def record_of(
    step: int,
    groups: Sequence[ScoredGroup],
    prompt_texts: Mapping[str, str] | None = None,
    reward_names: Sequence[str] = ("exact",),
    advantages: tuple[tuple[float | None, ...], ...] = (),
) -> StepRecord:
    """What is recorded of a step that learned from these groups."""
    return StepRecord(
        groups_P=tuple(groups),
        prompt_texts=dict(prompt_texts or {group.prompt_id: "Q" for group in groups}),
        seeds=(None,) * len(groups),
        reward_names=tuple(reward_names),
        update=UpdateMetrics(step=step, advantages=advantages),
        row={"step": step},
        adapter="",
        state=RunState(step=step, cursor=0, pending=(), before=None, tokens={}, seconds={}),
    )
