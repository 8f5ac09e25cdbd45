"""Bodies of the API, as msgspec structs: they are what is parsed, and the OpenAPI document is made from them.

msgspec because it is the fastest that also validates: 64 GSM8K items (38 kB) are decoded and checked in 36 µs, by
pydantic in 101 µs. Requests refuse unknown fields; how many items and how long a
text may be is for the server's settings to say.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from reward_service.types import ANSWER_PREFIX, ReferenceKeys

SCORE_REQUEST_EXAMPLE: dict[str, Any] = {
    "rewards": [{"name": "gsm8k_format"}, {"name": "gsm8k_correctness", "weight": 1.0, "params": {}}],
    "items": [
        {
            "prompt": "Natalia sold 48 clips in April and half as many in May. How many altogether?",
            "completion": f"She sold 48 / 2 = 24 in May, 48 + 24 = 72 altogether.\n{ANSWER_PREFIX} 72",
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
OPENRLHF_REQUEST_EXAMPLE: dict[str, Any] = {
    "query": [f"What is 48 + 24?\n48 + 24 = 72\n{ANSWER_PREFIX} 72"],
    "prompts": ["What is 48 + 24?\n"],
    "labels": ["72"],
}
OPENRLHF_RESPONSE_EXAMPLE: dict[str, Any] = {
    "rewards": [1.5],
    "scores": [1.0],
    "extra_logs": {"gsm8k_format": [0.5], "gsm8k_correctness": [1.0]},
}
SLIME_REQUEST_EXAMPLE: dict[str, Any] = {
    "prompt": "What is 48 + 24?",
    "response": f"48 + 24 = 72\n{ANSWER_PREFIX} 72",
    "label": "72",
}
PROGRAM_REQUEST_EXAMPLE: dict[str, Any] = {
    "program": "def add(a, b):\n    return a + b",
    "tests": ["assert add(1, 2) == 3", "assert add(0, 0) == 1"],
    "max_execution_time": 1.0,
}

Weight = Annotated[float, Meta(ge=-1e6, le=1e6, description="Its weight in the total.")]
_VERSION = "The adapter version that wrote the completions."
# JSON knows no integers: to a JSON schema, and to some clients' encoders, 12.0 is one.
PolicyVersion = (
    Annotated[int, Meta(ge=0, le=2**63 - 1, description=_VERSION)]
    | Annotated[float, Meta(ge=0, le=2.0**63 - 1024, multiple_of=1, description=_VERSION)]
)


class RewardRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """One reward to be applied to all items."""

    name: Annotated[str, Meta(description="Name of a reward, as listed by GET /v1/rewards.")]
    weight: Weight = 1.0
    params: Annotated[dict[str, Any], Meta(description="Its parameters.")] = field(default_factory=dict)


class ScoreItem(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One completion to be scored."""

    completion: Annotated[str, Meta(description="What the model wrote.")]
    prompt: Annotated[str, Meta(description="What the model was asked.")] = ""
    reference: Annotated[dict[str, Any] | None, Meta(description="What the rewards check against.")] = None
    id: Annotated[str, Meta(description="Any string; comes back with the result.")] = ""
    group: Annotated[str | None, Meta(description="Completions of one prompt share it.")] = None
    metadata: Annotated[dict[str, Any], Meta(description="For rewards of your own.")] = field(default_factory=dict)


class UnreadableItem(ScoreItem, frozen=True):
    """An item that holds what cannot be read, such as half of a surrogate pair: it has no score, the others have."""

    problem: str = ""


class ScoreRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/score."""

    rewards: Annotated[list[RewardRequest], Meta(min_length=1, max_length=64, description="Rewards to apply.")]
    items: Annotated[list[ScoreItem], Meta(description="Completions to score.")]
    run_id: Annotated[str | None, Meta(description="The training run this belongs to.")] = None
    policy_version: PolicyVersion | None = None


class RewardResult(Struct, frozen=True):
    """What one reward says of one item."""

    score: Annotated[float | None, Meta(description="null: could not be scored, which is not the same as 0.")]
    reason: Annotated[
        str | None, Meta(description="Why there is no score: invalid_reference, verifier_error, timeout, …")
    ]
    details: Annotated[dict[str, Any], Meta(description="What the reward found, for people.")]


class ScoreResult(Struct, frozen=True):
    """What the rewards say of one item."""

    id: Annotated[str, Meta(description="The item's id.")]
    total: Annotated[float | None, Meta(description="Weighted sum of what was scored; null if nothing was.")]
    rewards: Annotated[dict[str, RewardResult], Meta(description="By the rewards' names.")]


class ServiceInfo(Struct, frozen=True):
    """Who scored."""

    version: Annotated[str, Meta(description="Version of the service.")]
    rewards: Annotated[dict[str, str], Meta(description="Sha-256 of each applied reward's definition.")]


class ScoreResponse(Struct, frozen=True):
    """Answer of POST /v1/score: as many results as items, in their order."""

    results: list[ScoreResult]
    service: ServiceInfo


class OpenRlhfRequest(Struct, frozen=True):
    """Body of POST /get_reward, as OpenRLHF sends it; more fields are passed over, as its versions differ in them."""

    query: Annotated[list[str], Meta(description="Prompt and completion together, an item each.")]
    prompts: Annotated[
        list[str] | None, Meta(description="The prompts alone; one that does not lead its query is a fault.")
    ] = None
    labels: Annotated[
        list[Any] | None, Meta(description="What the completions are compared with, an item each; null: nothing.")
    ] = None


class OpenRlhfResponse(Struct, frozen=True, omit_defaults=True):
    """Answer of POST /get_reward."""

    rewards: Annotated[list[float], Meta(description="The weighted totals.")]
    scores: Annotated[
        list[float],
        Meta(description="The totals as a share of the highest possible, in [0, 1]; -1e6: to be left out."),
    ]
    extra_logs: Annotated[dict[str, list[float]], Meta(description="Each reward's score, an item each.")]
    unscored: Annotated[
        dict[str, str], Meta(description="Why items have no score, by their index; left out if all have one.")
    ] = field(default_factory=dict)


class SlimeRequest(Struct, frozen=True):
    """Body of POST /rm, as slime's `--rm-url` sends it; more fields are passed over."""

    prompt: Annotated[str | list[dict[str, Any]], Meta(description="Text, or chat messages.")]
    response: Annotated[str, Meta(description="What the model wrote.")]
    label: Annotated[Any, Meta(description="What it is compared with.")] = None


class ProgramRequest(Struct, frozen=True):
    """Body of POST /test_program and /test_program_stdio, as open-instruct's `code_api_url` gets it."""

    program: Annotated[str, Meta(description="Python code.")]
    tests: Annotated[Any, Meta(description="Assertions, or objects of `input` and `output`; or either as JSON text.")]
    max_execution_time: Annotated[float, Meta(gt=0, le=3600, description="Seconds for a test.")] = 1.0


class ProgramResponse(Struct, frozen=True):
    """Answer of POST /test_program and /test_program_stdio."""

    results: Annotated[list[int], Meta(description="1 for a test that passed, else 0.")]
    runtimes: Annotated[list[float], Meta(description="Seconds, the mean over all tests; -1 where a test failed.")]


class RewardInfo(Struct, frozen=True):
    """A reward that this service has."""

    name: str
    description: str
    range: Annotated[tuple[float, float], Meta(description="Lowest and highest score.")]
    params: Annotated[dict[str, Any], Meta(description="JSON schema of the parameters.")]
    reference: Annotated[
        ReferenceKeys | None, Meta(description="Keys of a reference that it reads, by its parameters' defaults.")
    ]
    version: Annotated[str, Meta(description="Sha-256 of the definition.")]


class RewardList(Struct, frozen=True):
    """Answer of GET /v1/rewards."""

    version: Annotated[str, Meta(description="Version of the service.")]
    rewards: list[RewardInfo]


class AuditRecords(Struct, frozen=True):
    """Answer of GET /v1/audit."""

    records: Annotated[list[dict[str, Any]], Meta(description="The decisions, newest first.")]


class Health(Struct, frozen=True):
    """Answer of GET /healthz and /readyz."""

    status: Annotated[str, Meta(examples=["ok"])]


class ErrorBody(Struct, frozen=True):
    """Body of every answer that is an error."""

    error: Annotated[str, Meta(description="Name of the error, for programs.", examples=["invalid_request"])]
    detail: Annotated[str, Meta(description="What is wrong, for people.")]
