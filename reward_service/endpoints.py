"""The endpoints. Bodies are read raw and parsed by msgspec: FastAPI's own parsing and serialisation cost several times
as much as the scoring."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from fastapi import APIRouter, Request, Response

from reward_service import protocols
from reward_service.bodies import parse
from reward_service.errors import NotReadyError, ServiceError
from reward_service.metrics import CONTENT_TYPE
from reward_service.openapi import returns, takes
from reward_service.schemas import (
    Health,
    OpenRlhfRequest,
    OpenRlhfResponse,
    RewardInfo,
    RewardList,
    ScoreRequest,
    ScoreResponse,
    SlimeRequest,
)
from reward_service.service import RewardService
from reward_service.types import RewardSpec

router = APIRouter()
DEFAULT_PROFILE = "gsm8k"


@router.post(
    "/v1/score", responses=returns(ScoreResponse, 401, 408, 413, 422, 429, 500, 503), openapi_extra=takes(ScoreRequest)
)
async def score(request: Request) -> Response:
    """Score completions: applies the rewards to every item. What could not be scored is null with a reason, never 0."""
    service = _service(request)
    async with _answering(request, "/v1/score") as raw:
        body = parse(raw, ScoreRequest)
        specs = tuple(RewardSpec(name=r.name, weight=r.weight, params=r.params) for r in body.rewards)
        scored = await service.score(specs, body.items, run_id=body.run_id, policy_version=body.policy_version)
        return _json(service.encode(scored))


@router.post(
    "/get_reward",
    responses=returns(OpenRlhfResponse, 401, 404, 408, 413, 422, 429, 500, 503),
    openapi_extra=takes(OpenRlhfRequest),
)
async def openrlhf(request: Request) -> Response:
    """OpenRLHF's remote reward, by the profile `gsm8k`."""
    return await openrlhf_profile(request, DEFAULT_PROFILE)


@router.post(
    "/get_reward/{profile}",
    responses=returns(OpenRlhfResponse, 401, 404, 408, 413, 422, 429, 500, 503),
    openapi_extra=takes(OpenRlhfRequest),
)
async def openrlhf_profile(request: Request, profile: str) -> Response:
    """OpenRLHF's remote reward, by a profile of the service's settings."""
    service = _service(request)
    settings, specs = service.profile(profile)
    async with _answering(request, "/get_reward") as raw:
        scored = await service.score(specs, protocols.from_openrlhf(parse(raw, OpenRlhfRequest), settings))
        return _json(msgspec.json.encode(protocols.to_openrlhf(scored.plan, scored.results, settings)))


@router.post("/rm", responses=returns(float, 401, 404, 408, 413, 422, 429, 500, 503), openapi_extra=takes(SlimeRequest))
async def slime(request: Request) -> Response:
    """slime's `--rm-url`, by the profile `gsm8k`."""
    return await slime_profile(request, DEFAULT_PROFILE)


@router.post(
    "/rm/{profile}", responses=returns(float, 401, 404, 408, 413, 422, 429, 500, 503), openapi_extra=takes(SlimeRequest)
)
async def slime_profile(request: Request, profile: str) -> Response:
    """slime's `--rm-url`, by a profile of the service's settings."""
    service = _service(request)
    settings, specs = service.profile(profile)
    async with _answering(request, "/rm") as raw:
        scored = await service.score(specs, protocols.from_slime(parse(raw, SlimeRequest), settings))
        return _json(msgspec.json.encode(protocols.to_slime(scored.plan, scored.results, settings)))


@router.get("/v1/rewards", responses=returns(RewardList, 401, 500))
async def list_rewards(request: Request) -> Response:
    """The rewards with their parameters, ranges and versions."""
    service = _service(request)
    infos = [
        RewardInfo(
            name=reward.name,
            description=reward.description,
            range=(reward.low, reward.high),
            params=reward.params.model_json_schema(),
            version=reward.version,
        )
        for reward in service.rewards.values()
    ]
    return _json(msgspec.json.encode(RewardList(version=service.version, rewards=infos)))


@router.get("/healthz", responses=returns(Health))
async def healthz() -> Response:
    """Is the process alive? Answers as long as the event loop does."""
    return _json(msgspec.json.encode(Health("ok")))


@router.get("/readyz", responses=returns(Health, 503))
async def readyz(request: Request) -> Response:
    """Can it score? There is a worker that no item holds up."""
    if not _service(request).pool.ready:
        raise NotReadyError("no worker can score now: starting, held up by items, or shutting down")
    return _json(msgspec.json.encode(Health("ok")))


@router.get("/metrics", responses={200: {"description": "Prometheus's text format.", "content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Requests, items, seconds a reward takes, queue, workers."""
    return Response(_service(request).metrics.text(), media_type=CONTENT_TYPE)


def _service(request: Request) -> RewardService:
    service = request.app.state.service
    assert isinstance(service, RewardService)
    return service


@asynccontextmanager
async def _answering(request: Request, endpoint: str) -> AsyncIterator[bytes]:
    """The body of a request for scores; counts and times its answer."""
    service = _service(request)
    began, status = time.perf_counter(), 500
    try:
        async with service.bodies.read(request) as raw:
            yield raw
        status = 200
    except ServiceError as error:
        status = error.status
        raise
    finally:
        service.metrics.requests.labels(endpoint, str(status)).inc()
        service.metrics.seconds.labels(endpoint).observe(time.perf_counter() - began)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
