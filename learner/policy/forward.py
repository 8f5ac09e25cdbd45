"""The policy's forward pass: log-probabilities over a prefix tree, or over one sequence a row.

Shapes: N packed tokens of a tree, R predictions, E hidden size.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Self

from torch import Tensor, nn

from learner.errors import LearnerError
from learner.policy.inputs import TreeInputs
from learner.policy.layers import (
    frequencies_change_beyond,
    kept_in_evaluation,
    logit_scale,
    logit_softcap,
    positions_per_token,
    rotary_scalings,
)
from learner.policy.logprob_head import token_logprobs
from learner.tree.attention import ATTENTION_NAME


class Policy(nn.Module):
    """Base model and adapter. Only the adapter has gradients (with it modules trained whole: peft's `modules_to_save`);
    it is float32 whatever the base's precision."""

    notes: tuple[str, ...] = ()
    """What is to be said of it at start."""
    own_attention = False
    """The base takes one sequence a row, by its own attention, instead of a tree."""
    entropy_gradient = False
    """Entropies carry a gradient, for a loss that wants it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        base = model.get_base_model()
        _check_supported(base)
        self._kept_in_evaluation = kept_in_evaluation(base)
        self.dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        # Found by a method, not registered twice: parameters keep one name.
        self._base = (base,)
        text = base.config.get_text_config()
        self._logit_scale, self._softcap = logit_scale(text), logit_softcap(text)
        self.alone_beyond = frequencies_change_beyond(text)
        self.positions_per_token = positions_per_token(base)
        # `transformers` takes PyTorch's attention for Gemma 2, and leaves the soft caps of its scores out.
        capped = getattr(text, "attn_logit_softcapping", None)
        self._own_implementation = "eager" if capped else text._attn_implementation
        self.use_tree_attention()

    def train(self, mode: bool = True) -> Self:
        """The adapter's dropout and gradient checkpointing are switched by it; the base stays as the sampler has it."""
        super().train(mode)
        for module in self._kept_in_evaluation:
            module.training = False
        return self

    def use_tree_attention(self) -> None:
        """From now on it takes trees."""
        self.own_attention = False
        self._base[0].set_attn_implementation(ATTENTION_NAME)

    def use_own_attention(self) -> None:
        """From now on it takes one sequence a row, by the base's own kernels."""
        self.own_attention = True
        self._base[0].set_attn_implementation(self._own_implementation)

    def must_be_alone(self, num_tokens: int) -> bool:
        """Whether rotary frequencies depend on the length of a sequence so long: no other may be in its pass."""
        return self.alone_beyond is not None and num_tokens > self.alone_beyond

    def forward(self, inputs: TreeInputs, temperature: float, use_adapter: bool = True) -> tuple[Tensor, Tensor]:
        """What the policy gives the tree's predictions.

        Args:
            inputs: A tree on the policy's device; R predictions.
            temperature: That logits are divided by.
            use_adapter: False switches it off: the base model's, the reference of the KL term.

        Returns:
            Log-probabilities and entropies, nats; shape (R,) each.

        Raises:
            ValueError: The temperature is not above 0, or the inputs were made for another attention than the policy
                has.
        """
        if temperature <= 0:
            raise ValueError(f"log-probabilities need a temperature above 0, got {temperature}")
        if (inputs.attention is None) != self.own_attention:
            raise ValueError(f"own_attention={self.own_attention}, but the inputs were made for the other attention")
        (base,) = self._base
        arguments: dict[str, Any] = {"input_ids": inputs.token_ids_SL, "use_cache": False}
        if inputs.attention is not None:  # of rows, positions are what every model counts itself
            arguments |= {"position_ids": inputs.position_ids_SL, "tree_attention": inputs.attention}
        with nullcontext() if use_adapter else self.model.disable_adapter():
            backbone = getattr(base, base.base_model_prefix, None) or getattr(base, "model", None)
            backbone = backbone or base.language_model.model  # Llama 4, beside what it sees with
            hidden_NE = backbone(**arguments).last_hidden_state.flatten(0, 1)
            head = base.get_output_embeddings()
            weight, bias = head.weight, head.bias  # the trained ones or the base's, as the adapter is on or off
        hidden_RE = hidden_NE.index_select(0, inputs.predictor_R)
        # Logits are scaled, then capped: what token_logprobs does with them in their own measure.
        return token_logprobs(
            hidden_RE,
            weight,
            bias,
            inputs.target_R,
            temperature=temperature / self._logit_scale,
            softcap=self._softcap and self._softcap / self._logit_scale,
            entropy_gradient=self.entropy_gradient,
        )


def _check_supported(base: Any) -> None:
    """Refuses what the tree attention and the chunked head would compute wrongly."""
    text = base.config.get_text_config()
    head = base.get_output_embeddings()
    head = getattr(head, "original_module", head)  # peft's wrapper of a module that is trained whole
    if type(head) is not nn.Linear:
        raise LearnerError(f"the output projection is a {type(head).__name__}; the learner needs a plain nn.Linear")
    for scaling in rotary_scalings(text):
        if scaling["rope_type"] == "dynamic" and not scaling.get("alpha"):
            raise LearnerError(
                "the model's rope_type=dynamic has other frequencies for every length, and vLLM has one set for all: "
                "choose another rope_type in its config.json, such as yarn"
            )
    if getattr(text, "use_bidirectional_attention", False):
        raise LearnerError("the model's attention is bidirectional; the learner needs a causal language model")
