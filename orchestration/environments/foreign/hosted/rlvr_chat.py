"""A harness of `verifiers` that talks in its host's process: what its `null` does in a program of its own.

Its contract asks for no process, only that every call of the model goes to the endpoint that it is given. A process for
an episode takes a second or two of processor time, more than a small model's whole episode.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Any

import httpx
import verifiers.v1 as vf
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp

__all__ = ["ChatHarness"]


class ChatHarness(vf.Harness[vf.HarnessConfig]):  # type: ignore[misc]
    """Asks the model, calls the tools of the task's MCP servers, and asks again until a turn calls nothing."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        servers = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
        headers = {"Authorization": f"Bearer {secret}"}
        async with AsyncExitStack() as stack:
            tools, dispatch, connections = await connect_mcp({"mcpServers": servers}, stack)
            client = await stack.enter_async_context(
                httpx.AsyncClient(base_url=endpoint, headers=headers, timeout=None, trust_env=False)
            )
            messages = _opening(*self.resolve_prompt(data))
            while True:
                body: dict[str, Any] = {"model": ctx.model, "messages": messages}
                answer = await client.post("/chat/completions", json=body | ({"tools": tools} if tools else {}))
                if answer.status_code != 200:  # a stop refuses the turn; verifiers knows which it was
                    return vf.ProgramResult(exit_code=1, stdout="", stderr=answer.text)
                said = answer.json()["choices"][0]["message"]
                messages.append(said)
                if not said.get("tool_calls"):
                    return vf.ProgramResult(exit_code=0, stdout="", stderr="")
                for call in said["tool_calls"]:
                    heard = await _called(call["function"], dispatch, connections)
                    name = call["function"]["name"]
                    messages.append({"role": "tool", "tool_call_id": call["id"], "name": name, "content": heard})


def _opening(system: str | None, prompt: str | vf.Messages | None) -> list[dict[str, Any]]:
    told = (
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(map(message_to_wire, prompt or ()))
    )
    return [{"role": "system", "content": system}, *told] if system else told


async def _called(function: dict[str, str], dispatch: Any, connections: Any) -> Any:
    """What a tool says, or what is wrong with the call; the model may do better."""
    name = function["name"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return f"error: the call of {name} cannot be read: {function['arguments']}"
    if not isinstance(arguments, dict):
        return f"error: the arguments of {name} are no JSON object"
    if name not in dispatch:
        return f"error: there is no tool {name!r}; there are {', '.join(dispatch) or 'none'}"
    return await call_mcp(connections, dispatch, name, arguments)
