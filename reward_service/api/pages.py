"""What a person finds at `/`. The pages of the API are made by `fastapi_offline`, which brings their scripts along:
there may be no internet to have them from.
"""

from __future__ import annotations

from html import escape
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

router = APIRouter()

_PLACES: Final = {
    "/docs": "the API, to read and to try",
    "/redoc": "the API, to read",
    "/openapi.json": "the API, for programs",
    "/v1/rewards": "the rewards served here, with their parameters",
    "/healthz": "whether it lives",
    "/readyz": "whether it can score",
    "/metrics": "figures for Prometheus",
}
_POSTS: Final = {
    "/v1/score": "completions by rewards",
    "/get_reward": "OpenRLHF's remote reward; /get_reward/PROFILE by another profile",
    "/rm": "slime's remote reward; /rm/PROFILE by another profile",
    "/test_program": "open-instruct's code_api_url",
}
_WHAT: Final = "This service scores completions by rewards that can be verified, for any trainer."


@router.get("/", include_in_schema=False)
async def what_this_is(request: Request) -> Response:
    """What this is and where to go; as a page for browsers, as JSON for everybody else."""
    about = {"service": "rlvr reward service", "version": request.app.version, "what": _WHAT}
    if "text/html" not in request.headers.get("accept", ""):
        return Response(msgspec.json.encode(about | {"get": _PLACES, "post": _POSTS}), media_type="application/json")
    return Response(_page(about, request.scope.get("root_path", "")), media_type="text/html; charset=utf-8")


def _page(about: dict[str, Any], root: str) -> str:
    links = "".join(
        f'<li><a href="{escape(root + path)}">{path}</a> {escape(text)}</li>' for path, text in _PLACES.items()
    )
    posts = "".join(f"<li><code>POST {path}</code> {escape(text)}</li>" for path, text in _POSTS.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(about['service'])}</title>"
        "<body style='font: 1.1em/1.6 sans-serif; max-width: 44em; margin: 3em auto; padding: 0 1em'>"
        f"<h1>{escape(about['service'])} {escape(about['version'])}</h1><p>{escape(_WHAT)}</p>"
        f"<ul>{links}</ul><p>For trainers:</p><ul>{posts}</ul></body></html>"
    )
