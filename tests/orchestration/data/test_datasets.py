"""The settings choose the task; and none of this loads a heavy library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestration.data.tasks.arithmetic import Arithmetic
from orchestration.data.tasks.copying import Copy
from orchestration.data.tasks.gsm8k import Gsm8k
from orchestration.errors import DataError

HEAVY = ("torch", "transformers", "tokenizers", "vllm", "ray", "deepspeed", "huggingface_hub", "numpy")
LIGHT_MODULES = (
    "data.task",
    "data.prompts",
    "data.cursor",
    "models.resolve",
    "storage.cache",
    "models.tiny",
    "data.problems",
    "models.tokenizer",
)


def test_each_kind_reaches_its_maker() -> None:
    assert Arithmetic(num_train=3, num_eval=2).load().train[0].problem_id == "arithmetic/train/0"
    assert Copy(num_train=3, num_eval=2).load().train[0].problem_id == "copy/train/0"
    with pytest.raises(DataError, match="nowhere"):
        Gsm8k(train_file="nowhere").load()


def test_problems_prompts_and_model_names_load_no_heavy_library() -> None:
    imports = ", ".join(f"orchestration.{module}" for module in LIGHT_MODULES)
    script = f"import sys, {imports}; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
