"""The base model as the learner holds it: from a local folder, in its precision, quantised where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from learner.config import BITSANDBYTES_SETTINGS, Quantization
from learner.errors import LearnerError


def load_base(
    model_path: str, quantization: Quantization, *, dtype: torch.dtype, device: torch.device, **arguments: Any
) -> Any:
    """A causal language model.

    Args:
        model_path: Its folder.
        quantization: How it is quantised.
        dtype: Its precision; of a quantised one that of its products.
        device: Where a quantised one is put; another one stays on the CPU.
        arguments: More for `from_pretrained`.

    Raises:
        LearnerError: The folder holds no such model, or not all of it.
    """
    import transformers
    from safetensors import SafetensorError
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if not (Path(model_path) / "config.json").is_file():
        raise LearnerError(f"{model_path!r} is no model folder: it has no config.json")
    if quantization != "none":
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            **BITSANDBYTES_SETTINGS[quantization], bnb_4bit_compute_dtype=dtype
        )
        arguments["device_map"] = {"": str(device)}
    try:
        config = transformers.AutoConfig.from_pretrained(model_path, local_files_only=True)
        # Whole, where it reads more than text: its layers have the sampler's names then.
        sees = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        kind: Any = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        model, found = kind.from_pretrained(
            model_path, dtype=dtype, local_files_only=True, output_loading_info=True, **arguments
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        said = str(error).partition("\nModel type should be one of")[0]  # and the names of two hundred
        raise LearnerError(f"cannot load a model from {model_path!r}: {said}") from error
    if missing := sorted(found["missing_keys"]):
        raise LearnerError(
            f"the files in {model_path!r} lack {len(missing)} of the model's weights ({', '.join(missing[:3])}"
            f"{', …' if missing[3:] else ''}), which transformers would draw at random: is the copy whole, and is "
            f"config.json this model's?"
        )
    return model
