"""A Ray dashboard's job interface in small, with a stream that closes, is cut, hangs or is not let through."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "token-of-the-cluster"
JOB = "a-job"


@dataclass
class Dashboard:
    """One job. `streams` says how each connection for its log goes, the last one for all that follow."""

    log: str = "one\ntwo\nthree\n"
    status: str = "RUNNING"
    exit_code: int | None = None
    streams: list[str] = field(default_factory=list)
    """`close` after the first line, `cut` there, `refuse` (no WebSocket), `end` (all of it, and the job ends)."""
    ends_after: int = 10**6
    """The job has ended once its state was asked for so often."""
    answers: dict[str, int] = field(default_factory=dict)
    """Path → status that is answered instead, of which one is taken away each time."""
    location: str = ""
    """Where requests are sent on to."""
    seen: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    address: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(f"{request.method} {request.path}")
        self.tokens += request.headers.getall("Authorization", [])
        if self.location:
            return web.Response(status=307, headers={"Location": f"{self.location}{request.path}"})
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        match request.path.split("/")[1:]:
            case ["api", "version"]:
                return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": ""})
            case ["api", "v0", "nodes"]:
                nodes = [{"state": "ALIVE", "resources_total": {"CPU": 8, "GPU": 8}}]
                return web.json_response({"data": {"result": {"result": nodes}}})
            case ["api", "packages", *_]:
                await request.read()
                return web.Response(status=200)
            case ["api", "jobs", ""] if request.method == "POST":
                self.submitted.append(await request.json())
                return web.json_response({"job_id": JOB, "submission_id": JOB})
            case ["api", "jobs", _, "logs", "tail"]:
                return await self._stream(request)
            case ["api", "jobs", _, "logs"]:
                return web.json_response({"logs": self.log})
            case ["api", "jobs", _, "stop"]:
                return web.json_response({"stopped": True})
            case _:
                return self._job()

    def _job(self) -> web.Response:
        if self.answers.get("job", 0):
            self.answers["job"] -= 1
            return web.Response(status=502)
        self.ends_after -= 1
        if self.ends_after < 0 and self.status == "RUNNING":
            self.status = "SUCCEEDED"
        job = {"type": "SUBMISSION", "submission_id": JOB, "entrypoint": "x", "status": self.status, "message": ""}
        return web.json_response(job | {"driver_exit_code": self.exit_code})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        how = self.streams.pop(0) if len(self.streams) > 1 else self.streams[0]
        if how == "refuse":
            return web.Response(status=403)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        first, _, rest = self.log.partition("\n")
        await socket.send_str(f"{first}\n")
        if how == "end":
            await socket.send_str(rest)
            self.status = "SUCCEEDED" if self.status == "RUNNING" else self.status
        if how == "cut":
            assert request.transport is not None
            request.transport.abort()
        else:
            await socket.close()
        return socket


@contextmanager
def dashboard(**how: Any) -> Iterator[Dashboard]:
    """One that listens on loopback."""
    made, ready = Dashboard(**how), threading.Event()
    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        application = web.Application(client_max_size=2**28)
        application.router.add_route("*", "/{path:.*}", made.answer)
        runner = web.AppRunner(application, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
