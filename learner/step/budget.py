"""How many tokens go through the model at once: what memory a pass needs, measured, beside what there is.

Activations grow with a pass's tokens, and passes that fill a GPU are few: a batch of 16 questions with 8 completions
each behind a header of 700 tokens is 16 passes and 31,232 tokens at 2,048 a pass, and one of 20,732 at 32,768.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from learner.config import DEFAULT_TOKENS_PER_MICROBATCH, MEASURED_TOKENS, USABLE_SHARE, LearnerConfig
from learner.policy.policy import Policy, tree_inputs, tree_logprobs
from learner.tree.prefix_tree import TokenSequence, build_tree
from rollout_server.arrays import TokenIds

Meter = Callable[[Callable[[], None]], int]
"""meter(run) → bytes held at the most while it runs, above those held before."""


@dataclass(frozen=True, slots=True)
class PassMemory:
    """What a forward and backward pass needs, bytes."""

    fixed: float
    per_token: float

    @classmethod
    def through(cls, small: tuple[int, int], large: tuple[int, int]) -> PassMemory:
        """The straight line through two passes of so many tokens and bytes each."""
        per_token = max(1.0, (large[1] - small[1]) / (large[0] - small[0]))
        return cls(max(0.0, small[1] - per_token * small[0]), per_token)

    def of(self, num_tokens: int) -> float:
        return self.fixed + self.per_token * num_tokens

    def tokens_within(self, num_bytes: float) -> int:
        """At least 1: a sequence cannot be cut."""
        return max(1, int((num_bytes - self.fixed) / self.per_token))


class TokenBudget:
    """Distinct tokens of a micro-batch: those of the settings, or else on GPUs as many as free memory allows.

    Measured when it is first needed, not at start: by then whatever shares the card has taken its own.
    """

    def __init__(self, policy: Policy, config: LearnerConfig, device: torch.device) -> None:
        self._policy, self._config, self._device = policy, config, device
        self._measures = config.measures_passes(cuda=device.type == "cuda")
        self._memory: PassMemory | None = None
        self._tokens = config.max_tokens_per_microbatch
        self._longest_said = 0

    def tokens(self, least_of_all: Callable[[float], float]) -> int:
        """The same on all ranks, each of which must call it.

        Args:
            least_of_all: Gives the smallest of what the ranks gave.
        """
        if self._tokens is None and self._measures:
            self._tokens = int(least_of_all(self._needs().tokens_within(USABLE_SHARE * free_bytes(self._device))))
        return self._tokens or DEFAULT_TOKENS_PER_MICROBATCH

    def warning(self, longest: int, tokens: int) -> str | None:
        """What to say of a sequence that is over the budget, and goes through alone.

        Args:
            longest: Its tokens: the longest of the step.
            tokens: The budget.

        Returns:
            A sentence with the memory that it needs; None where there is nothing to say, or nothing new.
        """
        if longest <= max(tokens, self._longest_said):
            return None
        self._longest_said = longest
        need = f"{longest / tokens:.2g} times the memory of one within it"
        if self._measures:
            free = free_bytes(self._device) / 2**30
            need = f"{self._needs().of(longest) / 2**30:.3g} GiB, where {free:.3g} GiB are free"
        return (
            f"a sequence of {longest} tokens is over a micro-batch's budget of {tokens} "
            f"(learner.max_tokens_per_microbatch): its pass needs about {need}. Less is needed with "
            f"learner.gradient_checkpointing=true or a smaller rollout.max_model_len"
        )

    def _needs(self) -> PassMemory:
        if self._memory is None:
            self._memory = measure(self._policy, self._config, self._device, _peak_on(self._device))
        return self._memory


def measure(policy: Policy, config: LearnerConfig, device: torch.device, meter: Meter) -> PassMemory:
    """Runs passes of two sizes, every token of which is predicted; gradients and random numbers are left alone.

    Args:
        policy: Whose passes they are.
        config: Its attention and checkpointing.
        device: Where it lies.
        meter: Runs what it is given, and says how many bytes it took at most.

    Returns:
        The line through the two; the larger pass has `MEASURED_TOKENS`, or the model's whole context where that is
        less.
    """
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    text = policy.model.get_base_model().config.get_text_config()

    def run(num_tokens: int) -> None:
        tokens = TokenIds(np.random.default_rng(0).integers(0, text.vocab_size, num_tokens + 1))
        sequence = TokenSequence(prompt_token_ids=tokens[:1], completion_token_ids=tokens[1:])
        inputs = tree_inputs(build_tree([sequence], share=config.attention != "own"), device, config.attention)
        logprobs_BT, _ = tree_logprobs(policy, inputs, temperature=1.0)
        torch.autograd.grad(logprobs_BT.sum(), trained, allow_unused=True)

    large = min(MEASURED_TOKENS, getattr(text, "max_position_embeddings", None) or MEASURED_TOKENS)
    small = max(1, large // 3)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        run(small)  # kernels are compiled, and libraries take their workspace
        return PassMemory.through((small, meter(lambda: run(small))), (large, meter(lambda: run(large))))


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that this process may still take."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def _peak_on(device: torch.device) -> Meter:
    def peak(run: Callable[[], None]) -> int:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before

    return peak
