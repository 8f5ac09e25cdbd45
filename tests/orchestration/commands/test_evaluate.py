"""What `rlvr eval` takes over from the run that trained the adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestration.commands.evaluations.evaluate import base_settings, evaluation_config, with_room
from orchestration.errors import DataError
from orchestration.settings.config import dump_config, load_config


def adapter_of_run(run: Path, *overrides: str) -> Path:
    adapter = run / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 4}))
    (run / "config.yaml").write_text(dump_config(load_config("tiny", overrides)))
    return adapter


def evaluated(adapter: Path, *overrides: str) -> tuple[str, bool]:
    config = evaluation_config(model="tiny", adapter=str(adapter), data="tiny", limit=None, overrides=overrides)
    return config.learner.quantization, config.learner.serve_dequantized_base


def test_an_adapter_is_evaluated_on_the_base_it_was_trained_on(tmp_path: Path) -> None:
    assert evaluated(adapter_of_run(tmp_path / "plain")) == ("none", True)
    quantized = adapter_of_run(tmp_path / "quantized", "learner.quantization=nf4")
    assert evaluated(quantized) == ("nf4", True)
    assert evaluated(quantized, "learner.serve_dequantized_base=false") == ("nf4", False)


def test_an_adapter_from_elsewhere_says_nothing_of_its_base(tmp_path: Path) -> None:
    assert base_settings(tmp_path / "adapter") == []
    for foreign in ("- a list", "learner: some words", "other: {quantization: nf4}"):
        (tmp_path / "config.yaml").write_text(foreign)
        assert base_settings(tmp_path / "adapter") == []
    (tmp_path / "config.yaml").write_text("{")
    with pytest.raises(DataError, match="beside the adapter, is not valid YAML"):
        base_settings(tmp_path / "adapter")


def test_completions_that_run_on_have_room_to_do_so() -> None:
    config = load_config("tiny")
    room = config.rollout.max_model_len - config.rollout.max_completion_length
    assert with_room(config, 1024).rollout.max_model_len - 1024 == room
    assert with_room(config, 1).rollout == config.rollout
