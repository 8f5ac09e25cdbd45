"""The tokenizer is the one AutoTokenizer would load; where the folder names its class, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from orchestration.models.tokenizer import _TAKEN_AS_NAMED, load_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return tmp_path


@pytest.mark.parametrize(("kind", "name"), [*sorted(_TAKEN_AS_NAMED), ("qwen2", "GPT2Tokenizer"), ("llama", None)])
def test_it_is_the_one_that_auto_tokenizer_loads(folder, kind, name):
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name} if name else {}))
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(str(folder))
    text = "What is 12 + 30?\n#### 42"
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()


def test_a_named_class_is_loaded_without_torch(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    code = (
        "import sys; from pathlib import Path; from orchestration.models.tokenizer import load_tokenizer; "
        f"load_tokenizer(Path({str(folder)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
