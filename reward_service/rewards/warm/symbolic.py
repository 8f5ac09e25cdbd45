"""`symbolic`, warm: sympy's caches take 0.1 s of the processor."""

from contextlib import suppress

from reward_service.rewards.base import Task
from reward_service.rewards.symbolic import REWARD

for _answer in ("x^2 + 2*x + 1", r"\frac{x}{2}", r"\sin(x)"):
    with suppress(Exception):
        REWARD.apply(Task(rf"\boxed{{{_answer}}}", {"final_answer": _answer}), REWARD.params())
