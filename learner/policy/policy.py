"""Makes the policy: a frozen base model with a LoRA adapter. Whoever has one needs what stands beside it, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from learner.config import LearnerConfig
from learner.errors import LearnerError
from learner.policy.adapter_files import lost_on_loading
from learner.policy.base_model import load_base
from learner.policy.forward import Policy as Policy
from learner.policy.inputs import TreeInputs as TreeInputs
from learner.policy.inputs import tree_inputs as tree_inputs
from learner.policy.inputs import tree_logprobs as tree_logprobs
from learner.policy.layers import switch_off_randomness
from learner.policy.lora_linear import fused_lora_layer
from learner.policy.self_test import first_line, settle
from learner.policy.targets import AdapterTargets, adapter_targets
from learner.tree.attention import ATTENTION_NAME, attend

if TYPE_CHECKING:
    from peft import LoraConfig


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
    from peft import get_peft_model

    transformers.AttentionInterface.register(ATTENTION_NAME, attend)
    dtype = base_dtype(config, device)
    base = load_base(model_path, config.quantization, dtype=dtype, device=device)
    base.requires_grad_(False)
    base.config.use_cache = False
    random = switch_off_randomness(base)
    targets = adapter_targets(base, config.lora)
    torch.manual_seed(seed)
    adapter = _lora_config(base, config, targets)
    try:
        model = get_peft_model(base, adapter, autocast_adapter_dtype=False)
    except ValueError as error:
        raise LearnerError(f"peft makes no adapter for this {type(base).__name__}: {first_line(error)}") from error
    if lost := lost_on_loading(model):
        raise LearnerError(
            f"peft does not read the adapters on {', '.join(lost)} of this {type(base).__name__} back from a file that "
            "it has written: leave them out of learner.lora.target_modules"
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if base.get_input_embeddings().weight.dtype != dtype:  # trained, in float32; the layers behind them are not
        base.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.to(dtype))
    # The policy casts for its head itself; this is for the model's own forward.
    base.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0].to(head.weight.dtype),))
    if config.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(model)
    policy.entropy_gradient = config.loss.entropy_coef != 0
    policy.train()  # without it gradient checkpointing is off
    if config.quantization == "none":
        policy.to(device)
    not_shared = settle(policy, config, device, dtype)
    said = {
        f"switched off: {', '.join(random)}": random,
        f"share_prefixes=false: {not_shared}": not_shared,
        f"a batch with a sequence of more than {policy.alone_beyond} tokens is taken one by one": policy.alone_beyond,
    }
    policy.notes = (*targets.notes, *(note for note, applies in said.items() if applies))
    return policy


def _lora_config(base: Any, config: LearnerConfig, targets: AdapterTargets) -> LoraConfig:
    """peft's settings of the adapter."""
    from peft import LoraConfig

    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.lora_alpha,
        lora_dropout=config.lora.lora_dropout,
        target_modules=list(targets.names),
        exclude_modules=targets.exclude,
        bias="none",
        modules_to_save=list(config.lora.modules_to_save) or None,
        # Tied embeddings are one tensor: it is trained once, by whichever name, with the gradient of both uses.
        ensure_weight_tying=bool(config.lora.modules_to_save) and base.config.get_text_config().tie_word_embeddings,
    )
    if config.quantization == "none" and config.zero_stage != 3:  # which gathers weights where a layer is called itself
        adapter._register_custom_module({nn.Linear: fused_lora_layer()})
    return adapter


def base_dtype(config: LearnerConfig, device: torch.device) -> torch.dtype:
    """The precision that the base model is held in.

    Returns:
        `config.dtype`; for `auto` float32 on CPUs (bfloat16 is several times slower there) and bfloat16 elsewhere.
    """
    if config.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
