"""The endpoints. Bodies are read raw and parsed by msgspec: FastAPI's own parsing and serialisation cost several times
as much as the scoring."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Request, Response

from reward_service.api import protocols
from reward_service.api.bodies import parse_beside, parse_openrlhf_beside, parse_slime_beside, unreadable
from reward_service.api.metrics import CONTENT_TYPE
from reward_service.api.openapi import returns, takes
from reward_service.errors import NotReadyError, ServiceError
from reward_service.rates import Caller
from reward_service.schemas import (
    AuditRecords,
    Health,
    OpenRlhfRequest,
    OpenRlhfResponse,
    ProgramRequest,
    ProgramResponse,
    RewardInfo,
    RewardList,
    ScoreRequest,
    ScoreResponse,
    SlimeRequest,
)
from reward_service.types import RewardSpec

if TYPE_CHECKING:
    from reward_service.api.service import RewardService, Scored

router = APIRouter()
DEFAULT_PROFILE: Final = "gsm8k"
OPEN: Final[dict[str, Any]] = {"security": []}
"""Of endpoints that ask for no key."""
REFUSALS: Final = (401, 404, 408, 409, 413, 415, 422, 429, 500, 503)


@router.post(
    "/v1/score",
    responses=returns(ScoreResponse, *REFUSALS),
    openapi_extra=takes(ScoreRequest),
)
async def score(request: Request) -> Response:
    """Score completions: applies the rewards to every item. What could not be scored is null with a reason, never 0."""
    service = _service(request)
    async with _answering(request, "/v1/score") as (caller, raw):
        body = await parse_beside(raw, ScoreRequest)
        specs = tuple(RewardSpec(name=r.name, weight=r.weight, params=r.params) for r in body.rewards)
        version = None if body.policy_version is None else int(body.policy_version)
        tokens = service.settings.end_tokens
        items = protocols.with_stripped_ends(body.items, tokens) if tokens else body.items
        scored = await service.score(
            caller, specs, items, num_bytes=len(raw), run_id=body.run_id, policy_version=version
        )
        return _json(service.encode(scored))


@router.post(
    "/get_reward",
    responses=returns(OpenRlhfResponse, *REFUSALS),
    openapi_extra=takes(OpenRlhfRequest),
)
async def openrlhf(request: Request) -> Response:
    """OpenRLHF's remote reward, by the profile `gsm8k`."""
    return await openrlhf_profile(request, DEFAULT_PROFILE)


@router.post(
    "/get_reward/{profile}",
    responses=returns(OpenRlhfResponse, *REFUSALS),
    openapi_extra=takes(OpenRlhfRequest),
)
async def openrlhf_profile(request: Request, profile: str) -> Response:
    """OpenRLHF's remote reward, by a profile of the service's settings."""
    service = _service(request)
    settings, specs = service.profile(profile)
    async with _answering(request, "/get_reward") as (caller, raw):
        body, problems = await parse_openrlhf_beside(raw)
        items = protocols.from_openrlhf(body, settings)
        scored = await service.score(
            caller, specs, unreadable(items, problems) if problems else items, num_bytes=len(raw)
        )
        losses = _losses(service, profile, scored)
        return _json(msgspec.json.encode(protocols.to_openrlhf(scored.plan, scored.results, losses, settings)))


@router.post("/rm", responses=returns(float, *REFUSALS), openapi_extra=takes(SlimeRequest))
async def slime(request: Request) -> Response:
    """slime's `--rm-url`, by the profile `gsm8k`."""
    return await slime_profile(request, DEFAULT_PROFILE)


@router.post(
    "/rm/{profile}",
    responses=returns(float, *REFUSALS),
    openapi_extra=takes(SlimeRequest),
)
async def slime_profile(request: Request, profile: str) -> Response:
    """slime's `--rm-url`, by a profile of the service's settings."""
    service = _service(request)
    settings, specs = service.profile(profile)
    async with _answering(request, "/rm") as (caller, raw):
        body, problems = await parse_slime_beside(raw)
        items = protocols.from_slime(body, settings)
        scored = await service.score(
            caller, specs, unreadable(items, problems) if problems else items, num_bytes=len(raw)
        )
        losses = _losses(service, profile, scored)
        response = _json(msgspec.json.encode(protocols.to_slime(scored.results, losses, settings)))
        for loss in losses.values():  # a bare number has no room for it
            response.headers["x-reward-unscored"] = ascii(str(loss))[1:-1]
        return response


@router.post("/test_program", responses=returns(ProgramResponse, *REFUSALS), openapi_extra=takes(ProgramRequest))
async def test_program(request: Request) -> Response:
    """open-instruct's `code_api_url`: a program against assertions, by the reward `code`."""
    return await _test_program(request, stdio=False)


@router.post("/test_program_stdio", responses=returns(ProgramResponse, *REFUSALS), openapi_extra=takes(ProgramRequest))
async def test_program_stdio(request: Request) -> Response:
    """open-instruct's `code_api_url` for programs that read standard input and print."""
    return await _test_program(request, stdio=True)


async def _test_program(request: Request, *, stdio: bool) -> Response:
    service = _service(request)
    async with _answering(request, "/test_program") as (caller, raw):
        specs, items = protocols.from_open_instruct(await parse_beside(raw, ProgramRequest), stdio=stdio)
        began = time.perf_counter()
        scored = await service.score(caller, specs, items, num_bytes=len(raw))
        seconds = (time.perf_counter() - began) / len(items)
        for loss in _losses(service, "/test_program", scored).values():
            raise protocols.error_of(loss)
        passed = [int(result.total or 0) for result in scored.results]
        return _json(msgspec.json.encode(ProgramResponse(passed, [seconds if one else -1.0 for one in passed])))


@router.get("/v1/rewards", responses=returns(RewardList, 401, 500))
async def list_rewards(request: Request) -> Response:
    """The rewards with their parameters, ranges and versions."""
    service = _service(request)
    _identify(request)
    infos = [
        RewardInfo(
            name=reward.name,
            description=reward.description,
            range=(reward.low, reward.high),
            params=reward.params.model_json_schema(),
            reference=reward.reference_keys(),
            version=reward.version,
        )
        for reward in service.rewards.values()
    ]
    return _json(msgspec.json.encode(RewardList(version=service.version, rewards=infos)))


@router.get("/v1/audit", responses=returns(AuditRecords, 401, 404, 422, 500, 503))
async def audit(
    request: Request,
    run_id: Annotated[str | None, Query(description="The run; without it, requests that named none.")] = None,
    id: Annotated[str | None, Query(description="The item's id; without it, all items.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most records.")] = 100,
) -> Response:
    """Why an item has its score: the recorded decisions, newest first; with API keys, those of the caller alone."""
    records = await _service(request).explain(_identify(request), run_id, id, limit)
    return _json(msgspec.json.encode(AuditRecords(records)))


@router.get("/healthz", responses=returns(Health), openapi_extra=OPEN)
async def healthz(request: Request) -> Response:
    """Is the process alive? Answers as long as the event loop does."""
    return _json(msgspec.json.encode(Health("ok")))


@router.get("/readyz", responses=returns(Health, 503), openapi_extra=OPEN)
async def readyz(request: Request) -> Response:
    """Can it score? There is a worker that no item holds up."""
    if (why := _service(request).unready) is not None:
        raise NotReadyError(why)
    return _json(msgspec.json.encode(Health("ok")))


@router.get(
    "/metrics",
    responses={200: {"description": "Prometheus's text format.", "content": {"text/plain": {}}}},
    openapi_extra=OPEN,
)
async def metrics(request: Request) -> Response:
    """Requests, items, seconds a reward takes, queue, workers."""
    return Response(await _service(request).metrics_text(), media_type=CONTENT_TYPE)


BARE: Final = (score, openrlhf, slime, healthz)
"""Endpoints that read nothing by FastAPI: they take the request alone."""


def _losses(service: RewardService, profile: str, scored: Scored) -> dict[int, protocols.Loss]:
    """What could not be scored; said in the log and in the metrics, as the trainer's own log shows none of it."""
    losses = protocols.losses_in(scored.plan, scored.results)
    for loss in losses.values():
        service.metrics.unscorable.labels(profile, loss.reward, loss.reason).inc()
        service.unscorable_log.tell(profile, loss.reason, str(loss))
    return losses


def _service(request: Request) -> RewardService:
    service: RewardService = request.app.state.service
    return service


def _identify(request: Request) -> Caller:
    return _service(request).identify(request.headers.get("authorization"), request.headers.get("x-api-key"))


@asynccontextmanager
async def _answering(request: Request, endpoint: str) -> AsyncIterator[tuple[Caller, bytes]]:
    """Who asks for scores, and the body; counts and times the answer."""
    service = _service(request)
    began, status = time.perf_counter(), 500
    try:
        caller = _identify(request)
        async with service.bodies.read(request) as raw:
            with service.bodies.wanted(request):
                yield caller, raw
        status = 200
    except ServiceError as error:
        status = error.status
        if endpoint != "/v1/score":  # whose clients show their users what they are told
            service.unscorable_log.tell(endpoint, error.error, f"status {status}, {error}")
        raise
    finally:
        service.metrics.answered(endpoint, status, time.perf_counter() - began)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
