"""What `rlvr bench reward` compares the service with, and the reward that hangs when it is told to."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from orchestration.errors import RlvrError
from reward_service.schemas import ScoreRequest

SLEEPS, SPINS = "(sleeps)", "(spins)"
"""A completion that begins so hangs the verifier `hangs`, asleep or at work."""
_START_S = 30.0


class EchoedReward(BaseModel):
    name: str
    weight: float = 1.0
    params: dict[str, Any] = {}


class EchoedItem(BaseModel):
    completion: str
    prompt: str = ""
    reference: dict[str, Any] | None = None
    id: str = ""
    group: str | None = None
    metadata: dict[str, Any] = {}


class EchoedBody(BaseModel):
    rewards: list[EchoedReward]
    items: list[EchoedItem]
    run_id: str | None = None
    policy_version: int | None = None


def make_echo() -> FastAPI:
    """FastAPI as its manual has it (`/echo`), and with the parser of the service (`/echo_msgspec`)."""
    app = FastAPI()
    decode = msgspec.json.Decoder(ScoreRequest).decode

    @app.post("/echo")
    async def echo(body: EchoedBody) -> EchoedBody:
        return body

    @app.post("/echo_msgspec")
    async def echo_msgspec(request: Request) -> Response:
        return Response(msgspec.json.encode(decode(await request.body())), media_type="application/json")

    return app


def hangs(completion: str, reference: Mapping[str, Any] | None, params: object) -> float:
    """0.0, or never."""
    if completion.startswith(SLEEPS):
        time.sleep(3600)
    while completion.startswith(SPINS):
        pass
    return 0.0


@contextmanager
def echo_server() -> Iterator[int]:
    """The echo in a process of its own, run as the service is; gives its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
        listener.listen()
        command = [sys.executable, "-m", "orchestration.bench.reward_servers", str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=(listener.fileno(),), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/openapi.json", timeout=_START_S, trust_env=False)
                break
            except httpx.TransportError as error:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RlvrError(f"the echo server did not start: {error}") from None
                time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait(10)


if __name__ == "__main__":
    config = uvicorn.Config(
        make_echo(), access_log=False, log_level="warning", loop="uvloop", http="httptools", ws="none"
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
