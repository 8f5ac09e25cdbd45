"""Between 0 and 1 by a language model's grade: it reads the completion and grades it by the rubric of the request.

The model is asked `num_samples` times for `{"reasoning", "score"}` with a score on the rubric's `scale`; the aggregate
of the scores (mean, median, or the most frequent one, of several equally frequent ones the lowest) is mapped linearly
from the scale to [0, 1]. Details give the aggregate, the votes and how far they disagree (population standard
deviation, least and greatest), all on the rubric's scale, and the reasoning of a vote nearest to the aggregate.

There is no score, and never a 0, where fewer than `quorum` answers are what was asked for (`verifier_error`), where the
endpoint cannot be reached (`unavailable`) or does not answer in time (`timeout`). The same question asked again is
answered from memory.

With a `gate`, a verifiable reward has the first word: where it scores below its `threshold` the judge's score is 0
without a call, and where it has no score the judge has none either, for the same reason.

What the gate is for: the completion is shown to the model as data, between marks that it cannot know, and only the
model's own message is read, so a completion can neither forge an answer nor break out of its place. It can still
*persuade*: language models believe confident nonsense, like long answers, and follow instructions that they were told
not to follow. A policy that is trained against a judge finds these weaknesses. Gate it by something that can be
verified, keep its weight small beside that, and watch the disagreement.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reward_service.judging.settings import JudgeSettings
from reward_service.rewards.base import NotScorableError, Reference, Reward, RewardParams, definition_hash
from reward_service.types import JUDGE, Reason, ReferenceKeys, RewardScore

NAME: Final = JUDGE

_End = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class NotAskedError(NotScorableError):
    """A judge is asked by the server, which is where the endpoint is known."""

    reason = Reason.UNAVAILABLE


class Gate(BaseModel):
    """A verifiable reward that the judge does not pay against."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="A reward of this service that is no judge.")
    params: Mapping[str, Any] = Field(default_factory=dict, description="Its parameters.")
    threshold: float = Field(
        1.0, ge=-1e6, le=1e6, allow_inf_nan=False, description="Where it scores less, the judge's score is 0."
    )


class Params(RewardParams):
    """Parameters of `judge`."""

    rubric: str = Field(min_length=1, max_length=20_000, description="What earns how much, in plain words.")
    scale: tuple[_End, _End] = Field((0.0, 10.0), description="Worst and best score of the rubric.")
    num_samples: int = Field(1, ge=1, le=64, description="How often the judge is asked.")
    temperature: float | None = Field(
        None, ge=0.0, le=2.0, allow_inf_nan=False, description="null: 0 for one sample, 0.7 for several."
    )
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="Seed of the first sample; the others count up.")
    aggregate: Literal["mean", "median", "majority"] = Field("mean", description="How one score comes of several.")
    quorum: int | None = Field(None, ge=1, le=64, description="Answers that must count; null: more than half.")
    show_prompt: bool = Field(True, description="Show the judge the item's prompt.")
    show_reference: bool = Field(False, description="Show the judge the item's reference, as JSON.")
    gate: Gate | None = Field(None, description="A verifiable reward that must not say wrong.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        low, high = self.scale
        if not low < high:
            raise ValueError(f"scale [{low:g}, {high:g}] does not go up")
        if self.quorum is not None and self.quorum > self.num_samples:
            raise ValueError(f"quorum={self.quorum} is more than num_samples={self.num_samples}")
        return self

    @property
    def needed(self) -> int:
        """How many answers must count."""
        return self.quorum if self.quorum is not None else self.num_samples // 2 + 1

    @property
    def sampling_temperature(self) -> float:
        """What the endpoint is told."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.num_samples == 1 else 0.7


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeReward(Reward):
    """A judge at the endpoint of the server's configuration."""

    settings: JudgeSettings

    @cached_property
    def version(self) -> str:
        """Sha-256 of the definition and of what decides the judge's answers: endpoint, model, fields of the call."""
        asked = self.settings.model_dump(
            mode="json", include={"base_url", "model", "max_tokens", "response_format", "extra_body"}
        )
        definition = definition_hash("reward_service.judging.grade", libraries=("jsonschema",))
        return hashlib.sha256(f"{definition}\0{json.dumps(asked, sort_keys=True)}".encode()).hexdigest()


def score(completion: str, reference: Reference, params: Params) -> RewardScore:
    """Always NotAskedError: see `reward_service.judging.grade`."""
    raise NotAskedError("a judge is asked by the server, not by a worker process")


def make_judge_reward(settings: JudgeSettings) -> JudgeReward:
    """`judge` as a server's configuration has it."""
    return JudgeReward(
        name=NAME, params=Params, score=score, keys=ReferenceKeys(), deadline_s=settings.deadline_s, settings=settings
    )
