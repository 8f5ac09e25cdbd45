"""The application: a service behind its endpoints, error answers, the OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from reward_service.api import openapi, pages
from reward_service.api.endpoints import BARE, router
from reward_service.api.service import RewardService
from reward_service.api.siblings import Siblings
from reward_service.errors import InvalidRequestError, ServiceError
from reward_service.rates import SharedRates
from reward_service.registry import load_rewards
from reward_service.schemas import ErrorBody
from reward_service.settings import ServiceSettings

_MISSED: Final = {
    404: "there is nothing at the path {path}; GET / says what there is, and the setting root_path names the prefix of"
    " a proxy in front",
    405: "the path {path} is not for {method}; GET / says what there is",
}


def create_app(
    settings: ServiceSettings, *, siblings: Siblings | None = None, rates: SharedRates | None = None
) -> FastAPI:
    """The service as an ASGI application. Its workers start with it.

    With `siblings`, and their keys' `rates`, it is one of several processes.

    Raises ServiceStartError or ServiceError for settings that cannot work.
    """
    service = RewardService(settings, load_rewards(settings), service_version(), siblings=siblings, rates=rates)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPIOffline(
        title="Reward service",
        summary="Scores completions by verifiable rewards.",
        version=service.version,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(router)
    app.include_router(pages.router)
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.endpoint in BARE]
    straight = {(method, route.path): route.endpoint for route in routes for method in route.methods}
    app.add_middleware(_Straight, endpoints=straight, root_path=settings.root_path)
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _unexpected_error)

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = openapi.document(app, settings, service.rewards)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way
    return app


class _Straight:
    """The way to the endpoints that take the request alone: past layers of FastAPI and Starlette that they do not use,
    and that take as long as ten items. The prefix of a proxy in front, which may have left it in the path or not, and a
    slash at the end make no difference: a redirect of a POST is more than some clients follow."""

    def __init__(
        self,
        app: ASGIApp,
        endpoints: Mapping[tuple[str, str], Callable[[Request], Awaitable[Response]]],
        root_path: str,
    ) -> None:
        self._app, self._endpoints, self._root = app, endpoints, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if self._root and path.startswith(self._root) and path[len(self._root) :][:1] in ("", "/"):
            path = path[len(self._root) :]
        path = path.rstrip("/") or "/"
        endpoint = self._endpoints.get((scope["method"], path))
        if endpoint is None:
            scope = {**scope, "path": self._root + path, "root_path": self._root}
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except ServiceError as error:
            response = await _service_error(request, error)
        await response(scope, receive, send)


def service_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("rlvr")
    except PackageNotFoundError:  # run from a bare source folder
        return "0+source"


def _error_response(status: int, error: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    body = msgspec.json.encode(ErrorBody(error, detail))
    return Response(body, status, headers=dict(headers or {}), media_type="application/json")


async def _service_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return _error_response(error.status, error.error, str(error), error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    name = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    told = _MISSED.get(error.status_code, str(error.detail))
    told = told.format(method=request.method, path=ascii(request.url.path[:100]))
    return _error_response(error.status_code, name, told, error.headers)


async def _validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
    return _error_response(InvalidRequestError.status, InvalidRequestError.error, told)


async def _unexpected_error(_: Request, error: Exception) -> Response:
    return _error_response(500, ServiceError.error, f"{type(error).__name__}; the service's log says more")
