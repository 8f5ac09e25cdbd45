"""The world of a question that may be answered with the help of tools."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orchestration.environments.environment import Enters, Step, Surroundings
from orchestration.environments.tools.calls import Call, read_calls
from orchestration.environments.tools.tool import Tool, WrongCallError
from orchestration.types import Message, Problem


class ToolUse:
    """Calls what each turn asks for; a turn that asks for nothing is the answer, and rewards look at that."""

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        self._tools = {tool.name: tool for tool in map(Tool, functions)}
        self._fenced = True

    def enter(self, surroundings: Surroundings) -> None:
        """Which form calls have, and the service for the tools that work there."""
        self._fenced = not surroundings.template_takes_tools
        for tool in self._tools.values():
            owner = getattr(tool.function, "__self__", None)
            if isinstance(owner, Enters):
                owner.enter(surroundings)

    async def reset(self, problem: Problem) -> None:
        """Nothing is shown beside the question."""

    async def step(self, action: str) -> Step:
        said = await self.answers(action)
        return Step(said) if said else Step(done=True)

    async def answers(self, action: str) -> Sequence[Message]:
        """What the tools that a turn calls say, a message each; a call that is wrong is told why."""
        calls = read_calls(action, [tool.schema for tool in self._tools.values()], fenced=self._fenced)
        return [{"role": "tool", "name": call.name, "content": await self._answer(call)} for call in calls]

    async def _answer(self, call: Call) -> str:
        if call.wrong is not None:
            return call.wrong
        tool = self._tools.get(call.name)
        if tool is None:
            return f"there is no tool {call.name!r}; there are {', '.join(self._tools)}"
        try:
            return await tool.call(call.arguments)
        except WrongCallError as error:
            return str(error)

    async def close(self) -> None:
        """Holds nothing."""
