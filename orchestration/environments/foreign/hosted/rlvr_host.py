"""Plays episodes of one environment of `verifiers` for somebody who has the model: `rlvr_host.py CONFIG`.

CONFIG is the environment's own (`EnvConfig`) as JSON. Once it is loaded a line of JSON says the `port` on loopback, or
the `error`; the end of standard input ends the process. All bodies are JSON:

    GET /tasks?count=N          the first N tasks: `prompt`, a text or messages, and `system_prompt`
    POST /episodes              begins task number `task`, of at most `max_turns` turns
    POST /episodes/ID           answers the open request of the model with `message`
    DELETE /episodes/ID         ends an episode, whatever it does

An episode answers with what comes next: `messages` and `tools` of a request of the model, or `reward` when it is over,
or `error`. The environment plays by itself, and asks the model at /episodes/ID/v1, as it would ask any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from typing import Any

import verifiers.v1 as vf
from aiohttp import web
from verifiers.v1.configs.agent import agent_config_fields

_MAX_BODY = 64 * 2**20


class Playing:
    """One episode under way: requests of the model wait here until they are answered."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[dict[str, Any]]]] = asyncio.Queue()
        self.open: asyncio.Future[dict[str, Any]] | None = None
        self.task: asyncio.Task[dict[str, Any]] | None = None

    async def next(self) -> dict[str, Any]:
        """The next request, or how the episode ended."""
        assert self.task is not None
        asking = asyncio.ensure_future(self.asked.get())
        await asyncio.wait((asking, self.task), return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            body, self.open = asking.result()
            return {"messages": body["messages"], "tools": body.get("tools") or []}
        asking.cancel()
        return self.task.result()


class Host:
    """One environment and its episodes."""

    def __init__(self, env: vf.Env, seat: str) -> None:
        self.env, self._seat = env, seat
        self._left = iter(env.taskset)
        self._tasks: list[vf.Task] = []
        self._playing: dict[str, Playing] = {}
        self._numbers = itertools.count()
        self.port = 0

    def routes(self) -> list[web.RouteDef]:
        one = "/episodes/{episode}"
        return [
            web.get("/tasks", self.tasks),
            web.post("/episodes", self.begin),
            web.post(one, self.answer),
            web.delete(one, self.end),
            web.post(f"{one}/v1/chat/completions", self.complete),
        ]

    async def tasks(self, request: web.Request) -> web.Response:
        count = int(request.query["count"])
        self._tasks += itertools.islice(self._left, max(0, count - len(self._tasks)))
        return web.json_response({"tasks": [_shown(task.data) for task in self._tasks[:count]]})

    async def begin(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if (most := asked.get("max_turns")) is not None:
            seat = agent_config_fields(self.env.config)[self._seat]
            seat.max_turns = most if seat.max_turns is None else min(most, seat.max_turns)
        name = str(next(self._numbers))
        playing = self._playing[name] = Playing()
        playing.task = asyncio.ensure_future(self._played(name, self._tasks[asked["task"]]))
        return web.json_response({"episode": name, **await playing.next()})

    async def answer(self, request: web.Request) -> web.Response:
        playing = self._playing[request.match_info["episode"]]
        if playing.open is not None and not playing.open.done():
            playing.open.set_result((await request.json())["message"])
        return web.json_response(await playing.next())

    async def end(self, request: web.Request) -> web.Response:
        playing = self._playing.pop(request.match_info["episode"], None)
        if playing is not None and playing.task is not None:
            playing.task.cancel()
            await asyncio.wait((playing.task,))
        return web.json_response({})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """The model's endpoint, as the environment sees it."""
        body = await request.json()
        answered: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        await self._playing[request.match_info["episode"]].asked.put((body, answered))
        message = await answered
        if not body.get("stream"):
            return web.json_response(_completion(message, "chat.completion", "message", _finish(message)))
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        calls = [{"index": index, **call} for index, call in enumerate(message.get("tool_calls") or [])]
        delta = message | ({"tool_calls": calls} if calls else {})
        for part, finish in ((delta, None), ({}, _finish(message))):
            chunk = _completion(part, "chat.completion.chunk", "delta", finish)
            await stream.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await stream.write(b"data: [DONE]\n\n")
        return stream

    async def _played(self, name: str, task: vf.Task) -> dict[str, Any]:
        endpoint = f"http://127.0.0.1:{self.port}/episodes/{name}/v1"
        client = vf.EvalClientConfig(base_url=endpoint, api_key_var="RLVR_NO_KEY")
        (slot,) = self.env.slots(task)
        try:
            episode = await self.env.run_slot(slot, vf.ModelContext(model="rlvr", client=client))
        except Exception as error:  # environments of many authors
            return {"error": f"{type(error).__name__}: {error}"}
        wrong = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        if not episode.ok or not episode.traces:
            return {"error": f"{wrong[-1].type}: {wrong[-1].message}" if wrong else "it did not end as it should"}
        return {"reward": sum(trace.reward for trace in episode.traces)}


def _shown(data: vf.TaskData) -> dict[str, Any]:
    prompt = data.prompt
    if prompt is not None and not isinstance(prompt, str):
        prompt = [message.model_dump(exclude_none=True) for message in prompt]
    return {"prompt": prompt, "system_prompt": data.system_prompt}


def _finish(message: dict[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


def _completion(said: dict[str, Any], kind: str, field: str, finish: str | None) -> dict[str, Any]:
    choice = {"index": 0, field: said, "finish_reason": finish}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}  # counted where the tokens are
    return {"id": "rlvr", "object": kind, "created": 0, "model": "rlvr", "choices": [choice], "usage": usage}


def _loaded(raw: dict[str, Any]) -> tuple[vf.Env, str]:
    """The environment and its agent's seat. What neither it nor the settings choose runs here, in this process."""
    taskset = raw["taskset"]["id"]
    fields = vf.env_config_type(taskset, raw.get("id", "")).model_fields
    seats = {name: field.default for name, field in fields.items() if isinstance(field.default, vf.AgentConfig)}
    if len(seats) != 1:
        raise ValueError(f"it has the agents {', '.join(seats)}, and one model can learn from one")
    ((seat, default),) = seats.items()
    own = raw.setdefault(seat, {})
    if default.harness is None and vf.default_harness_id(taskset) != taskset:
        own.setdefault("harness", {"id": "rlvr_chat"})
    if "runtime" not in default.model_fields_set:
        own.setdefault("runtime", {"type": "subprocess"})
    return vf.load_environment(vf.resolve_env_config(raw)), seat


async def _serve(config: dict[str, Any], tell: Any) -> None:
    host = Host(*_loaded(config))
    app = web.Application(client_max_size=_MAX_BODY)
    app.add_routes(host.routes())
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(host.env.serving())
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host.port = runner.addresses[0][1]
        tell({"port": host.port})
        await asyncio.to_thread(sys.stdin.read)  # until whoever started it is gone


def main() -> None:
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what environments print is no part of the answer

    def tell(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=said)

    try:
        asyncio.run(_serve(json.loads(sys.argv[1]), tell))
    except Exception as error:
        tell({"error": " ".join(f"{type(error).__name__}: {error}".split())})
        sys.exit(1)


if __name__ == "__main__":
    main()
