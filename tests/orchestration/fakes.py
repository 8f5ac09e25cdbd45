"""Scripted stand-ins for the rooms; pure logic only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from learner.types import ScoredCompletion
from orchestration.ports import BuiltPrompt, Problem
from rollout_server.types import Completion, FinishReason, Prompt, SamplingParams


class FakeSource:
    """Problems p0, p1, p2 …"""

    def __init__(self) -> None:
        self.position = 0

    def next(self) -> BuiltPrompt:
        name = f"p{self.position}"
        self.position += 1
        problem = Problem(problem_id=name, question=name, final_answer="1")
        return BuiltPrompt(problem=problem, prompt=Prompt(prompt_id=name, token_ids=(1,)), text=name)


class FakeGenerator:
    """Answers when the test says so; `version` is what new groups are sampled from."""

    def __init__(self) -> None:
        self.version = 0
        self.started: list[str] = []
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

    def phase(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()
