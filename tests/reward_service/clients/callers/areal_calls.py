"""Run by test_callers_examples.py beside the installed AReaL: its wrapper sends the function to other processes."""

from __future__ import annotations

import asyncio
import json
import sys

from areal.api.reward_api import AsyncRewardWrapper
from areal.utils.dynamic_import import import_from_string


async def main(*completions: str) -> None:
    reward = AsyncRewardWrapper(import_from_string("areal_remote.reward_fn"), max_workers=1)
    calls = (reward("What is 48 + 24?", f"{one}<|im_end|>", [1], [2], answer="#### 72", level=3) for one in completions)
    print(json.dumps(await asyncio.gather(*calls)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
