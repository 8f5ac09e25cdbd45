"""vLLM's scheduler on CPUs, with a step of their own for probes, and steps that are never long.

A step of 48 sequences takes half a second on two cores, and the few tokens of a probe a tenth of that. In a step of its
own the probe says as much, by the same model, adapters and kernels, and a publish does not wait for everybody's next
token. The requests under way wait for that short step instead; they keep their places and their caches.

vLLM makes it by name (`scheduler_cls`), in the process of its core. Written for vLLM 0.26 to 0.32.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

STEP_TOKENS = 256
"""Of a step. Groups end together, just before the learner has the batch that it publishes from, and the prompts of
those that follow fill the next step: 900 tokens in one take six times as long as everybody's next token, while the new
version and all other sequences wait. In parts they take little longer, since those who decode are in the same steps."""


class ProbesAlone(Scheduler):  # type: ignore[misc]
    """Requests of a priority below 0 begin in steps that hold nothing else, also where all places are taken."""

    running: list[Any]
    waiting: Any
    max_num_scheduled_tokens: int
    scheduler_config: Any
    _tried: frozenset[str] = frozenset()
    """What was to begin alone; where the cache had no room for it, it waits with the others."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        probes = self._probes()
        if not probes:
            return super().schedule(*args, **kwargs)
        self._tried = frozenset(probe.request_id for probe in probes)
        running, most = self.running, self.max_num_scheduled_tokens
        self.running, self.max_num_scheduled_tokens = [], sum(probe.num_tokens for probe in probes)
        try:
            return super().schedule(*args, **kwargs)
        finally:
            self.running, self.max_num_scheduled_tokens = [*running, *self.running], most

    def _probes(self) -> list[Any]:
        """Those that can begin in this step; none in most."""
        if not self.waiting or self.waiting.peek_request().priority >= 0:
            return []
        probes = list(takewhile(lambda request: request.priority < 0, self.waiting))
        fit = sum(probe.num_tokens for probe in probes) <= self.scheduler_config.max_num_batched_tokens
        return probes if fit and probes[0].request_id not in self._tried else []


class ShortSteps(ProbesAlone):
    """Prompts are prefilled in parts, where the model allows that: no step but a probe's has more than `STEP_TOKENS`,
    or one for each place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.scheduler_config.enable_chunked_prefill:
            most = max(STEP_TOKENS, self.scheduler_config.max_num_seqs)
            self.max_num_scheduled_tokens = min(self.max_num_scheduled_tokens, most)
