"""The random models that tests load: made once, then kept in the cache folder for all processes and later runs.

Their folders are shared: a test that changes files in one copies it first.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestration.storage.cache import cache_root, cached_folder, settings_hash

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")
VOCABULARY = 96
"""Of `random_model`."""
WORDS = 320
"""Of `word_model`, unless it is told otherwise."""


def random_model(family: str, *, intermediate_size: int = 48) -> Path:
    """Two layers of one of `FAMILIES`, without a tokenizer, for the learner.

    Embeddings are tied in all but llama; gemma3 has a layer with a sliding window that is shorter than the tests'
    sequences.
    """
    return _kept(family, _build_random, family, intermediate_size)


def word_model(num_words: int = WORDS) -> Path:
    """A Qwen2 with a token for each of the words w0, w1 …, for the sampler. Far from uniform."""
    return _kept("words", _build_words, num_words)


def byte_model() -> Path:
    """A Qwen2 whose tokens are the bytes, so that it can write JSON; with a chat template."""
    return _kept("bytes", _build_bytes)


def four_token_model() -> Path:
    """A Llama of four tokens, for what needs a model and looks at nothing that it computes. Token 0 pads, 1 ends."""
    return _kept("four", _build_four)


def _kept(name: str, build: Callable[..., None], *arguments: Any) -> Path:
    source = inspect.getsource(inspect.getmodule(build) or build)
    versions = [importlib.metadata.version(library) for library in ("torch", "transformers", "tokenizers")]

    def build_seeded(folder: Path) -> None:
        import torch

        with torch.random.fork_rng(devices=[]):  # whether the model was cached must not change a test's own numbers
            torch.manual_seed(7)
            build(folder, *arguments)

    return cached_folder(cache_root() / "tests" / f"{name}-{settings_hash(source, versions, arguments)}", build_seeded)


def _build_random(folder: Path, family: str, intermediate_size: int) -> None:
    import transformers

    families: dict[str, tuple[Any, dict[str, Any]]] = {
        "llama": (transformers.LlamaConfig, {}),
        "qwen2": (transformers.Qwen2Config, {}),
        "qwen3": (transformers.Qwen3Config, {"head_dim": 12}),
        "gemma3": (
            transformers.Gemma3TextConfig,
            {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
        ),
    }
    kind, further = families[family]
    config = kind(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=family != "llama",
        **further,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3) if parameter.ndim > 1 else None  # spread out, so that log-probs differ
    model.save_pretrained(folder)


def _build_words(folder: Path, num_words: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<eos>", "<pad>", *(f"w{i}" for i in range(num_words - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    _save_served(folder, num_words, max_position_embeddings=512, initializer_range=0.15, eos_token_id=1, pad_token_id=2)


def _build_bytes(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<eos>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", chat_template=template
    ).save_pretrained(folder)
    _save_served(folder, len(words), max_position_embeddings=8192, eos_token_id=0, pad_token_id=1)


def _save_served(folder: Path, vocab_size: int, **settings: Any) -> None:
    """A model that vLLM's CPU attention takes: heads of 32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        **settings,
    )
    Qwen2ForCausalLM(config).float().save_pretrained(folder)


def _build_four(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        pad_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
