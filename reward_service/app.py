"""The application: endpoints, error answers, OpenAPI document."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from reward_service.endpoints import Context, router
from reward_service.errors import ServiceError
from reward_service.rewards import BUILTIN_REWARDS
from reward_service.rewards.base import Reward
from reward_service.schemas import SCORE_RESPONSE_EXAMPLE, ScoreRequest
from reward_service.scoring import ThreadRunner
from reward_service.settings import ServiceSettings

logger = logging.getLogger(__name__)


def create_app(settings: ServiceSettings, *, rewards: Mapping[str, Reward] = BUILTIN_REWARDS) -> FastAPI:
    """The service as an ASGI application, serving `rewards`. Threads start with the first request."""
    runner = ThreadRunner(settings.num_threads)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for reward in rewards.values():
            logger.info(
                "reward %s %s", reward.name, reward.version
            )  # and the versions are worked out before any request
        yield
        runner.close()

    app = FastAPI(
        title="Reward service",
        summary="Scores completions by verifiable rewards.",
        version=service_version(),
        lifespan=lifespan,
    )
    app.state.context = Context(settings=settings, rewards=rewards, runner=runner, version=app.version)
    app.include_router(router)
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    _document_request(app)
    return app


def service_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("rlvr")
    except PackageNotFoundError:  # run from a bare source folder
        return "0+source"


def _document_request(app: FastAPI) -> None:
    """Adds the request's schema to the OpenAPI document; FastAPI does not know it, as the endpoint reads raw bytes."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            schema = ScoreRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas = document["components"]["schemas"]
            schemas |= {**schema.pop("$defs"), "ScoreRequest": schema}
            schemas["ScoreResponse"]["examples"] = [SCORE_RESPONSE_EXAMPLE]  # FastAPI drops nulls, which mean something
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _error_response(status: int, error: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    body = orjson.dumps({"error": error, "detail": detail})
    return Response(body, status, headers=headers, media_type="application/json")


async def _service_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return _error_response(error.status, error.error, str(error))


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    name = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return _error_response(error.status_code, name, str(error.detail), error.headers)


async def _unexpected_error(_: Request, error: Exception) -> Response:
    return _error_response(500, ServiceError.error, f"{type(error).__name__}; the service's log says more")
