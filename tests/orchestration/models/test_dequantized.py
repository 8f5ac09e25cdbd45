"""Which folder vLLM serves; the conversion itself runs in its own process, as in a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from learner.config import LearnerConfig
from orchestration.errors import DataError
from orchestration.models import dequantized
from orchestration.models.dequantized import served_model
from orchestration.models.resolve import check_model_folder
from orchestration.settings.config import ModelConfig, RunConfig
from rollout_server.config import RolloutConfig
from tests.models import random_model

NF4 = LearnerConfig(quantization="nf4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "llama"
    shutil.copytree(random_model("llama"), folder)
    (folder / "tokenizer.json").write_text('{"of": "the original"}')
    return folder


def serve(model: Path, learner: LearnerConfig, cache: Path, served_dtype: str = "auto") -> Path:
    config = RunConfig(model=ModelConfig(name="a/b c"), learner=learner, rollout=RolloutConfig(dtype=served_dtype))
    return served_model(model, config, device="cpu", cache_dir=cache)


def test_without_quantisation_it_is_the_model_itself(model: Path, tmp_path: Path) -> None:
    for learner in (LearnerConfig(), LearnerConfig(quantization="nf4", serve_dequantized_base=False)):
        assert serve(model, learner, tmp_path) == model
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_folder_is_plain_exact_and_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes
    from transformers import AutoModelForCausalLM

    from learner.policy.base_model import load_base

    folder = serve(model, NF4, tmp_path)
    assert folder.name.startswith("b-c-nf4-")
    check_model_folder(folder)
    assert (folder / "tokenizer.json").read_text() == '{"of": "the original"}'
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    quantized = load_base(str(model), "nf4", dtype=torch.float32, device=torch.device("cpu"))
    assert any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in quantized.modules())
    token_ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(token_ids).logits, quantized.train()(token_ids).logits, rtol=0, atol=1e-5)

    def refuse(*words: object, **options: object) -> None:
        raise AssertionError("it is made again")

    monkeypatch.setattr(dequantized, "_run", refuse)
    assert serve(model, NF4, tmp_path) == folder
    with pytest.raises(AssertionError, match="made again"):
        serve(model, NF4, tmp_path, served_dtype="bfloat16")


@pytest.mark.slow
def test_what_cannot_be_quantised_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match=r"cannot be dequantised for vLLM: .* is no model folder") as raised:
        serve(tmp_path / "model", NF4, tmp_path / "cache")
    assert "\n" not in str(raised.value)
    assert [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == []


def test_a_process_that_hangs_is_given_up(model: Path, tmp_path: Path) -> None:
    learner = NF4.model_copy(update={"start_timeout_s": 0.01})
    with pytest.raises(DataError, match=r"within 0\.01 s; raise learner\.start_timeout_s"):
        serve(model, learner, tmp_path)
