"""Files for TRL's trainer, checked against TRL itself: its fields, its sampler, its reward functions' names."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.cli import main
from orchestration.errors import ConfigError
from orchestration.settings.config import load_config, own_sections
from orchestration.settings.from_trl import REWARDS, steps_of, translate
from orchestration.settings.trl_keys import COMPUTED, REFUSED, SAME, WITHOUT_MEANING
from reward_service.commands import score_one
from reward_service.settings import ServiceSettings
from reward_service.types import RewardItem

ARTICLE = Path(__file__).parents[4] / "shared" / "article"
TABLES = (SAME, COMPUTED, REFUSED, WITHOUT_MEANING)

PLAIN = """
model_name_or_path: tiny
output_dir: {folder}/run
train_dataset_id_or_path: {folder}/train.json
test_dataset_id_or_path: {folder}/val.json
num_train_epochs: 2
per_device_train_batch_size: 16
gradient_accumulation_steps: 2
learning_rate: 5e-5
lr_scheduler_type: cosine
warmup_ratio: 0.1
lora_r: 16
"""


def fields_of_trl() -> dict[str, Any]:
    """Every field and its default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import GRPOConfig, ModelConfig, ScriptArguments
    fields = [field for kind in (GRPOConfig, ModelConfig, ScriptArguments) for field in dataclasses.fields(kind)]
    return {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields}


def write(folder: Path, text: str = PLAIN, *, num_problems: int = 50) -> Path:
    for name, first, number in (("train", 0, num_problems), ("val", 1000, 10)):
        rows = [{"question": f"What is {n} + {n}?", "final_answer": str(2 * n)} for n in range(first, first + number)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    path = folder / "file.yaml"
    path.write_text(text.format(folder=folder))
    return path


def placed(**keys: Any) -> dict[str, Any]:
    """Where keys go, beside the defaults."""
    translation = translate({"model_name_or_path": "tiny", **keys}, own_sections())
    return {dotted: value for one in translation.placed if one.key in keys for dotted, value in one.settings.items()}


def test_every_field_of_trl_has_one_place() -> None:
    counted = Counter(key for table in TABLES for key in table)
    assert [key for key, number in counted.items() if number > 1] == []
    assert fields_of_trl().keys() - counted.keys() == set()


def test_trls_own_defaults_can_be_had() -> None:
    """But for the folder, and what is left to the trainer (None)."""
    defaults = {key: value for key, value in fields_of_trl().items() if value is not None and key != "output_dir"}
    defaults |= {"use_peft": True}  # full fine-tuning cannot be had
    translate({"model_name_or_path": "tiny", **defaults}, own_sections())


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_is_refused_says_why(key: str) -> None:
    value = "something" if REFUSED[key][0] != (True,) else False
    with pytest.raises(ConfigError, match=rf"^{key}=.*cannot be had: \w+"):
        placed(**{key: value})


def test_a_file_becomes_a_run(tmp_path: Path) -> None:
    config = load_config(str(write(tmp_path)))
    assert (config.model.name, config.run_dir) == ("tiny", f"{tmp_path}/run")
    assert config.prompts_per_step == 16 * 2 // 8
    assert config.max_steps == 2 * (50 // 4)
    assert config.num_train_epochs is None  # a saved configuration says steps
    assert config.learner.warmup_steps == 3  # a tenth of 24, rounded up
    assert (config.learner.learning_rate, config.learner.lr_scheduler_type) == (5e-5, "cosine")
    assert (config.learner.loss.beta, config.learner.loss.loss_type) == (0.04, "bnpo")  # of the TRL of these scripts
    problems = config.data.load()
    assert problems.train[0].reference["final_answer"].isdigit()
    assert (len(problems.train), len(problems.eval)) == (50, 10)


def test_what_comes_later_holds(tmp_path: Path) -> None:
    path = str(write(tmp_path))
    assert load_config(path, ["max_steps=7"]).max_steps == 7
    assert load_config(path, ["max_steps=7", "num_train_epochs=1"]).max_steps == 12
    assert load_config(path, ["learner.num_ranks=2"]).prompts_per_step == 4  # said by the file's own batch
    assert load_config(
        "tiny", ["num_train_epochs=0.5", "warmup_ratio=0.5", "learner.lr_scheduler_type=linear"]
    ).max_steps


def test_a_section_of_ours_may_stand_in_the_file(tmp_path: Path) -> None:
    text = PLAIN + "reward: {{rewards: [{{name: gsm8k_correctness, weight: 2}}]}}\nlearner: {{num_ranks: 2}}\n"
    config = load_config(str(write(tmp_path, text)))
    assert [(spec.name, spec.weight) for spec in config.rewards] == [("gsm8k_correctness", 2)]
    assert config.prompts_per_step == 16 * 2 * 2 // 8
    assert config.learner.learning_rate == 5e-5


@pytest.mark.parametrize(
    ("epochs", "problems", "per_device", "accumulation", "generations"),
    [(1, 100, 8, 1, 8), (2, 50, 16, 2, 8), (3, 7473, 16, 2, 8), (4, 101, 64, 2, 4), (0.5, 33, 4, 4, 8)],
)
def test_steps_are_counted_as_trl_counts(
    epochs: float, problems: int, per_device: int, accumulation: int, generations: int
) -> None:
    """By its own sampler, and transformers' rule for its loader."""
    from trl.trainer.grpo_trainer import RepeatSampler

    batch = per_device * accumulation
    sampler = RepeatSampler(
        range(problems),  # type: ignore[arg-type]
        mini_repeat_count=generations,
        batch_size=batch // generations,
        repeat_count=accumulation,
        shuffle=False,
    )
    num_batches = len(list(sampler)) // (per_device * accumulation)  # each is cut into as many as are accumulated
    expected = -(-epochs * max(num_batches // accumulation, 1) // 1)
    assert steps_of(epochs, problems, batch // generations) == expected


@pytest.mark.parametrize(
    ("keys", "settings"),
    [
        ({"max_steps": -1}, {}),
        ({"max_steps": 20}, {"max_steps": 20}),
        ({"max_steps": 20, "num_train_epochs": 2}, {"max_steps": 20}),
        ({"top_k": 50}, {"rollout.top_k": 50}),
        ({"top_k": -1}, {"rollout.top_k": 0}),
        ({"scale_rewards": False}, {"learner.scale_rewards": "none"}),
        ({"scale_rewards": "batch"}, {"learner.scale_rewards": "batch"}),
        ({"warmup_steps": 0.1}, {"warmup_ratio": 0.1}),
        ({"warmup_steps": 5}, {"learner.warmup_steps": 5}),
        ({"save_strategy": "steps"}, {"save_every": 500}),
        ({"save_steps": 20}, {"save_every": 20}),
        ({"save_strategy": "epoch"}, {"save_every": 0}),
        ({"eval_strategy": "steps", "eval_steps": 10}, {"eval_every": 10}),
        ({"lora_r": 24}, {"learner.lora.r": 24, "rollout.max_lora_rank": 32}),
        ({"lora_target_modules": "all-linear"}, {"learner.lora.target_modules": ["all-linear"]}),
        ({"use_cpu": True}, {"device": "cpu"}),
        ({"vllm_mode": "colocate"}, {"placement": "colocated"}),
        ({"bf16": True}, {"learner.dtype": "auto"}),
        ({"dtype": "float32"}, {"learner.dtype": "float32"}),
        ({"load_in_4bit": True}, {"learner.quantization": "nf4"}),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}, {"prompts_per_step": 2}),
        (
            {"dataset_name": "a/b", "dataset_train_split": "x"},
            {"data.kind": "table", "data.dataset": "a/b", "data.train_split": "x"},
        ),
        (
            {"reward_funcs": ["trl.rewards.accuracy_reward"], "reward_weights": [2]},
            {"reward.rewards": [{"name": "math", "weight": 2.0}]},
        ),
        (
            {"reward_funcs": ["mine.of.length", "accuracy_reward"]},
            {
                "reward.rewards": [{"name": "length", "weight": 1.0}, {"name": "math", "weight": 1.0}],
                "reward.custom_rewards": [{"name": "length", "target": "mine.of:length", "low": -1e6, "high": 1e6}],
            },
        ),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, {"learner.zero_stage": 3}),
        (
            {"load_in_4bit": True, "deepspeed": {"zero_optimization": {"stage": 3}}},
            {"learner.quantization": "nf4", "learner.zero_stage": 2},
        ),
    ],
    ids=str,
)
def test_values_that_mean_something_else_here(keys: dict[str, Any], settings: dict[str, Any]) -> None:
    assert placed(**keys) == settings


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lerning_rate": 1}, r"unknown setting 'lerning_rate'; did you mean 'learning_rate'"),
        ({"fp16": True}, r"fp16=True cannot be had"),
        ({"dtype": "float16"}, r"dtype='float16' cannot be had"),
        ({"tokenizer_name_or_path": "another"}, r"own tokenizer"),
        ({"num_generations": 7}, r"no multiple of num_generations=7"),
        ({"generation_batch_size": 64}, r"a batch of 64 completions is sampled for optimizer steps of 8"),
        ({"steps_per_generation": 4}, r"a batch of 32 completions"),
        ({"reward_funcs": ["mine"]}, r"reward_funcs='mine' is none of accuracy_reward.*module.function"),
        ({"deepspeed": "none.json"}, r"deepspeed='none.json' cannot be read"),
        ({"deepspeed": {"bf16": {}}}, r"says no ZeRO stage.*zero_optimization.stage"),
        ({"reward_funcs": ["accuracy_reward"], "reward_weights": [1, 2]}, r"2 entries for 1"),
        ({"reward_weights": [1]}, r"needs reward_funcs"),
        ({"resume_from_checkpoint": True}, r"run_dir"),
        ({"save_steps": 0.1}, r"whole number"),
    ],
    ids=str,
)
def test_what_cannot_be_had(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        placed(**keys)


def test_a_function_of_ones_own_scores_what_the_table_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestration.run.rewards import check_rewards, service_settings

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours_of_trl.py").write_text(
        "def near(completions, final_answer, **kwargs):\n"
        "    return [3.0 if answer in text else -2.5 for text, answer in zip(completions, final_answer)]\n"
    )
    config = load_config(str(write(tmp_path)), ["reward_funcs=[ours_of_trl.near]"])  # as `trl grpo --config` has it
    problems = config.data.load()
    assert set(problems.train[0].reference) == {"final_answer"}
    check_rewards(config, problems)
    settings = ServiceSettings.model_validate(service_settings(config))
    for answer, reward in ((problems.train[0].reference["final_answer"], 3.0), ("none", -2.5)):
        item = RewardItem(prompt="", completion=f"It is {answer}", reference=problems.train[0].reference)
        assert score_one(config.rewards, item, settings).rewards["near"].score == reward


def test_an_accelerate_file_gives_the_stage_and_says_what_four_bits_make_of_it(tmp_path: Path) -> None:
    (tmp_path / "zero3.yaml").write_text("deepspeed_config: {zero_stage: 3}\ndistributed_type: DEEPSPEED\n")
    path = write(tmp_path, PLAIN + "load_in_4bit: true\ndeepspeed: {folder}/zero3.yaml\n")
    assert load_config(str(path)).learner.zero_stage == 2
    said = translate(yaml.safe_load(path.read_text()), own_sections()).placed
    assert "ZeRO-3 cannot partition a base in 4 bits" in next(one.why for one in said if one.key == "deepspeed")


def test_rewards_are_called_as_trl_calls_them() -> None:
    import trl.rewards

    assert [name for name in REWARDS if not hasattr(trl.rewards, name)] == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "train.json").unlink()
    with pytest.raises(ConfigError, match=r"train\.json' does not exist"):
        load_config(str(path))


def test_the_command_prints_each_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    assert main(["settings", "--from", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = [line.partition(":")[0] for line in lines if not line.startswith(" ")]
    assert keys == ["gradient_checkpointing", "beta", "loss_type", *yaml.safe_load(path.read_text())]
    assert main(["settings", "--from", "tiny"]) == 2
    assert "no configuration of TRL's trainer" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["article.yaml", "branch.yaml"])
def test_the_articles_files_unchanged(name: str, tmp_path: Path) -> None:
    if not (ARTICLE / name).is_file():
        pytest.skip(f"no {name} beside the checkout")
    translation = translate(yaml.safe_load((ARTICLE / name).read_text()), own_sections())
    assert {one.key for one in translation.placed if not one.settings and not one.why} <= {"model_revision"}
    write(tmp_path)
    data = [f"data.train_file={tmp_path}/train.json", f"data.eval_file={tmp_path}/val.json"]
    config = load_config(str(ARTICLE / name), data)
    assert config.learner.lora.modules_to_save == ("lm_head", "embed_tokens")
    assert (config.learner.lora.lora_alpha, config.seed) == (16, 42)
    assert config.max_steps == {"article.yaml": 2 * (50 // 4), "branch.yaml": 4 * (50 // 16)}[name]
