"""Bodies of the API. Requests refuse unknown fields; limits on sizes are the server's settings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

SCORE_REQUEST_EXAMPLE: dict[str, Any] = {
    "rewards": [{"name": "gsm8k_format"}, {"name": "gsm8k_correctness", "weight": 1.0, "params": {}}],
    "items": [
        {
            "prompt": "Natalia sold 48 clips in April and half as many in May. How many altogether?",
            "completion": "She sold 48 / 2 = 24 in May, 48 + 24 = 72 altogether.\n#### The final answer is 72",
            "reference": {"final_answer": "72"},
            "id": "train-0/3",
            "group": "train-0",
            "metadata": {},
        }
    ],
    "run_id": "arithmetic-1",
    "policy_version": 12,
}
SCORE_RESPONSE_EXAMPLE: dict[str, Any] = {
    "results": [
        {
            "id": "train-0/3",
            "total": 1.5,
            "rewards": {
                "gsm8k_format": {"score": 0.5, "reason": None, "details": {}},
                "gsm8k_correctness": {"score": 1.0, "reason": None, "details": {"extracted": "72"}},
            },
        }
    ],
    "service": {"version": "0.1.0", "rewards": {"gsm8k_format": "9f3c…", "gsm8k_correctness": "51d0…"}},
}


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True)


class RewardRequest(_Request):
    """One reward to be applied to all items."""

    name: str = Field(description="Name of a reward, as listed by GET /v1/rewards.")
    weight: float = Field(1.0, ge=-1e6, le=1e6, allow_inf_nan=False, description="Its weight in the total.")
    params: dict[str, Any] = Field(default_factory=dict, description="Its parameters.")


class ScoreItem(_Request):
    """One completion to be scored."""

    prompt: str = Field("", description="What the model was asked.")
    completion: str = Field(description="What the model wrote.")
    reference: dict[str, Any] | None = Field(None, description="What the rewards check against.")
    id: str = Field("", description="Any string; comes back with the result.")
    group: str | None = Field(None, description="Completions of one prompt share it.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="Not looked at by the built-in rewards.")


class ScoreRequest(_Request):
    """Body of POST /v1/score."""

    model_config = ConfigDict(json_schema_extra={"examples": [SCORE_REQUEST_EXAMPLE]})

    rewards: Annotated[list[RewardRequest], Field(min_length=1, max_length=64, description="Rewards to apply.")]
    # fail_fast: a hostile body of a million wrong items costs one finding, not a million.
    items: Annotated[list[ScoreItem], Field(fail_fast=True, description="Completions to score.")]
    run_id: str | None = Field(None, description="The training run this belongs to.")
    policy_version: int | None = Field(
        None, ge=0, lt=2**63, description="The adapter version that wrote the completions."
    )


class RewardResult(_Response):
    """What one reward says of one item."""

    score: float | None = Field(description="null: could not be scored, which is not the same as 0.")
    reason: str | None = Field(description="Why there is no score: invalid_reference, verifier_error, timeout, …")
    details: dict[str, Any] = Field(description="What the reward found, for people.")


class ScoreResult(_Response):
    """What the rewards say of one item."""

    id: str = Field(description="The item's id.")
    total: float | None = Field(description="Weighted sum of what was scored; null if nothing was.")
    rewards: dict[str, RewardResult] = Field(description="By the rewards' names.")


class ServiceInfo(_Response):
    """Who scored."""

    version: str = Field(description="Version of the service.")
    rewards: dict[str, str] = Field(description="Sha-256 of each applied reward's definition.")


class ScoreResponse(_Response):
    """Answer of POST /v1/score: as many results as items, in their order."""

    results: list[ScoreResult]
    service: ServiceInfo


class RewardInfo(_Response):
    """A reward that this service has."""

    name: str
    description: str
    range: tuple[float, float] = Field(description="Lowest and highest score.")
    params: dict[str, Any] = Field(description="JSON schema of the parameters.")
    version: str = Field(description="Sha-256 of the definition.")


class RewardList(_Response):
    """Answer of GET /v1/rewards."""

    version: str = Field(description="Version of the service.")
    rewards: list[RewardInfo]


class Health(_Response):
    """Answer of GET /healthz and /readyz."""

    status: str = Field(examples=["ok"])


class ErrorBody(_Response):
    """Body of every answer that is an error."""

    error: str = Field(examples=["invalid_request"], description="Name of the error, for programs.")
    detail: str = Field(examples=["items.0.completion: Field required"], description="What is wrong, for people.")
