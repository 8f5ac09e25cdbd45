"""A GGUF file as a Hugging Face folder. Loads torch and transformers; imported only where a conversion runs."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

from orchestration.models.quiet import no_progress_bars
from orchestration.storage.cache import Progress


def convert_gguf(gguf_file: Path, folder: Path, progress: Progress) -> None:
    """Write a GGUF file as a model folder: weights, dequantised, configuration, tokenizer and chat template.

    Weights are stored in bfloat16. Q4_1 keeps 4 bits of a weight within its block of 32, an error of some 7 % of its
    size; bfloat16 adds 0.1 % (relative norm 1.3e-3 measured), so float32 would double the file and keep nothing more.
    Sampler and learner read the same file, so they agree on the rounding.

    Args:
        gguf_file: What is read.
        folder: Written into; it must be there.
        progress: Told what is being done, and the share that is done.
    """
    progress(f"reading {gguf_file.name}", 0.1)
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(
            gguf_file.parent,
            gguf_file=gguf_file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        progress("reading the tokenizer", 0.6)
        tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    # The file names its pre-tokenizer ("smollm") where transformers falls back to GPT-2's: without the digit rule,
    # blank lines before a number would be cut differently from how the model learned them.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    progress("writing the weights", 0.8)
    with no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    progress("computing checksums", 0.95)
