"""The OpenAPI document: FastAPI knows the paths, msgspec the bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from reward_service import schemas
from reward_service.rewards.base import Reward
from reward_service.settings import ServiceSettings

_BODIES = (
    schemas.ScoreRequest,
    schemas.ScoreResponse,
    schemas.OpenRlhfRequest,
    schemas.OpenRlhfResponse,
    schemas.SlimeRequest,
    schemas.ProgramRequest,
    schemas.ProgramResponse,
    schemas.RewardList,
    schemas.AuditRecords,
    schemas.Health,
    schemas.ErrorBody,
)
_EXAMPLES: dict[str, dict[str, Any]] = {
    "ScoreRequest": schemas.SCORE_REQUEST_EXAMPLE,
    "ScoreResponse": schemas.SCORE_RESPONSE_EXAMPLE,
    "OpenRlhfRequest": schemas.OPENRLHF_REQUEST_EXAMPLE,
    "OpenRlhfResponse": schemas.OPENRLHF_RESPONSE_EXAMPLE,
    "SlimeRequest": schemas.SLIME_REQUEST_EXAMPLE,
    "ProgramRequest": schemas.PROGRAM_REQUEST_EXAMPLE,
}
_ERRORS = {
    401: "No valid API key.",
    404: "There is nothing of that name: no such reward, profile or log.",
    409: "The parts of the body contradict one another, or a label is not what the profile's rewards compare with.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "Not JSON, against the schema, beyond a limit, or an unknown reward.",
    429: "Too much is waiting, or this key's rate is used up; Retry-After says when to come back.",
    500: "A fault of the service.",
    503: "Cannot be answered now: no worker, no audit log, or shutting down.",
}


def returns(body: type, *errors: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` of an endpoint that answers with `body`."""
    answers: dict[int | str, dict[str, Any]] = {200: {"description": "Successful.", **_content(body)}}
    for status in errors:
        answers[status] = {"description": _ERRORS[status], **_content(schemas.ErrorBody)}
    return answers


def takes(body: type) -> dict[str, Any]:
    """FastAPI's `openapi_extra` of an endpoint that reads `body` from the raw request."""
    return {"requestBody": {"required": True, **_content(body)}}


def document(app: FastAPI, settings: ServiceSettings, rewards: Mapping[str, Reward]) -> dict[str, Any]:
    """The document of `app`: with the limits, rewards and profiles of this very service."""
    found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    _, bodies = msgspec.json.schema_components(_BODIES, ref_template="#/components/schemas/{name}")
    for name, example in _EXAMPLES.items():
        bodies[name]["examples"] = [example]
    bodies["RewardRequest"]["oneOf"] = [_asked_for(bodies["RewardRequest"], reward) for reward in rewards.values()]
    bodies["ScoreRequest"]["properties"]["items"]["maxItems"] = settings.max_items
    bodies["OpenRlhfRequest"]["properties"]["query"]["maxItems"] = settings.max_items
    for name, text in (
        ("ScoreItem", "completion"),
        ("ScoreItem", "prompt"),
        ("SlimeRequest", "response"),
        ("ProgramRequest", "program"),
    ):
        bodies[name]["properties"][text]["maxLength"] = settings.max_text_chars
    for path, operations in found["paths"].items():
        if path.endswith("{profile}"):
            operations["post"]["parameters"][0]["schema"]["enum"] = sorted(settings.profiles)
    found.setdefault("components", {})["schemas"] = bodies
    if settings.keys_file is not None:
        found["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "basic": {"type": "http", "scheme": "basic", "description": "The key as password, any user name."},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        found["security"] = [{"bearer": []}, {"basic": []}, {"header": []}]
    return found


def _asked_for(generic: dict[str, Any], reward: Reward) -> dict[str, Any]:
    """What a request for this reward looks like."""
    properties = {**generic["properties"], "name": {"const": reward.name}, "params": reward.params.model_json_schema()}
    return {**generic, "title": reward.name, "description": reward.description, "properties": properties}


def _content(body: type) -> dict[str, Any]:
    schema = {"type": "number"} if body is float else {"$ref": f"#/components/schemas/{body.__name__}"}
    return {"content": {"application/json": {"schema": schema}}}
