"""An environment in verifiers' documented form, as `vf-init --add-tool` lays one out: sums, with a tool that adds."""

from __future__ import annotations

from collections.abc import Iterator

import verifiers.v1 as vf

from rlvr_sums.tool import SumsToolset


class SumsData(vf.TaskData):
    answer: int


class SumsConfig(vf.TasksetConfig):
    num_tasks: int = 40
    tools: vf.SharedToolsetConfig = vf.SharedToolsetConfig()


class SumsTask(vf.Task[SumsData]):
    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        return float(str(self.data.answer) in trace.last_reply)

    @vf.reward(weight=0.5)
    async def short(self, trace: vf.Trace) -> float:
        return 1 / (1 + len(trace.last_reply))


class SumsTaskset(vf.Taskset[SumsTask, SumsConfig]):
    def load(self) -> Iterator[SumsTask]:
        for n in range(self.config.num_tasks):
            prompt = f"What is {n} + 3?"
            yield SumsTask(SumsData(prompt=prompt, system_prompt="Add.", answer=n + 3), self.config.task)

    @classmethod
    def toolsets(cls, config: SumsConfig) -> list[vf.Toolset]:
        return [SumsToolset(config.tools)]
