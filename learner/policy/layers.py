"""What a base's layers do beside full attention, read from its configuration and modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

ATTENTION_LAYERS = ("full_attention", "sliding_attention")
"""Kinds of layers, as `transformers` names them, in which a token sees its ancestors alone."""

NO_ATTENTION = 2**31
"""`positions_per_token` of a model whose tokens cost the same wherever they stand."""

_RANDOM = re.compile(r"drop|jitter")


def switch_off_randomness(base: nn.Module) -> list[str]:
    """Dropout of the base to 0, for the sampler has none; also in modules that go into training, see below.

    Returns:
        What training would have had, as `name=value`.
    """
    found = set()
    for module in base.modules():
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        for name, value in list(vars(module).items()):
            named = name == "p" if is_dropout else _RANDOM.search(name)
            if named and isinstance(value, float) and value > 0:
                found.add(f"{'dropout' if is_dropout else name}={value:g}")
                if is_dropout or hasattr(module, "gradient_checkpointing"):
                    setattr(module, name, 0.0)
    return sorted(found)


@contextmanager
def without_dropout(dropouts: Sequence[nn.Module]) -> Iterator[None]:
    """Not `policy.eval()`: bitsandbytes then repacks a 4-bit base on CPUs, with its scales rounded to bfloat16."""
    try:
        for module in dropouts:
            module.eval()
        yield
    finally:
        for module in dropouts:
            module.train()


def kept_in_evaluation(base: nn.Module) -> list[nn.Module]:
    """The model's own modules, but for those that recompute activations, which they do in training alone. The others
    are to stay as the sampler has them: in training they jitter (Mixtral's routers) or draw experts (PhiMoE's)."""
    modules = [module for module in base.modules() if type(module).__module__.startswith("transformers.models.")]
    return [module for module in modules if not getattr(module, "gradient_checkpointing", False)]


def text_part(base: Any) -> str:
    """The name of the module that reads text, beside towers for images and sounds; empty: there are none."""
    if base.config.get_text_config() is base.config:
        return ""
    decoder = base.get_decoder()
    return next((name for name, module in base.named_modules() if module is decoder), "")


def other_layers(base: Any) -> str | None:
    """The kinds of layers that mix tokens by something else than full or sliding attention, or count the tokens before
    one themselves, as far as the configuration names them; None: it names no such."""
    text = base.config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ()
    other = [kind for kind in dict.fromkeys(kinds) if kind not in ATTENTION_LAYERS]
    if getattr(text, "attn_temperature_tuning", None):  # Llama 4, from its floor_scale-th token on
        other.append("scaled by the place in the row")
    return f"{', '.join(other)} ({layer_classes(base)})" if other else None


def layer_classes(base: nn.Module) -> str:
    """The classes that may mix tokens, for messages: what holds a convolution along them, or else calls itself so."""
    modules = list(base.modules())
    convolve = [module for module in modules if any(isinstance(child, nn.Conv1d) for child in module.children())]
    found = convolve or next(filter(None, (_named(modules, end) for end in ("Attention", "Mixer", "Block"))), [base])
    return ", ".join(dict.fromkeys(type(module).__name__ for module in found))


def _named(modules: list[nn.Module], end: str) -> list[nn.Module]:
    return [module for module in modules if type(module).__name__.endswith(end)]


def expected_windows(text: Any) -> list[int | None]:
    """The sliding window of each layer; None: it has none. Models that do not name their layers have one for all."""
    window = getattr(text, "sliding_window", None) or None
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def logit_scale(text: Any) -> float:
    """What the model multiplies its logits by: Cohere, Falcon-H1, HyperCLOVA X; Granite and Inkling divide. MPT has the
    number and does neither."""
    if text.model_type == "mpt":
        return 1.0
    multiplied, divided = ["logit_scale", "lm_head_multiplier"], ["logits_scaling", "logits_mup_width_multiplier"]
    if text.model_type.startswith("hyperclovax"):
        multiplied.append(divided.pop(0))
    scale = 1.0
    for name in multiplied:
        scale *= float(getattr(text, name, None) or 1.0)
    for name in divided:
        scale /= float(getattr(text, name, None) or 1.0)
    return scale


def logit_softcap(text: Any) -> float | None:
    """The bound of the model's logits, softcap · tanh(logits / softcap); None: it has none."""
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    caps = (getattr(text, name, None) for name in names)
    return next((float(cap) for cap in caps if cap), None)


def positions_per_token(base: Any) -> int:
    """How many ancestors a token has when attention to them costs as much as all linear layers: of these each weight is
    a multiply-add, and of each layer's attention an ancestor one for each of a head's numbers, twice."""
    text = base.config.get_text_config()
    layers = [text] * getattr(text, "num_hidden_layers", 1)
    if getattr(text, "per_layer_config", None) is not None:  # heads of Gemma 4 are of two sizes
        layers = [text.per_layer_config[index] for index in range(text.num_hidden_layers)]
    if not all(getattr(layer, "num_attention_heads", None) for layer in layers):
        return NO_ATTENTION
    head = base.get_output_embeddings()
    weights: int = sum(
        module.in_features * module.out_features
        for module in base.get_submodule(text_part(base)).modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    width: int = sum(
        layer.num_attention_heads * (getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads)
        for layer in layers
    )
    return max(1, weights // (2 * width))


def rotary_scalings(text: Any) -> list[Mapping[str, Any]]:
    """Parameters of the rotary positions: one set, or one for each kind of layer."""
    rope = getattr(text, "rope_parameters", None) or {}
    return [one for one in (rope, *rope.values()) if isinstance(one, dict) and "rope_type" in one]


def frequencies_change_beyond(text: Any) -> int | None:
    """The length above which the rotary frequencies of a sequence are others, and of all beside it: `longrope` has two
    sets, and the longest sequence chooses; None: there is one set."""
    scalings = [one for one in rotary_scalings(text) if one["rope_type"] == "longrope"]
    return min((int(one["original_max_position_embeddings"]) for one in scalings), default=None)
