"""An environment of `verifiers`, played by itself in a process of its own: `verifiers_process.py`.

It asks a model over the chat protocol, and is answered with the turns that are sampled here. What it sends is compared
with what it sent before: as long as each request only adds to the last one, what is added is the observation, and
tokens stay as they were sampled. Where it rewrites what came before, the conversation as it stands is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from orchestration.environments.environment import Conversation, Step, Surroundings
from orchestration.environments.foreign.verifiers_process import HostProcess
from orchestration.environments.tools.calls import Call, read_calls
from orchestration.types import Message, Problem


class VerifiersEnvironment:
    """One episode of the reference's task. Paid is what the environment's rewards come to at its end.

    Args:
        host: Holds it.
        instruction: The system message that prompts begin with.
    """

    def __init__(self, host: HostProcess, instruction: str) -> None:
        self._host, self._instruction = host, instruction
        self._client = httpx.AsyncClient(base_url=host.url, trust_env=False, timeout=None)
        self._fenced = True
        self._max_turns: int | None = None
        self._sent: list[Mapping[str, Any]] = []
        """The conversation as the environment has it, with the last answer."""
        self._turns: dict[str, str] = {}
        """What was sampled, by the answer that was made of it."""
        self._episode: str | None = None

    def enter(self, surroundings: Surroundings) -> None:
        self._fenced, self._max_turns = not surroundings.template_takes_tools, surroundings.max_turns

    async def reset(self, problem: Problem) -> Conversation | None:
        begun = await self._asked("/episodes", {"task": problem.reference["task"], "max_turns": self._max_turns})
        self._episode = begun["episode"]
        if "messages" not in begun:
            raise RuntimeError("it was over before the model was asked")
        self._sent = begun["messages"]
        told = self._as_told(self._sent)
        return None if told == opening(self._instruction, problem.question) else Conversation(told)

    async def step(self, action: str) -> Step:
        answer = as_answer(action, read_calls(action, self._host.tools, fenced=self._fenced), len(self._turns))
        self._turns[_key(answer)] = action
        before = [*self._sent, answer]
        heard = await self._asked(f"/episodes/{self._episode}", {"message": answer})
        if "messages" not in heard:
            return Step(reward=float(heard["reward"]), done=True)
        self._sent = heard["messages"]
        kept, added = self._sent[: len(before)], self._sent[len(before) :]
        if added and list(map(_key, kept)) == list(map(_key, before)):
            return Step(self._as_told(added))
        return Step(Conversation(self._as_told(self._sent)))

    async def close(self) -> None:
        try:
            if self._episode is not None:
                await self._client.delete(f"/episodes/{self._episode}")
        finally:
            await self._client.aclose()

    async def _asked(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = (await self._client.post(path, json=body)).raise_for_status().json()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        if (tools := answer.get("tools", self._host.tools)) != self._host.tools:
            raise RuntimeError(
                f"it asks with the tools {_names(tools)}, and its first task had {_names(self._host.tools)}"
            )
        return answer

    def _as_told(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
        """Messages in the words of the house; a turn of the model's as it was sampled."""
        return tuple(one for message in messages for one in self._as_message(message))

    def _as_message(self, message: Mapping[str, Any]) -> list[Message]:
        role, said = message["role"], text_of(message.get("content"))
        if role == "tool":
            return [{"role": role, "name": message.get("name") or "tool", "content": said}]
        if role != "assistant":
            return [{"role": "system" if role == "developer" else role, "content": said}]
        if (sampled := self._turns.get(_key(message))) is not None:
            return [{"role": role, "content": sampled}]
        calls = [_written(call["function"]) for call in message.get("tool_calls") or ()]
        return [*([{"role": role, "content": said}] if said else []), *({"role": "call", "content": c} for c in calls)]


def opening(instruction: str, question: str | Sequence[Message]) -> tuple[Message, ...]:
    """The messages that a task begins with."""
    turns = [{"role": "user", "content": question}] if isinstance(question, str) else question
    has_own = bool(turns) and turns[0]["role"] == "system"
    system = [{"role": "system", "content": instruction}] if instruction and not has_own else []
    return (*system, *turns)


def as_answer(action: str, calls: Sequence[Call], turn: int) -> dict[str, Any]:
    """A turn as the chat protocol has it: reasoning, what is said, and calls. One that cannot be read has arguments
    that say why."""
    thought, thinks, said = action.rpartition("</think>")
    answer: dict[str, Any] = {"role": "assistant", "content": said.strip() if thinks else said}
    if thinks:
        answer["reasoning_content"] = thought.removeprefix("<think>").strip()
    if calls:
        answer["tool_calls"] = [
            {
                "id": f"call-{turn}-{number}",
                "type": "function",
                "function": {
                    "name": call.name or "unknown",
                    "arguments": json.dumps(call.arguments) if call.wrong is None else call.wrong,
                },
            }
            for number, call in enumerate(calls)
        ]
    return answer


def text_of(content: Any) -> str:
    """A message's content, where that is text. Raises ValueError for anything else."""
    if content is None or isinstance(content, str):
        return content or ""
    if any(part.get("type") != "text" for part in content):
        raise ValueError("it shows more than text, and the model reads text alone")
    return "\n".join(part["text"] for part in content)


def _key(message: Mapping[str, Any]) -> str:
    """Equal for messages that say the same: harnesses put in and leave out fields that say nothing."""
    calls = [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    ]
    return json.dumps([message["role"], text_of(message.get("content")), calls, message.get("tool_call_id")])


def _written(function: Mapping[str, str]) -> str:
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        arguments = {}
    return json.dumps({"name": function["name"], "arguments": arguments})


def _names(tools: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(tool["function"]["name"] for tool in tools) or "none"
