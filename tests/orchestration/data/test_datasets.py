"""The settings choose the task; and none of this loads a heavy library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestration.data.datasets import load_problems
from orchestration.errors import DataError
from orchestration.settings.config import ArithmeticData, CopyData, Gsm8kData

HEAVY = ("torch", "transformers", "tokenizers", "vllm", "ray", "deepspeed", "huggingface_hub", "numpy")
LIGHT_MODULES = (
    "data.datasets",
    "data.prompts",
    "data.cursor",
    "models.resolve",
    "storage.cache",
    "models.tiny",
    "data.problems",
    "models.tokenizer",
)


def test_each_kind_reaches_its_maker() -> None:
    assert load_problems(ArithmeticData(num_train=3, num_eval=2)).train[0].problem_id == "arithmetic/train/0"
    assert load_problems(CopyData(num_train=3, num_eval=2)).train[0].problem_id == "copy/train/0"
    with pytest.raises(DataError, match="nowhere"):
        load_problems(Gsm8kData(train_file="nowhere"))


def test_problems_prompts_and_model_names_load_no_heavy_library() -> None:
    imports = ", ".join(f"orchestration.{module}" for module in LIGHT_MODULES)
    script = f"import sys, {imports}; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
