"""What stands in for engines and learner where only the driver is measured. No Ray here."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Sequence

import numpy as np

from learner.types import ScoredCompletion, ScoredGroup, UpdateMetrics
from orchestration.run.ports import Scorer
from orchestration.types import BuiltPrompt, Problem
from rollout_server.arrays import Logprobs, TokenIds
from rollout_server.types import (
    ADAPTER_WEIGHTS,
    AdapterPayload,
    AdapterProbe,
    Completion,
    FinishReason,
    Prompt,
)

_PROMPT_TOKENS = 200
_VOCABULARY = 150_000
_SEED = 0
_PROBED = 8
"""Predictions of a probe."""


def random_completion(length: int, seed: int) -> Completion:
    """Of so many tokens."""
    random = np.random.default_rng(seed)
    return Completion(
        prompt_id="",
        token_ids=TokenIds(random.integers(0, _VOCABULARY, length).tolist()),
        sampling_logprobs=Logprobs((-random.exponential(size=length).astype(np.float32)).tolist()),
        text="".join(random.choice(list("abcdefghij klmnop"), 4 * length).tolist()),
        finish_reason=FinishReason.STOP,
        adapter_version=0,
    )


class StubRank:
    """Answers for the learner."""

    def __init__(self) -> None:
        self._steps, self._adapter = 0, b""

    async def update(self, batch: bytes, max_staleness: int, step: int) -> UpdateMetrics:
        del max_staleness
        groups: Sequence[ScoredGroup] = pickle.loads(batch)
        self._steps += 1
        tokens = sum(len(member.completion.token_ids) for group in groups for member in group.members)
        advantages = tuple(tuple(member.total for member in group.members) for group in groups)
        return UpdateMetrics(step=step, num_tokens=tokens, advantages=advantages, seconds=1.0)

    async def grow(self, num_bytes: int) -> None:
        """So large are its adapters from now on."""
        self._adapter = os.urandom(num_bytes)

    async def export_adapter(self) -> tuple[int, AdapterPayload]:
        files = ((ADAPTER_WEIGHTS, self._adapter),)
        return self._steps, AdapterPayload(version=self._steps, files=files, probe_token_ids=(1,) * _PROBED)

    async def probe_adapter(self) -> AdapterProbe:
        said = (-1.0,) * _PROBED
        return AdapterProbe(version=self._steps, training_logprobs=said, base_training_logprobs=said, tolerance=1.0)

    async def heartbeat(self) -> int:
        return self._steps


class CountingScorer:
    """The driver's scorer, and how many groups it was left."""

    def __init__(self, inner: Scorer) -> None:
        self._inner, self.reward_names, self.num_groups = inner, inner.reward_names, 0

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        self.num_groups += 1
        return await self._inner.score(problem, prompt_text, completions)


class NewProblems:
    """Prompts that are ready, of which few share their tokens."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        random = np.random.default_rng(_SEED)
        self._tokens = [TokenIds(random.integers(0, _VOCABULARY, _PROMPT_TOKENS).tolist()) for _ in range(256)]

    def next(self) -> BuiltPrompt:
        number = next(self._numbers)
        name, tokens = f"problem-{number}", self._tokens[number % len(self._tokens)]
        problem = Problem(problem_id=name, question=name, reference={"final_answer": "1"})
        return BuiltPrompt(problem=problem, prompt=Prompt(prompt_id=name, token_ids=tokens), text=name)
