"""The policy: a frozen base model with a LoRA adapter, and its log-probabilities over a prefix tree.

Shapes: N packed tokens of a tree, R predictions, B sequences, T completion tokens of the longest one, E hidden size.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learner.config import AttentionKind, LearnerConfig
from learner.errors import LearnerError
from learner.policy.base_model import load_base
from learner.policy.logprob_head import token_logprobs
from learner.policy.lora_linear import fused_lora_layer
from learner.tree.attention import ATTENTION_NAME, TreeAttention, attend, make_attention
from learner.tree.prefix_tree import PrefixTree


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeInputs:
    """A tree on the device: what the policy's forward takes."""

    token_ids_N: Tensor
    position_ids_N: Tensor
    predictor_R: Tensor
    target_R: Tensor
    row_BT: Tensor
    """Which prediction is completion token t of sequence b; 0 on padding."""
    mask_BT: Tensor
    """1 on completion tokens, 0 on padding; float32."""
    attention: TreeAttention


def tree_inputs(tree: PrefixTree, device: torch.device, attention: AttentionKind = "auto") -> TreeInputs:
    """Moves a tree to the device and plans its attention."""
    width = max((len(row) for row in tree.rows), default=0) or 1
    row_BT = torch.zeros(len(tree.rows), width, dtype=torch.long)
    mask_BT = torch.zeros(len(tree.rows), width)
    for b, row in enumerate(tree.rows):
        row_BT[b, : len(row)] = torch.from_numpy(row)
        mask_BT[b, : len(row)] = 1.0
    return TreeInputs(
        token_ids_N=torch.from_numpy(tree.token_ids_N).to(device),
        position_ids_N=torch.from_numpy(tree.position_ids_N).to(device),
        predictor_R=torch.from_numpy(tree.predictor_R).to(device),
        target_R=torch.from_numpy(tree.target_R).to(device),
        row_BT=row_BT.to(device),
        mask_BT=mask_BT.to(device),
        attention=make_attention(tree, device, attention),
    )


class Policy(nn.Module):
    """Base model and adapter. Only the adapter has gradients (with it modules trained whole: peft's `modules_to_save`);
    it is float32 whatever the base's precision."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        base = model.get_base_model()
        _check_supported(base)
        # Found by a method, not registered twice: parameters keep one name.
        self._base = (base,)

    def forward(self, inputs: TreeInputs, temperature: float, use_adapter: bool = True) -> tuple[Tensor, Tensor]:
        """Log-probabilities (R,) of the tree's predictions at `temperature`, and entropies (R,) without gradient.

        With `use_adapter=False` the adapter is switched off: the base model's, the reference of the KL term.
        """
        if temperature <= 0:
            raise ValueError(f"log-probabilities need a temperature above 0, got {temperature}")
        (base,) = self._base
        with nullcontext() if use_adapter else self.model.disable_adapter():
            backbone = getattr(base, base.base_model_prefix)
            hidden_NE = backbone(
                input_ids=inputs.token_ids_N.unsqueeze(0),
                position_ids=inputs.position_ids_N.unsqueeze(0),
                use_cache=False,
                tree_attention=inputs.attention,
            ).last_hidden_state.squeeze(0)
            head = base.get_output_embeddings()
            weight, bias = head.weight, head.bias  # the trained ones or the base's, as the adapter is on or off
        hidden_RE = hidden_NE.index_select(0, inputs.predictor_R)
        return token_logprobs(hidden_RE, weight, bias, inputs.target_R, temperature=temperature)


def tree_logprobs(
    policy: Any, inputs: TreeInputs, *, temperature: float, use_adapter: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of every completion token.

    Args:
        policy: A `Policy`, or an engine that calls one.
        inputs: The tree.
        temperature: At which log-probabilities are taken.
        use_adapter: False: those of the base model.

    Returns:
        Both of shape (B, T); what stands on padding means nothing.
    """
    logprobs_R, entropy_R = policy(inputs, temperature, use_adapter)
    return logprobs_R[inputs.row_BT], entropy_R[inputs.row_BT]


def load_policy(model_path: str, config: LearnerConfig, *, device: torch.device, seed: int) -> Policy:
    """Loads the base from a local folder, freezes it and puts a fresh adapter on (its B is 0: the base's behaviour).

    With `modules_to_save` these modules are trained too, as copies in float32.

    Args:
        model_path: The base's folder.
        config: Its precision and quantisation, and the adapter.
        device: Where it goes.
        seed: Of the adapter's first values.

    Raises:
        LearnerError: The folder holds no such model, or the learner would compute it wrongly.
    """
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.AttentionInterface.register(ATTENTION_NAME, attend)
    dtype = base_dtype(config, device)
    base = load_base(model_path, config.quantization, dtype=dtype, device=device, attn_implementation=ATTENTION_NAME)
    base.requires_grad_(False)
    base.config.use_cache = False
    torch.manual_seed(seed)
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.lora_alpha,
        lora_dropout=config.lora.lora_dropout,
        target_modules=list(config.lora.target_modules),
        bias="none",
        modules_to_save=list(config.lora.modules_to_save) or None,
        # Tied embeddings are one tensor: it is trained once, by whichever name, with the gradient of both uses.
        ensure_weight_tying=bool(config.lora.modules_to_save) and base.config.get_text_config().tie_word_embeddings,
    )
    if (
        config.quantization == "none" and config.zero_stage != 3
    ):  # ZeRO-3 gathers weights where a layer is called itself
        adapter._register_custom_module({nn.Linear: fused_lora_layer()})
    model = get_peft_model(base, adapter, autocast_adapter_dtype=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if base.get_input_embeddings().weight.dtype != dtype:  # trained, in float32; the layers behind them are not
        base.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.to(dtype))
    if config.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()  # without it gradient checkpointing is off
    policy = Policy(model)
    return policy if config.quantization == "nf4" else policy.to(device)


def base_dtype(config: LearnerConfig, device: torch.device) -> torch.dtype:
    """`auto` is float32 on CPUs (bfloat16 is several times slower there) and bfloat16 elsewhere."""
    if config.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]


def _check_supported(base: Any) -> None:
    """Refuses what the tree attention and the chunked head would compute wrongly."""
    text = base.config.get_text_config()
    head = base.get_output_embeddings()
    head = getattr(head, "original_module", head)  # peft's wrapper of a module that is trained whole
    if type(head) is not nn.Linear:
        raise LearnerError(f"the output projection is a {type(head).__name__}; the learner needs a plain nn.Linear")
    for name in ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(text, name, None) not in (None, 0, 1, 1.0):
            raise LearnerError(f"the model's {name}={getattr(text, name)} is not supported by the learner")
    if getattr(text, "use_bidirectional_attention", False):
        raise LearnerError("the model's attention is bidirectional; the learner needs a causal language model")
