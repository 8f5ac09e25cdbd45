"""What the learner sends along with an adapter, so that a rollout worker can prove what it serves.

The probe is a piece of the run's first batch: tokens of the kind that training moves. It stays the same for the whole
run, so that versions can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from learner.types import ScoredGroup
from rollout_server.types import AdapterProbe, Completion, EpisodeTurn

NUM_PREDICTIONS = 15
"""Of which the log-probabilities are compared, at most."""
_NUM_COMPLETION_TOKENS = 12
_CONTEXT_TOKENS = 512
"""Of a prompt, at most: vLLM holds the logits of all of them at once, 300 MB at 150,000 tokens of vocabulary."""
_EXACT_TOKENS = 8
"""Of a probe in float32, two of them the end of the prompt. Each prediction goes through every weight and is computed
to some 1e-6: more would prove no more, and the engine's next step, which all requests wait for, has to carry them."""
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}
_FALLBACK = tuple(range(1, _EXACT_TOKENS + 1))

Logprobs = tuple[float, ...]


@dataclass(slots=True)
class ProbeHistory:
    """The probe's tokens, and what the versions so far said of them."""

    token_ids: tuple[int, ...] = ()
    """None before the first batch."""
    of_base: Logprobs | None = None
    of_versions: dict[int, Logprobs] = field(default_factory=dict)
    """The last two versions'."""

    def choose(self, groups: Sequence[ScoredGroup], dtype: torch.dtype) -> None:
        """Take the tokens from a run's first batch."""
        if not self.token_ids:
            self.token_ids, self.of_base = probe_tokens(groups[0], dtype), None
            self.of_versions.clear()

    @property
    def tokens(self) -> tuple[int, ...]:
        """What is asked."""
        return self.token_ids or _FALLBACK

    def probe(self, version: int, logprobs: Callable[[bool], Logprobs], tolerance: float) -> AdapterProbe:
        """The probe of a version.

        Args:
            version: Its number.
            logprobs: Computes those of the `NUM_PREDICTIONS` last tokens, with (True) or without the adapter.
            tolerance: The largest difference that is allowed.
        """
        if self.of_base is None:
            self.of_base = logprobs(False)
        now = logprobs(True)
        before = {number: values for number, values in self.of_versions.items() if number < version}
        latest = max(before, default=None)
        previous = None if latest is None else before[latest]
        self.of_versions = {version: now} if latest is None else {latest: before[latest], version: now}
        return AdapterProbe(
            version=version,
            training_logprobs=now,
            base_training_logprobs=self.of_base,
            previous_version=latest,
            previous_training_logprobs=previous,
            tolerance=tolerance,
        )


def probe_tolerance(dtype: torch.dtype, setting: float | None) -> float:
    """The largest difference between served and trained log-probabilities that a publish may show.

    Args:
        dtype: Of the learner's base model.
        setting: `learner.probe_tolerance`; None or 0: what the precision allows.

    Returns:
        Nats.
    """
    return setting or _TOLERANCE[dtype]


def probe_tokens(group: ScoredGroup, dtype: torch.dtype) -> tuple[int, ...]:
    """The end of a prompt and the beginning of its first completion; in bfloat16 all of the prompt, if it is not long.

    Without their context most tokens are unlikely ones, whose log-probabilities bfloat16 rounds most. In float32 that
    does not matter, and the engine is spared a prompt. The completion's last token stays away: with it a probe could
    fill the engine's whole context, which has to have room for one more token.

    Of an episode that has a second turn: its beginning, behind what was given before it and the end of the first.

    Args:
        group: Of the run's first batch.
        dtype: Of the learner's base model.

    Returns:
        At least 2 tokens, or a fixed few where the group has less.
    """
    members = [member.completion for member in group.members]
    first = next((one for one in members if _second_turn(one) is not None), members[0])
    prompt, own = first.own_prompt_token_ids or group.prompt_token_ids, first.token_ids[:-1]
    second = _second_turn(first)
    begin, end = (0, 0) if second is None else (second.start, first.turns[0].stop)
    context, completion = prompt + own[:begin], own[begin:]
    if dtype == torch.float32 and second is not None:
        given = own[end:begin][-(_EXACT_TOKENS - 4) :]
        completion = completion[: _EXACT_TOKENS - 2 - len(given)]
        tokens = (prompt + own[:end])[len(completion) + len(given) - _EXACT_TOKENS :] + given + completion
    elif dtype == torch.float32:
        completion = completion[: _EXACT_TOKENS - 2]
        tokens = prompt[len(completion) - _EXACT_TOKENS :] + completion
    else:
        tokens = context[-_CONTEXT_TOKENS:] + completion[:_NUM_COMPLETION_TOKENS]
    return tuple(tokens) if len(tokens) >= 2 else _FALLBACK


def _second_turn(completion: Completion) -> EpisodeTurn | None:
    """If it goes on from the same tokens as the first."""
    if len(completion.turns) < 2 or any(fork.start <= completion.turns[1].start for fork in completion.forks):
        return None
    return completion.turns[1]
