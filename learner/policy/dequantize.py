"""The values that a quantised base stands for, as a plain model folder: a sampler that serves it holds the policy that
the learner trains.

A process of its own (`python -m learner.policy.dequantize`), since memory and an accelerator's context must be
free again before the engines start.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import get_args

import torch

from learner.config import Quantization
from learner.errors import LearnerError
from learner.policy.base_model import load_base

_COPIED = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
"""What a folder holds besides configuration and weights."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write_dequantized_base(
    model_path: str,
    folder: str,
    quantization: Quantization,
    *,
    dtype: torch.dtype,
    stored_dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Quantise the base as the learner does and write it, dequantised.

    Embeddings, norms and output head are not quantised and stay as they are.

    Args:
        model_path: The original's folder.
        folder: Where the values go, with everything that is beside the weights.
        quantization: The learner's.
        dtype: In which the learner's products use these values.
        stored_dtype: In which they are stored: the sampler's.
        device: Where the learner quantises.

    Raises:
        LearnerError: The folder holds no model.
    """
    import bitsandbytes

    quantized = load_base(model_path, quantization, dtype=dtype, device=device)
    plain = load_base(model_path, "none", dtype=dtype, device=torch.device("cpu"))
    for name, module in quantized.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = weight.to("cpu", dtype)
    plain.to(stored_dtype).save_pretrained(folder)
    for pattern in _COPIED:
        for file in Path(model_path).glob(pattern):
            shutil.copyfile(file, Path(folder) / file.name)


def main() -> None:
    """`python -m learner.policy.dequantize MODEL FOLDER --quantization nf4 …`; a failure is the last line of stderr."""
    parser = argparse.ArgumentParser(description="Write the values that a quantised base stands for.")
    parser.add_argument("model_path")
    parser.add_argument("folder")
    parser.add_argument("--quantization", required=True, choices=set(get_args(Quantization)) - {"none"})
    parser.add_argument("--dtype", required=True, choices=_DTYPES)
    parser.add_argument("--stored-dtype", required=True, choices=_DTYPES)
    parser.add_argument("--device", required=True)
    arguments = parser.parse_args()
    try:
        write_dequantized_base(
            arguments.model_path,
            arguments.folder,
            arguments.quantization,
            dtype=_DTYPES[arguments.dtype],
            stored_dtype=_DTYPES[arguments.stored_dtype],
            device=torch.device(arguments.device),
        )
    except LearnerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
