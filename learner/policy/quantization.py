"""How a base is quantised: the one place that says so. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BITSANDBYTES_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
"""By `learner.quantization`: arguments of transformers' `BitsAndBytesConfig`. Double quantisation stores the blocks'
scales in 8 bits (QLoRA)."""
