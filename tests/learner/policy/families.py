"""Tiny random models of many families, and what the learner makes of each: the table in `learner/README.md`.

    python -m tests.learner.policy.families [--write] [FAMILY …]

A family is held against plain transformers and plain peft: base and adapter are loaded from their files, and take one
sequence at a time, without packing, padding or any code of ours.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.config import LearnerConfig, LoraSettings
from learner.errors import LearnerError
from learner.policy.adapter_files import AdapterFormat
from learner.policy.policy import Policy, load_policy, tree_inputs, tree_logprobs
from learner.tree.prefix_tree import TokenSequence, build_tree
from tests.learner.helpers import random_groups
from tests.models import VOCABULARY

README = Path(__file__).parents[3] / "learner" / "README.md"
TREES, ROWS, REFUSED = "prefix trees", "a sequence a row", "refused"
CPU = torch.device("cpu")

_SIZES: Mapping[str, object] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
_GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256}
_WINDOWS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SMALL_EXPERTS = {**_EXPERTS, "moe_intermediate_size": 24}
_ROUTED_EXPERTS = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_INDEXER = {"index_n_heads": 16, "index_head_dim": 16, "index_topk": 24}
"""Fewer than sequences have tokens. Of two heads scores would often be alike, and rounding choose."""
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_DELTA = {
    **_LINEAR,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
_COMPRESSED = {
    **_ROUTED_EXPERTS,
    "head_dim": 16,
    "num_key_value_heads": 1,
    "q_lora_rank": 16,
    "o_lora_rank": 8,
    "o_groups": 2,
    "hc_mult": 2,
    "sliding_window": 6,
}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_QWEN_TOWER = {"hidden_size": 16, "intermediate_size": 24, "depth": 1, "num_heads": 2, "out_hidden_size": 32}
_SCALED = {"factor": 4.0, "rope_theta": 10000.0}
_THREE_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_DECODER = {"d_model": 32, "decoder_layers": 12, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
"""Deep: where norms stand behind the layers, tokens become alike."""

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "llama, longrope": {
        "rope_parameters": {
            **_SCALED,
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 32,
        }
    },
    "llama, dynamic": {"rope_parameters": {**_SCALED, "rope_type": "dynamic"}, "max_position_embeddings": 32},
    "llama, linear": {"rope_parameters": {**_SCALED, "rope_type": "linear"}},
    "llama, llama3": {
        "rope_parameters": {
            **_SCALED,
            "rope_type": "llama3",
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "llama, yarn": {
        "rope_parameters": {**_SCALED, "rope_type": "yarn", "original_max_position_embeddings": 64},
    },
    "mistral": {"sliding_window": 6},
    "ministral": {"sliding_window": 6, "head_dim": 8},
    "ministral3": {},
    "mixtral": {**_LOCAL_EXPERTS, "sliding_window": 6, "router_jitter_noise": 0.1},
    "qwen2": {},
    "qwen2, sliding": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen2_moe": {**_SMALL_EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3": {"head_dim": 12},
    "qwen3_moe": _SMALL_EXPERTS,
    "qwen3, partial": {"head_dim": 12, "partial_rotary_factor": 0.5, "num_hidden_layers": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 6},
    "gemma3_text": {"head_dim": 8, **_WINDOWS},
    "gemma3n_text": {
        "head_dim": 8,
        **_WINDOWS,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 0,
        "intermediate_size": [48, 48],
        "activation_sparsity_pattern": [0.0, 0.0],
        "laurel_rank": 8,
    },
    "gemma4_text": {
        "head_dim": 8,
        "global_head_dim": 16,
        **_WINDOWS,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "gemma2, uncapped": {
        "head_dim": 8,
        "sliding_window": 6,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    },
    "gemma4_text, shared": {
        "head_dim": 8,
        "global_head_dim": 16,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "gemma4_text, experts": {
        "head_dim": 8,
        "global_head_dim": 16,
        **_WINDOWS,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 24,
    },
    "phi": {},
    "phi3": {"resid_pdrop": 0.1},
    "phimoe": {**_LOCAL_EXPERTS, "sliding_window": 6},
    "smollm3": {},
    "smollm3, no positions": {"no_rope_layers": [0, 0]},
    "olmo": {"clip_qkv": 1.0},
    "olmo2": {},
    "olmo3": {"sliding_window": 6},
    "olmoe": _EXPERTS,
    "flex_olmo": _EXPERTS,
    "exaone4": _WINDOWS,
    "exaone_moe": {
        **_SMALL_EXPERTS,
        **_WINDOWS,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "ernie4_5": {},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 1},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "hyperclovax": {},
    "cwm": {"head_dim": 8, "sliding_window": 6},
    "helium": {"head_dim": 8},
    "bitnet": {},
    "diffllama": {},
    "minimax_m2": {**_LOCAL_EXPERTS, "head_dim": 8, "rotary_dim": 4},
    "jetmoe": {**_LOCAL_EXPERTS, "kv_channels": 8},
    "jais2": {},
    "seed_oss": {"head_dim": 8, "residual_dropout": 0.1},
    "apertus": {},
    "arcee": {},
    "starcoder2": {"sliding_window": 6},
    "afmoe": {
        **_SMALL_EXPERTS,
        "head_dim": 8,
        "num_dense_layers": 1,
        "num_shared_experts": 1,
        "sliding_window": 6,
        "global_attn_every_n_layers": 2,
    },
    "dots1": {**_ROUTED_EXPERTS, "head_dim": 8},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "glm4_moe": {**_ROUTED_EXPERTS, "head_dim": 8},
    "granite": {"logits_scaling": 8.0},
    "granitemoe": {**_LOCAL_EXPERTS, "logits_scaling": 8.0},
    "granitemoeshared": {**_LOCAL_EXPERTS, "shared_intermediate_size": 24},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"head_dim": 8, "sliding_window": 6},
    "deepseek_v2": {**_ROUTED_EXPERTS, **_LATENT},
    "deepseek_v3": {**_ROUTED_EXPERTS, **_LATENT},
    "minicpm3": _LATENT,
    "youtu": _LATENT,
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "axk1": {**_ROUTED_EXPERTS, **_LATENT},
    "bart": {**_DECODER, "decoder_layers": 2},
    "bart, deep": _DECODER,
    "marian": _DECODER,
    "plbart": _DECODER,
    "mbart": _DECODER,
    "pegasus": _DECODER,
    "blenderbot": _DECODER,
    "trocr": _DECODER,
    "whisper": _DECODER,
    "bert-generation": {"is_decoder": True},
    "megatron-bert": {"is_decoder": True},
    "moshi": {},
    "biogpt": {},
    "cohere2_moe": {**_SMALL_EXPERTS, "head_dim": 8, "sliding_window": 6},
    "ctrl": {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 256,
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "glm4_moe_lite": {**_ROUTED_EXPERTS, **_LATENT},
    "hrm_text": {"H_cycles": 1, "L_cycles": 1},
    "hy_v3": {**_SMALL_EXPERTS, "head_dim": 8},
    "mellum": {**_SMALL_EXPERTS, "head_dim": 8, "sliding_window": 6},
    "minimax_m3_vl_text": {**_LOCAL_EXPERTS, "head_dim": 8},
    "solar_open": {**_ROUTED_EXPERTS, "head_dim": 8},
    "gpt2": {**_GPT2, "resid_pdrop": 0.1},
    "gpt_bigcode": {**_GPT2, "n_inner": 48},
    "gpt_neox": {},
    "persimmon": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "opt, norms behind": {
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
        "do_layer_norm_before": False,
        "num_hidden_layers": 8,
    },
    "gpt_oss": {**_LOCAL_EXPERTS, "head_dim": 8, "sliding_window": 6},
    "granitemoe_swa": {**_LOCAL_EXPERTS, "sliding_window": 6},
    "mimo_v2_flash": {**_ROUTED_EXPERTS, "head_dim": 8, "v_head_dim": 8, "sliding_window": 6},
    "gpt_neox_japanese": {"intermediate_multiple_size": 2},
    "openai-gpt": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256},
    "deepseek_v32": {**_ROUTED_EXPERTS, **_LATENT, **_INDEXER},
    "glm_moe_dsa": {**_ROUTED_EXPERTS, **_LATENT, **_INDEXER},
    "minimax_m3_vl_text, sparse": {
        **_LOCAL_EXPERTS,
        "head_dim": 8,
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "layer_types": ["full_attention", "minimax_m3_sparse"],
    },
    "granite_swa": {},
    "nemotron": {},
    "stablelm": {},
    "gptj": {**_GPT2, "rotary_dim": 4},
    "codegen": {**_GPT2, "n_ctx": 256, "rotary_dim": 4},
    "gpt_neo": {"num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 6},
    "falcon": {},
    "falcon, alibi": {"alibi": True},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "bloom": {"n_layer": 2, "n_head": 4},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
    "doge": {},
    "llama4_text": {**_LOCAL_EXPERTS, "head_dim": 8, "intermediate_size_mlp": 48, "attention_chunk_size": 8},
    "modernbert-decoder": {"local_attention": 6, "global_attn_every_n_layers": 2},
    "qwen3_next": {**_SMALL_EXPERTS, **_DELTA, "head_dim": 8, "shared_expert_intermediate_size": 24},
    "qwen3_5_text": {**_DELTA, "head_dim": 8},
    "qwen3_5_moe_text": {**_SMALL_EXPERTS, **_DELTA, "head_dim": 8, "shared_expert_intermediate_size": 24},
    "olmo_hybrid": {**_DELTA, "linear_num_key_heads": 4},
    "kimi_linear": {
        **_LATENT,
        **_LINEAR,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
    },
    "minimax": {**_LOCAL_EXPERTS, **_LINEAR, "head_dim": 8, "block_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48, "block_multiple_of": 8},
    "lfm2_moe": {**_SMALL_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 32, "mamba_n_heads": 4, "head_dim": 8, "lm_head_multiplier": 0.5},
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **_LOCAL_EXPERTS,
        **_MAMBA2,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 24,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mlp"],
        "num_hidden_layers": 3,
        "head_dim": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 8,
        "chunk_size": 8,
        "use_mamba_kernels": False,
    },
    "jamba": {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "n_mamba_heads": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "mamba_d_state": 8,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "use_shared_mlp_adapter": True,
        "adapter_rank": 4,
        "use_mem_rope": True,
    },
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "rwkv": {"attention_hidden_size": 32, "context_length": 256},
    "recurrent_gemma": {
        "block_types": ["recurrent", "attention"],
        "lru_width": 32,
        "attention_window_size": 6,
        "head_dim": 8,
    },
    "xlstm": {"num_heads": 4, "num_blocks": 2},
    "hyperclovax, scaled": {"logits_scaling": 4.0, "attention_multiplier": 0.4, "embedding_multiplier": 2.0},
    "mpt, scaled": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "logit_scale": 2.0},
    "gemma4_text, capped": {
        "head_dim": 8,
        "global_head_dim": 16,
        **_WINDOWS,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "final_logit_softcapping": 3.0,
    },
    "laguna": {**_SMALL_EXPERTS, "head_dim": 8},
    "bert": {},
    "roberta": {},
    "nanochat": {},
    "vaultgemma": {"head_dim": 8, "sliding_window": 6},
    "gemma4_unified_text": {
        "head_dim": 8,
        "global_head_dim": 16,
        **_WINDOWS,
        "use_bidirectional_attention": None,
    },
    "cohere_compass_text": {
        **_WINDOWS,
        "logit_scale": 0.25,
        "rope_parameters": {"full_attention": _THREE_AXES, "sliding_attention": _THREE_AXES},
    },
    "longcat_flash": {
        **_LATENT,
        "head_dim": 8,
        "num_layers": 1,
        "ffn_hidden_size": 48,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "expert_ffn_hidden_size": 24,
    },
    "ministral3, scaled": {
        "rope_parameters": {
            **_SCALED,
            "rope_type": "yarn",
            "original_max_position_embeddings": 24,
            "llama_4_scaling_beta": 0.5,
        },
    },
    "llama4_text, whole": {
        **_LOCAL_EXPERTS,
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "layer_types": ["full_attention"] * 2,
        "no_rope_layers": [0, 1],
        "floor_scale": 24,
    },
    "mvp": {**_DECODER, "decoder_layers": 2},
    "blenderbot-small": {**_DECODER, "decoder_layers": 2},
    "bigbird_pegasus": {**_DECODER, "decoder_layers": 2},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": True},
    "axk2": {
        **_ROUTED_EXPERTS,
        **_LATENT,
        **_INDEXER,
        "head_dim": 8,
        "gated_norm_rank": 4,
        "mlp_layer_types": ["dense", "sparse"],
    },
    "hy_v4": {**_ROUTED_EXPERTS, **_LATENT, **_INDEXER, "head_dim": 16, "mlp_layer_types": ["dense", "sparse"]},
    "deepseek_v4": {**_COMPRESSED, "num_hidden_layers": 4, "index_n_heads": 16, "index_head_dim": 16, "index_topk": 4},
    "deepseek_v4, sliding": {**_COMPRESSED, "layer_types": ["sliding_attention"] * 2},
    "zaya": {**_SMALL_EXPERTS, "num_experts_per_tok": 1, "head_dim": 8, "router_hidden_size": 16},
    "inkling_text": {
        **_ROUTED_EXPERTS,
        "head_dim": 8,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "sliding_window_size": 6,
        "d_rel": 4,
        "rel_extent": 16,
        "logits_mup_width_multiplier": 4.0,
    },
    "qwen4_exp_text": {
        **_SMALL_EXPERTS,
        **_DELTA,
        "head_dim": 8,
        "shared_expert_intermediate_size": 24,
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "gemma3": {"text_config": {**_SIZES, "head_dim": 8, **_WINDOWS}, "vision_config": _TOWER, "mm_tokens_per_image": 1},
    "gemma4": {
        "text_config": {
            **_SIZES,
            "head_dim": 8,
            "global_head_dim": 16,
            **_WINDOWS,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": VOCABULARY,
        },
        "vision_config": {**_TOWER, "num_key_value_heads": 2, "head_dim": 8},
        "audio_config": None,
    },
    "llama4": {
        "text_config": {**_SIZES, **_LOCAL_EXPERTS, "head_dim": 8, "intermediate_size_mlp": 48},
        "vision_config": {**_TOWER, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    },
    "mistral3": {
        "text_config": {**_SIZES, "model_type": "mistral", "head_dim": 8, "sliding_window": 6},
        "vision_config": {**_TOWER, "model_type": "pixtral", "head_dim": 8},
    },
    "qwen2_5_vl": {
        "text_config": {**_SIZES, "rope_parameters": _THREE_AXES},
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 24,
            "out_hidden_size": 32,
        },
    },
    "qwen3_vl": {
        "text_config": {**_SIZES, "head_dim": 8, "rope_parameters": _THREE_AXES},
        "vision_config": {**_QWEN_TOWER, "deepstack_visual_indexes": [0]},
    },
    "qwen3_5": {"text_config": {**_SIZES, **_DELTA, "head_dim": 8}, "vision_config": _QWEN_TOWER},
}
"""A kind of `transformers`, with a variant behind a comma → what its configuration has beside `_SIZES`."""


def build(family: str, folder: Path, **settings: Any) -> None:
    """Writes a random model whose log-probabilities are spread out; norms, biases and decays are random too."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    own = {**FAMILIES[family], **settings}
    reads_images = "vision_config" in own
    config = AutoConfig.for_model(family.partition(",")[0], **(own if reads_images else {**_SIZES, **own}))
    kind: Any = AutoModelForImageTextToText if reads_images else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = kind.from_config(config).float()
        for parameter in model.parameters():
            random = torch.randn_like(parameter)
            parameter.data.copy_(0.3 * random if parameter.ndim > 1 else parameter + 0.1 * random)
    model.save_pretrained(folder)


def load(folder: Path, **settings: Any) -> Policy:
    """The learner's policy, with an adapter on all linear layers that does something: a fresh one has B = 0."""
    config = LearnerConfig(**({"lora": LoraSettings(r=4, target_modules=("all-linear",))} | settings))
    policy = load_policy(str(folder), config, device=CPU, seed=0)
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return policy


def some_sequences() -> list[TokenSequence]:
    """Of uneven lengths, about 25 to 40 tokens, behind one header."""
    return [
        TokenSequence(prompt_token_ids=group.prompt_token_ids, completion_token_ids=tuple(member.completion.token_ids))
        for group in random_groups(0, num_groups=2, num_generations=3)
        for member in group.members
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Log-probs of each sequence's completion, and the gradient of their weighted sum by peft's names."""

    logprobs: list[Tensor]
    gradients: dict[str, Tensor]


def learned(policy: Policy, sequences: Sequence[TokenSequence]) -> Outcome:
    """As a step of the learner does it: one tree, or one micro-batch of rows; each alone where it must be."""
    longest = max(len(sequence.token_ids) for sequence in sequences)
    parts = [[one] for one in sequences] if policy.must_be_alone(longest) else [list(sequences)]
    logprobs = [row for part in parts for row in _packed(policy, part)]
    return _outcome(logprobs, policy, strip="model.")


def _packed(policy: Policy, sequences: Sequence[TokenSequence]) -> list[Tensor]:
    own = policy.own_attention
    inputs = tree_inputs(build_tree(sequences, share=not own), CPU, "own" if own else "auto")
    logprobs_BT, _ = tree_logprobs(policy, inputs, temperature=0.7)
    return [row[mask > 0] for row, mask in zip(logprobs_BT, inputs.mask_BT, strict=True)]


def alone(folder: Path, policy: Policy, sequences: Sequence[TokenSequence]) -> Outcome:
    """By plain transformers and peft, which load the policy's files; in evaluation, as a sampler has it, and by the
    attention that is written out in the model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    tensors = {name.removeprefix("model."): p for name, p in policy.named_parameters() if p.requires_grad}
    with tempfile.TemporaryDirectory() as adapter:
        for name, content in AdapterFormat.of(policy.model, tensors, base_model=str(folder)).files(tensors).files:
            (Path(adapter) / name).write_bytes(content)
        config = policy.model.get_base_model().config
        written_out = None if config.model_type == "falcon" else "eager"  # Falcon's own adds ALiBi twice
        kind: Any = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
        base = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation=written_out)
        model = PeftModel.from_pretrained(base, adapter, is_trainable=True).eval()
    return _outcome([_alone(model, sequence) for sequence in sequences], model, strip="")


def _alone(model: Any, sequence: TokenSequence) -> Tensor:
    ids_L = torch.tensor(sequence.token_ids)
    logprobs_LV = (model(input_ids=ids_L[None], use_cache=False).logits[0, :-1] / 0.7).log_softmax(-1)
    return logprobs_LV.gather(1, ids_L[1:, None]).squeeze(1)[len(sequence.prompt_token_ids) - 1 :]


def _outcome(logprobs: list[Tensor], model: torch.nn.Module, *, strip: str) -> Outcome:
    sum((index + 1) * row.sum() for index, row in enumerate(logprobs)).backward()  # type: ignore[union-attr]
    named = {name.removeprefix(strip): p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named.items()}
    return Outcome(logprobs=[row.detach() for row in logprobs], gradients=gradients)


def differences(found: Outcome, expected: Outcome) -> tuple[float, float]:
    """The largest of all log-probs, in nats; and of the gradient, as a share of its norm."""
    assert found.gradients.keys() == expected.gradients.keys()
    nats = max(float((a - b).abs().max()) for a, b in zip(found.logprobs, expected.logprobs, strict=True))
    apart, whole = (
        torch.stack([tensor.norm() for tensor in tensors]).norm()
        for tensors in (
            [found.gradients[name] - gradient for name, gradient in expected.gradients.items()],
            list(expected.gradients.values()),
        )
    )
    return nats, float(apart / whole)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A family in the table."""

    family: str
    how: str
    nats: float = 0.0
    gradient: float = 0.0
    why: str = ""


def examine(family: str) -> Row:
    """What the learner makes of it, and how far off that is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(family, folder)
        try:
            policy = load(folder)
        except LearnerError as error:
            return Row(family=family, how=REFUSED, why=str(error))
        sequences = some_sequences()
        nats, gradient = differences(learned(policy, sequences), alone(folder, policy, sequences))
    shared = [note.partition(": ")[2] for note in policy.notes if note.startswith("share_prefixes=false")]
    how = ROWS if policy.own_attention else TREES
    return Row(family=family, how=how, nats=nats, gradient=gradient, why="".join(shared))


def table(rows: Iterable[Row]) -> str:
    """Markdown: families alike in one line, with the worst of their differences."""
    lines = ["| families | how | log-probs, gradients | why |", "|---|---|---|---|"]
    order = sorted(rows, key=lambda row: ((TREES, ROWS, REFUSED).index(row.how), _reason(row)))
    for (how, reason), group in itertools.groupby(order, key=lambda row: (row.how, _reason(row))):
        alike = list(group)
        worst = f"{max(row.nats for row in alike):.0e}, {max(row.gradient for row in alike):.0e}"
        names = "; ".join(row.family for row in alike)
        lines.append(f"| {names} | {how} | {'–' if how == REFUSED else worst} | {reason} |")
    return "\n".join(lines)


_REASONS = {
    r"s_aux": "sinks beside the attention",
    r"with softcap": "soft caps in the attention, which is eager",
    r"kind scaled by": "attention scaled by the place in the row",
    r"calls the attention|needs the keyword|differs|fails": "attention, positions or windows of its own",
    r"looks ahead": "encoders: attention both ways",
    r"back from a file": "peft loses adapters on its shared experts",
    r"rope_type=dynamic": "rotary frequencies that follow the length, of which vLLM has one set",
    r"layers of the kind (\S+)": r"layers: \1",
}


def _reason(row: Row) -> str:
    if row.how == REFUSED and "cannot be trained" in row.why:
        return "more than a projection between the last hidden state and the logits"
    for pattern, reason in _REASONS.items():
        match = re.search(pattern, row.why)
        if match:
            return match.expand(reason).strip(",")
    return row.why


def written(readme: str, lines: str) -> str:
    """The README with the table between its heading's sentence and the next heading."""
    return re.sub(r"(?s)\| families \|.*?\n\n", lambda match: lines + "\n\n", readme)


def _rows(families: Sequence[str]) -> Iterator[Row]:
    for family in families:
        row = examine(family)
        print(f"{row.family:20} {row.how:18} {row.nats:.1e} {row.gradient:.1e}  {row.why}", flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description="What the learner makes of each family of models.")
    parser.add_argument("families", nargs="*", help="all, if none is named")
    parser.add_argument("--write", action="store_true", help="the table into learner/README.md")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    lines = table(list(_rows(arguments.families or list(FAMILIES))))
    print(lines)
    if arguments.write:
        README.write_text(written(README.read_text(), lines))


if __name__ == "__main__":
    main()
