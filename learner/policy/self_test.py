"""Asks the model itself, at start, whether what the learner computes is what the model computes.

A layer that takes `tree_attention=` through `**kwargs` and goes on without it gives no error: its log-probabilities are
off by nats. So two sequences behind one prefix are packed and compared with each of them alone, by the model's own
forward: what enters every layer that has an adapter, log-probabilities, and gradients of a fresh adapter. What enters a
layer is looked at because depth may hide the rest: where layer after layer makes tokens alike, positions that are wrong
move log-probabilities by less than rounding. And the test is tested: with the branches a position too far, it must show
clearly more. Sequences are short, so two things are looked at beside the numbers: whether every layer called the tree's
attention, and with the window that the configuration gives it.

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
from learner.policy.layer_inputs import LayerInputs, joined, layers_apart, noted_inputs, share, taken
from learner.policy.layers import expected_windows, layer_classes, other_layers
from learner.tree.attention import TreeAttention
from learner.tree.prefix_tree import TokenSequence, build_tree
from rollout_server.arrays import TokenIds

_LENGTHS = {"cpu": (10, 6), "cuda": (160, 84)}
"""Tokens of the prefix and of each branch: few where they cost time, and where kernels are compiled more than one of
their blocks, which a batch has too."""

_TOLERANCES = {
    ("cpu", torch.float32): (1e-4, 1e-3, 1e-3),
    ("cuda", torch.float32): (5e-3, 2e-2, 2e-2),  # products may be in TF32
    ("cpu", torch.bfloat16): (0.04, 0.15, 0.1),
    ("cuda", torch.bfloat16): (0.04, 0.15, 0.1),
}
"""RMS difference of log-probs in their standard deviation, and of the gradient and of what enters a layer in their
norms. Over 80 families of tiny random models rounding made at most 4e-5, 5e-5 and 2e-6 in float32, and 0.016, 0.06 and
0.012 in bfloat16; positions wrong by one changed what enters some layer by 0.06 to 0.6."""

_AHEAD = 0.1
"""Of the log-probs' standard deviation: an encoder's change by one, rounding's by a twentieth at most."""

_CLEARLY, _FIRST = 3.0, 5
"""How many times more than rounding positions that are wrong by one must change what enters some layer, and of how many
tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Forward:
    """Log-probs of the predicted tokens of each sequence, and what entered each layer where they were predicted."""

    logprobs: list[Tensor]
    inputs: LayerInputs


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """A forward pass, and the gradient of a weighted sum of its log-probs."""

    logprobs: Tensor
    inputs: LayerInputs
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
        self._rounding = torch.finfo(dtype).eps
        self._sequences = _sequences(self._text.vocab_size, device, longer_by)
        # In evaluation, as the sampler runs it; a 4-bit base on CPUs would be packed anew, with rounded scales.
        policy.train(config.quantization != "none")
        policy.use_own_attention()
        try:
            self._alone = self._outcome(self._each_alone())
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
        """How the packed sequences differ from each alone; None: not by more than rounding, which is clearly less than
        what a wrong position makes. `windows` is filled with the window of every call of the tree's attention."""
        try:
            found = self._outcome(self._packed(attention, windows))
            with torch.no_grad():
                misplaced = found if attention == "own" else self._packed(attention, shift=1)
        except Exception as error:
            return f"fails: {_said(error)}"
        logprobs = self._alone.logprobs
        nats = float((found.logprobs - logprobs).square().mean().sqrt())
        gradient = float(share(found.gradient, self._alone.gradient))
        most = float(layers_apart(found.inputs, self._alone.inputs).max())
        rtol, gradient_tol, layer_tol = self._tolerances
        # Each False where not a number.
        if not (nats <= rtol * float(logprobs.std()) + 1e-6 and gradient <= gradient_tol and most <= layer_tol):
            return (
                f"differs from each sequence alone by {nats:.2g} nats, and its gradient by "
                f"{100 * gradient:.2g} %; what enters its layers by up to {100 * most:.2g} %"
            )
        # Of a branch the first tokens: those behind them look at the prefix less.
        start = _LENGTHS[self._device.type][0]
        first = slice(start, start + _FIRST)
        layers, beside = (layers_apart(one.inputs, self._alone.inputs, first) for one in (found, misplaced))
        # Positions that change nothing are none, or the model's own count of them, which is far off: that was seen.
        if torch.equal(layers, beside) or bool((beside > _CLEARLY * (layers + self._rounding)).any()):
            return None
        return (
            "cannot be told from a wrong one: where positions are wrong by one, what enters its layers differs by up "
            f"to {100 * float(beside.max()):.2g} %, and by up to {100 * float(layers.max()):.2g} % where they are right"
        )

    def _each_alone(self) -> _Forward:
        """Rows of a batch do not see each other: sequences of one length are one, for half the time."""
        ids = [torch.tensor(sequence.token_ids, device=self._device) for sequence in self._sequences]
        batches = [torch.stack(ids)] if len({len(row) for row in ids}) == 1 else [row[None] for row in ids]
        rows, inputs = [], []
        for batch_SL in batches:
            with noted_inputs(self._policy, batch_SL.numel()) as noted:
                rows += list(self._logprobs_of(batch_SL))
            inputs.append(noted)
        logprobs, token_P, begin = [], [], 0
        for row, sequence in zip(rows, self._sequences, strict=True):
            logprobs.append(torch.cat([row[start:stop] for start, stop in sequence.predicted]))
            token_P += [begin + index for start, stop in sequence.predicted for index in range(start, stop)]
            begin += len(sequence.token_ids)
        return _Forward(logprobs=logprobs, inputs=taken(joined(inputs), torch.tensor(token_P, device=self._device)))

    def _logprobs_of(self, ids_SL: Tensor) -> Tensor:
        logits_SLV = self._policy.model(input_ids=ids_SL, use_cache=False).logits[:, :-1]
        logprobs_SLV: Tensor = logits_SLV.float().log_softmax(-1)
        return logprobs_SLV.gather(2, ids_SL[:, 1:, None]).squeeze(2)

    def _packed(self, attention: AttentionKind, windows: list[int | None] | None = None, *, shift: int = 0) -> _Forward:
        """`shift` is added to the positions of all tokens behind the prefix, where they are wrong then."""
        tree = build_tree(self._sequences, share=attention != "own")
        tree.position_ids_N[tree.segments[0].stop :] += shift
        inputs = tree_inputs(tree, self._device, attention)
        if inputs.attention is not None and windows is not None:
            inputs = replace(inputs, attention=_noting(inputs.attention, windows))
        with noted_inputs(self._policy, inputs.token_ids_SL.numel()) as noted:
            logprobs_BT, _ = tree_logprobs(self._policy, inputs, temperature=1.0)
        mask_BT = inputs.mask_BT > 0
        return _Forward(
            logprobs=[row[mask] for row, mask in zip(logprobs_BT, mask_BT, strict=True)],
            inputs=taken(noted, inputs.predictor_R[inputs.row_BT[mask_BT]]),
        )

    def _outcome(self, forward: _Forward) -> _Outcome:
        adapter = {name: p for name, p in self._policy.named_parameters() if p.requires_grad and "lora_" in name}
        # Sequences of different weights, so that no error cancels.
        total = torch.stack([(index + 1) * row.sum() for index, row in enumerate(forward.logprobs)]).sum()
        gradients = torch.autograd.grad(total, list(adapter.values()), allow_unused=True)
        return _Outcome(
            logprobs=torch.cat(forward.logprobs).detach(),
            inputs=forward.inputs,
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
