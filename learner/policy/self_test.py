"""Asks the model itself, at start, whether what the learner computes is what the model computes.

A layer that takes `tree_attention=` through `**kwargs` and goes on without it gives no error: its log-probabilities are
off by nats. So two sequences behind one prefix are packed and compared with each of them alone, by the model's own
forward: log-probabilities, and gradients of a fresh adapter. Sequences are short, so two things are looked at beside
the numbers: whether every layer called the tree's attention, and with the window that the configuration gives it.

Not covered: what happens at some length only, but for frequencies of rotary positions (`frequencies_change_beyond`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from learner.config import AttentionKind, LearnerConfig
from learner.errors import LearnerError
from learner.policy.forward import Policy
from learner.policy.inputs import tree_inputs, tree_logprobs
from learner.policy.layers import expected_windows, layer_classes, other_layers
from learner.tree.attention import TreeAttention
from learner.tree.prefix_tree import TokenSequence, build_tree
from rollout_server.arrays import TokenIds

_LENGTHS = {"cpu": (10, 6), "cuda": (160, 84)}
"""Tokens of the prefix and of each branch: few where they cost time, and where kernels are compiled more than one of
their blocks, which a batch has too."""

_TOLERANCES = {
    ("cpu", torch.float32): (1e-4, 1e-3),
    ("cuda", torch.float32): (5e-3, 2e-2),  # products may be in TF32
    ("cpu", torch.bfloat16): (0.04, 0.15),
    ("cuda", torch.bfloat16): (0.04, 0.15),
}
"""RMS difference of log-probs in their standard deviation, and of the gradient in its norm. Over 80 families of tiny
random models rounding made at most 4e-5 and 5e-5 in float32, 0.016 and 0.06 in bfloat16."""

_AHEAD = 0.1
"""Of the log-probs' standard deviation: an encoder's change by one, rounding's by a twentieth at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """Log-probs of the predicted tokens of each sequence, and the gradient of a weighted sum of them."""

    logprobs: Tensor
    gradient: Tensor
    """Towards all parameters of the adapter, one after the other."""
    reached: frozenset[str]
    """Names of those that have one."""


def settle(policy: Policy, config: LearnerConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Lets the policy take prefix trees if it is right on them, and else one sequence a row.

    Args:
        policy: With a fresh adapter.
        config: The learner's.
        device: Where the policy is.
        dtype: Of the base's products.

    Returns:
        Why it takes one sequence a row; None: it takes trees.

    Raises:
        LearnerError: It is wrong either way.
    """
    with _undisturbed(policy, device):
        why = "attention=own" if config.attention == "own" else _SelfTest(policy, config, device, dtype).why_no_trees()
        if why is None:
            return None
        wrong = _SelfTest(policy, config, device, dtype, longer_by=3).why_no_rows()
    if wrong is not None:
        base = type(policy.model.get_base_model()).__name__
        raise LearnerError(f"{base} cannot be trained: {why}; and one sequence a row, by its own attention, {wrong}")
    return why


class _SelfTest:
    """Two sequences, the first `longer_by` tokens longer, and what they are by the model's own forward."""

    def __init__(
        self, policy: Policy, config: LearnerConfig, device: torch.device, dtype: torch.dtype, longer_by: int = 0
    ) -> None:
        self._policy, self._config, self._device = policy, config, device
        self._base = policy.model.get_base_model()
        self._text = self._base.config.get_text_config()
        self._tolerances = _TOLERANCES[device.type, dtype]
        self._sequences = _sequences(self._text.vocab_size, device, longer_by)
        # In evaluation, as the sampler runs it; a 4-bit base on CPUs would be packed anew, with rounded scales.
        policy.train(config.quantization != "none")
        policy.use_own_attention()
        try:
            self._alone = self._outcome(self._logprobs_alone())
        except Exception as error:
            raise LearnerError(f"the forward pass of {type(self._base).__name__} fails: {_said(error)}") from error
        self._refuse_looking_ahead()
        self._refuse_unreached()
        policy.train()
        for module in _dropouts(policy):  # the adapter's, which is the user's
            module.eval()

    def why_no_trees(self) -> str | None:
        """The kind of layer and what is wrong with it; None: all is right."""
        kinds = other_layers(self._base)
        if kinds:
            return f"layers of the kind {kinds} follow the order of the tokens, not the tree"
        self._policy.use_tree_attention()
        windows: list[int | None] = []
        wrong = self._difference(self._config.attention, windows)
        if wrong is None:
            wrong = _wrong_calls(windows, expected_windows(self._text))
        return None if wrong is None else f"on a prefix tree {layer_classes(self._base)} {wrong}"

    def why_no_rows(self) -> str | None:
        """What is wrong with one sequence a row; None: all is right."""
        self._policy.use_own_attention()
        return self._difference("own")

    def _difference(self, attention: AttentionKind, windows: list[int | None] | None = None) -> str | None:
        """How the packed sequences differ from each alone; None: not by more than rounding. `windows` is filled with
        the window of every call of the tree's attention."""
        try:
            found = self._outcome(self._logprobs_packed(attention, windows))
        except Exception as error:
            return f"fails: {_said(error)}"
        logprobs, gradient = self._alone.logprobs, self._alone.gradient
        nats = float((found.logprobs - logprobs).square().mean().sqrt())
        share = float((found.gradient - gradient).norm() / gradient.norm().clamp(min=1e-30))
        rtol, gradient_tol = self._tolerances
        if nats <= rtol * float(logprobs.std()) + 1e-6 and share <= gradient_tol:  # False where not a number
            return None
        return f"differs from each sequence alone by {nats:.2g} nats, and its gradient by {100 * share:.2g} %"

    def _logprobs_alone(self) -> list[Tensor]:
        """Rows of a batch do not see each other: sequences of one length are one, for half the time."""
        ids = [torch.tensor(sequence.token_ids, device=self._device) for sequence in self._sequences]
        batches = [torch.stack(ids)] if len({len(row) for row in ids}) == 1 else [row[None] for row in ids]
        rows = [row for batch_SL in batches for row in self._logprobs_of(batch_SL)]
        return [
            torch.cat([row[start:stop] for start, stop in sequence.predicted])
            for row, sequence in zip(rows, self._sequences, strict=True)
        ]

    def _logprobs_of(self, ids_SL: Tensor) -> Tensor:
        logits_SLV = self._policy.model(input_ids=ids_SL, use_cache=False).logits[:, :-1]
        logprobs_SLV: Tensor = logits_SLV.float().log_softmax(-1)
        return logprobs_SLV.gather(2, ids_SL[:, 1:, None]).squeeze(2)

    def _logprobs_packed(self, attention: AttentionKind, windows: list[int | None] | None) -> list[Tensor]:
        inputs = tree_inputs(build_tree(self._sequences, share=attention != "own"), self._device, attention)
        if inputs.attention is not None and windows is not None:
            inputs = replace(inputs, attention=_noting(inputs.attention, windows))
        logprobs_BT, _ = tree_logprobs(self._policy, inputs, temperature=1.0)
        return [row[mask > 0] for row, mask in zip(logprobs_BT, inputs.mask_BT, strict=True)]

    def _outcome(self, logprobs: list[Tensor]) -> _Outcome:
        adapter = {name: p for name, p in self._policy.named_parameters() if p.requires_grad and "lora_" in name}
        # Sequences of different weights, so that no error cancels.
        total = torch.stack([(index + 1) * row.sum() for index, row in enumerate(logprobs)]).sum()
        gradients = torch.autograd.grad(total, list(adapter.values()), allow_unused=True)
        return _Outcome(
            logprobs=torch.cat(logprobs).detach(),
            gradient=torch.cat([_or_zeros(g, p).flatten() for g, p in zip(gradients, adapter.values(), strict=True)]),
            reached=frozenset(name for name, g in zip(adapter, gradients, strict=True) if g is not None),
        )

    def _refuse_looking_ahead(self) -> None:
        """What the prefix is given in both sequences, alone, says nothing of what stands behind it."""
        begin, count = len(self._sequences[0].completion_token_ids), _LENGTHS[self._device.type][0] - 1
        logprobs = self._alone.logprobs
        nats = float((logprobs[:count] - logprobs[begin : begin + count]).square().mean().sqrt())
        if nats > _AHEAD * float(logprobs.std()):
            raise LearnerError(
                f"{type(self._base).__name__} looks ahead: what it gives a token changes by {nats:.2g} nats with the "
                "tokens behind it; the learner needs a causal language model"
            )

    def _refuse_unreached(self) -> None:
        """Fast kernels may take the weight of a layer and go around the layer itself, with its adapter."""
        every = {_layer(name) for name, p in self._policy.named_parameters() if p.requires_grad and "lora_" in name}
        unreached = every - {_layer(name) for name in self._alone.reached}
        if unreached:
            raise LearnerError(
                f"no gradient reaches the adapters on {', '.join(sorted(unreached))}: {type(self._base).__name__} "
                "takes the weights of these layers without calling them, or their output is no part of the log-probs; "
                "leave them out of learner.lora.target_modules"
            )


def _or_zeros(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient


def _layer(parameter_name: str) -> str:
    return parameter_name.partition(".lora_")[0].rpartition(".")[2]


def _sequences(vocabulary: int, device: torch.device, longer_by: int) -> list[TokenSequence]:
    """Two behind one prefix, the second in two turns, with a hole in its own part where tokens are given and not
    predicted. Tokens from the middle of the vocabulary: special ones stand at its ends."""
    prefix_length, branch_length = _LENGTHS[device.type]
    low = vocabulary // 8
    tokens = np.random.default_rng(0).integers(
        low, max(vocabulary // 2, low + 1), prefix_length + 2 * branch_length + longer_by
    )
    first, second = tokens[: prefix_length + branch_length + longer_by], tokens[-branch_length:]
    hole, size = prefix_length + branch_length // 3, prefix_length + branch_length - 1
    return [
        TokenSequence(prompt_token_ids=TokenIds(ids[:1]), completion_token_ids=TokenIds(ids[1:]), sampled=sampled)
        for ids, sampled in (
            (first, None),
            (np.concatenate([tokens[:prefix_length], second]), ((0, hole), (hole + branch_length // 3, size))),
        )
    ]


def _noting(attention: TreeAttention, windows: list[int | None]) -> TreeAttention:
    def noted(query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, *, scale: float, window: int | None) -> Tensor:
        windows.append(window)
        return attention(query_HND, key_KND, value_KND, scale=scale, window=window)

    return noted


def _wrong_calls(windows: list[int | None], expected: list[int | None]) -> str | None:
    """Whether each layer called the attention once, or each as often as the others, with its window."""
    calls, rest = divmod(len(windows), len(expected))
    if rest or not calls:
        return f"calls the attention {len(windows)} times in {len(expected)} layers"
    if windows != [window for window in expected for _ in range(calls)]:
        return f"has the sliding windows {expected}, but asks the attention for {windows}"
    return None


def _dropouts(policy: nn.Module) -> list[nn.Module]:
    return [module for module in policy.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]


@contextmanager
def _undisturbed(policy: nn.Module, device: torch.device) -> Iterator[None]:
    """Random numbers and modes are afterwards what they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            policy.train()


def _said(error: Exception) -> str:
    """The first line of an error; out of memory says nothing about the model."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
