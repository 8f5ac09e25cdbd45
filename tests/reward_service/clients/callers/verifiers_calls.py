"""Run by test_callers_examples.py beside the installed verifiers: its loader, its task, its trace."""

from __future__ import annotations

import asyncio
import json
import sys

import verifiers.v1 as vf
from verifiers.v1.utils.loaders import load_taskset


async def main(*completions: str) -> None:
    (task,) = load_taskset(vf.TasksetConfig(id="gsm_remote"))
    rewards = []
    for completion in completions:
        recorded = vf.TraceTask(type="Task", data=task.data)
        trace = vf.Trace(task=recorded, agent=vf.AgentInfo(config=vf.AgentConfig()), root_reply=completion)
        await task.score(trace)
        rewards.append(trace.reward)
    print(json.dumps(rewards))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
