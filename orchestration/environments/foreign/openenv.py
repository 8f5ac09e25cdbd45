"""An OpenEnv server, by its URL or its image: one WebSocket session for an episode.

Its protocol: `{"type": "reset", "data": {"seed": …}}` and `{"type": "step", "data": ACTION}` are answered with
`{"type": "observation", "data": {"observation": {…}, "reward": …, "done": …}}`, or with an `error` that has a code.
Spoken here and not by its package, whose dependencies hold other versions of what vLLM needs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx

from orchestration.environments.environment import Step
from orchestration.environments.foreign.openenv_image import IMAGE, address_of
from orchestration.errors import ConfigError, one_line
from orchestration.extras import require
from orchestration.types import Problem

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

_NOT_SHOWN = ("done", "reward", "metadata")
_REFUSED, _FULL = "VALIDATION_ERROR", "CAPACITY_REACHED"
_ASKED_S = 10.0
_MAX_BYTES = 16 * 2**20


def check_server(url: str, action_field: str, observation_field: str | None) -> None:
    """Ask a server for the forms of its actions and observations.

    Raises:
        ConfigError: nobody answers there, or they have no such fields.
    """
    address = address_of(url).rstrip("/").replace("ws://", "http://", 1).replace("wss://", "https://", 1)
    try:
        answer = httpx.get(f"{address}/schema", timeout=_ASKED_S, trust_env=False).raise_for_status().json()
        known = {what: answer[what]["properties"] for what in ("action", "observation")}
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"data.url={url!r}: no server of OpenEnv's answers there ({one_line(error)}); start it first, or correct "
            f"the address"
        ) from error
    for what, field in (("action", action_field), ("observation", observation_field)):
        if field is not None and field not in known[what]:
            raise ConfigError(f"data.{what}_field={field!r}: the {what}s of {url} have {', '.join(known[what])}")


class RefusedActionError(Exception):
    """The action does not fit: said to the model."""


class OpenEnvironment:
    """A turn's text is one field of the action; what is shown is one field of the observation, or all of it as JSON."""

    def __init__(self, url: str, action_field: str, observation_field: str | None) -> None:
        require("websockets", by="data=openenv", extra="openenv")
        if not url.startswith((IMAGE, "http://", "https://", "ws://", "wss://")):
            raise ConfigError(f"data.url={url!r} is no address; write http://HOST:PORT, or {IMAGE}NAME")
        self._url = url
        self._action_field, self._observation_field = action_field, observation_field
        self._session: ClientConnection | None = None

    async def reset(self, problem: Problem) -> str:
        from websockets.asyncio.client import connect

        scheme, _, rest = (await asyncio.to_thread(address_of, self._url)).partition("://")
        socket = f"{'wss' if scheme in ('https', 'wss') else 'ws'}://{rest.rstrip('/')}/ws"
        self._session = await connect(socket, max_size=_MAX_BYTES, proxy=None)
        return self._shown((await self._asked("reset", {"seed": int(problem.reference["seed"])}))["observation"])

    async def step(self, action: str) -> Step:
        try:
            said = await self._asked("step", {self._action_field: action})
        except RefusedActionError as error:
            return Step(str(error))
        done, reward = bool(said.get("done")), said.get("reward")
        shown = "" if done else self._shown(said["observation"])
        return Step(shown, reward=None if reward is None else float(reward), done=done)

    async def close(self) -> None:
        from websockets.exceptions import ConnectionClosed

        if self._session is not None:
            with suppress(ConnectionClosed):
                await self._session.send(json.dumps({"type": "close"}))
            await self._session.close()

    async def _asked(self, what: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        from websockets.exceptions import ConnectionClosed

        assert self._session is not None, "reset comes first"
        try:
            with suppress(ConnectionClosed):  # why it was closed may have been said before, and is read next
                await self._session.send(json.dumps({"type": what, "data": data}))
            answer = json.loads(await self._session.recv())
        except ConnectionClosed as error:
            raise RuntimeError(f"the server ended the session: {error}") from error
        found: Mapping[str, Any] = answer.get("data", {})
        if answer.get("type") == "error":
            wrong = [str(one.get("msg")) for one in found.get("errors") or () if isinstance(one, dict)]
            why = one_line(f"{found.get('message', 'it gave no reason')}: {'; '.join(wrong)}".removesuffix(": "))
            if found.get("code") == _FULL:
                why += " (episodes.max_concurrent bounds how many a run opens at once)"
            raise (RefusedActionError if found.get("code") == _REFUSED else RuntimeError)(why)
        return found

    def _shown(self, observation: Mapping[str, Any]) -> str:
        if self._observation_field is None:
            return json.dumps({name: value for name, value in observation.items() if name not in _NOT_SHOWN})
        if self._observation_field not in observation:
            raise ConfigError(
                f"data.observation_field={self._observation_field!r}: an observation has {', '.join(observation)}"
            )
        return str(observation[self._observation_field])
