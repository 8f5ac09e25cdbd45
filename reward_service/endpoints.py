"""The endpoints.

The body of POST /v1/score does not go through FastAPI's own parsing and serialisation: pydantic reads the bytes
straight into models (one pass, no dictionaries in between) and orjson writes the answer from dataclasses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from reward_service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    InvalidRequestError,
    LimitExceededError,
    NotReadyError,
)
from reward_service.rewards.base import Reward, Task
from reward_service.schemas import ErrorBody, Health, RewardInfo, RewardList, ScoreItem, ScoreRequest, ScoreResponse
from reward_service.scoring import ChunkRunner, describe, make_plan, score_tasks
from reward_service.settings import ServiceSettings
from reward_service.types import ItemResult, RewardSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What the endpoints share; `app.state.context`."""

    settings: ServiceSettings
    rewards: Mapping[str, Reward]
    runner: ChunkRunner
    version: str


router = APIRouter()

_ERRORS: dict[int | str, dict[str, Any]] = {
    408: {"model": ErrorBody, "description": "The body did not arrive in time."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    422: {"model": ErrorBody, "description": "Not JSON, against the schema, beyond a limit, or an unknown reward."},
    500: {"model": ErrorBody, "description": "A fault of the service."},
}


@router.post(
    "/v1/score",
    summary="Score completions",
    responses={200: {"model": ScoreResponse}, **_ERRORS},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ScoreRequest"}}},
        }
    },
)
async def score(request: Request) -> Response:
    """Applies the rewards to every item. What could not be scored is null with a reason, never 0."""
    context: Context = request.app.state.context
    body = parse_body(await read_body(request, context.settings))
    check_limits(body, context.settings)
    specs = [RewardSpec(name=reward.name, weight=reward.weight, params=reward.params) for reward in body.rewards]
    plan = make_plan(specs, context.rewards)
    tasks = [Task(item.completion, item.reference) for item in body.items]
    scores = await score_tasks(context.runner, plan, tasks, chunk_items=context.settings.chunk_items)
    answer = {
        "results": [
            ItemResult(id=item.id, total=scored.total, rewards=scored.rewards)
            for item, scored in zip(body.items, scores, strict=True)
        ],
        "service": {
            "version": context.version,
            "rewards": {planned.reward.name: planned.reward.version for planned in plan},
        },
    }
    return Response(orjson.dumps(answer), media_type="application/json")


@router.get("/v1/rewards", summary="List the rewards")
async def list_rewards(request: Request) -> RewardList:
    """The rewards with their parameters, ranges and versions."""
    context: Context = request.app.state.context
    infos = [
        RewardInfo(
            name=reward.name,
            description=reward.description,
            range=(reward.low, reward.high),
            params=reward.params.model_json_schema(),
            version=reward.version,
        )
        for reward in context.rewards.values()
    ]
    return RewardList(version=context.version, rewards=infos)


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    """Answers as long as the event loop does."""
    return Health(status="ok")


@router.get("/readyz", summary="Can it score?", responses={503: {"model": ErrorBody, "description": "Not now."}})
async def readyz(request: Request) -> Health:
    """Sends an empty chunk through a scoring thread."""
    context: Context = request.app.state.context
    timeout_s = context.settings.readiness_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            await context.runner.run((), ())
    except TimeoutError:
        raise NotReadyError(f"no scoring thread answered within {timeout_s:g} s") from None
    return Health(status="ok")


async def read_body(request: Request, settings: ServiceSettings) -> bytes:
    """The whole body, if it is small enough and arrives soon enough."""
    limit = settings.max_body_bytes
    declared = request.headers.get("content-length", "")
    too_large = BodyTooLargeError(f"the body is larger than max_body_bytes = {limit}; send fewer items in a request")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise BodyTimeoutError(
            f"the body did not arrive within body_timeout_s = {settings.body_timeout_s:g} s"
        ) from None
    return bytes(body)


def parse_body(body: bytes) -> ScoreRequest:
    """Parses and validates in one pass."""
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        raise InvalidRequestError(describe(error)) from None


def check_limits(body: ScoreRequest, settings: ServiceSettings) -> None:
    """Refuses too many items and texts that are too long, naming the limit."""
    if len(body.items) > settings.max_items:
        raise LimitExceededError(f"{len(body.items)} items are more than max_items = {settings.max_items}; send fewer")
    for index, item in enumerate(body.items):
        if (length := _longest_text(item)) > settings.max_text_chars:
            limit = settings.max_text_chars
            raise LimitExceededError(f"items.{index}: a text of {length} characters is over max_text_chars = {limit}")


def _longest_text(item: ScoreItem) -> int:
    return max(len(item.prompt), len(item.completion))
