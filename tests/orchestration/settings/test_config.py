"""Recipes, overrides, and what wrong ones are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestration.errors import ConfigError
from orchestration.settings.config import dump_config, flat_keys, load_config
from orchestration.settings.tree import recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_reads_back(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(str(copy)) == config


def test_overrides_win_and_numbers_are_read_as_people_write_them() -> None:
    config = load_config("arithmetic", ["learner.learning_rate=3e-4", "max_steps=7", "reward.control=random"])
    assert (config.learner.learning_rate, config.max_steps, config.reward.control) == (3e-4, 7, "random")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("learner: {loss: {max_completion_length: 999}}", "here it is 'rollout.max_completion_length'"),
        ("learner: {max_steps: 7}", "here it is 'max_steps'"),
        ("learner: {reward_weights: [1.0]}", "here it is 'reward.rewards'"),
    ],
)
def test_what_is_written_once_is_not_written_again_for_the_learner(tmp_path: Path, written: str, says: str) -> None:
    recipe = tmp_path / "twice.yaml"
    recipe.write_text(written)
    with pytest.raises(ConfigError, match=says):
        load_config(str(recipe))


def test_a_run_without_steps_may_have_a_schedule() -> None:
    assert load_config("arithmetic", ["max_steps=0", "learner.lr_scheduler_type=linear"]).max_steps == 0


def test_the_api_key_is_not_written_down() -> None:
    assert "hunter2" not in dump_config(load_config("arithmetic", ["reward.api_key=hunter2"]))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["learner.learning_rat=1"], "did you mean 'learner.learning_rate'"),
        (["lerner.learning_rate=1"], "did you mean 'learner'"),
        (["num_generations=4"], "here it is 'rollout.num_generations'"),
        (["learner.loss.epsilon=-1"], "greater than or equal to 0"),
        (["max_steps=many"], "max_steps='many'"),
        (["rollout.num_generations=1"], "at least 2"),
        (["rollout.temperature=0"], "above 0"),
        (["rollout.top_p=0.95"], "rollout.top_p=0.95 cannot be learned from"),
        (["rollout.top_k=50"], "Leave rollout.top_k=0;"),
        (["rollout.min_p=0.05"], "their ratio over a completion takes the gradient away"),
        (["max_steps"], "not an override"),
        (["learner.lora.r=64"], "max_lora_rank"),
        (["max_staleness=5"], "max_adapter_versions"),
        (["rollout.max_model_len=40", "rollout.max_completion_length=40"], "no room"),
        (["data.kind=chess"], "arithmetic"),
        (["learner.max_steps=9"], "here it is 'max_steps'"),
        (["learner.reward_weights=[1]"], "here it is 'reward.rewards'"),
        (["learner.loss.max_completion_length=9"], "here it is 'rollout.max_completion_length'"),
        (["learner.lr_scheduler_type=linear", "learner.warmup_steps=9", "max_steps=9"], "leaves nothing"),
        (["learner.overlong_cache=99", "rollout.max_completion_length=98"], "overlong_cache=99 is more than"),
        (["reward.control=random", "learner.multi_objective_aggregation=normalize_then_sum"], "sum_then_normalize"),
        (["learner.warmup_steps=2"], "constant_with_warmup"),
        (["max_steps.more=1"], "not a section"),
    ],
)
def test_a_wrong_override_is_told_what_to_do(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("arithmetic", overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_of_the_vocabulary_may_be_sampled_where_nothing_is_learned() -> None:
    rollout = load_config("arithmetic", ["max_steps=0", "rollout.top_p=0.9", "rollout.min_p=0.1"]).rollout
    assert (rollout.top_p, rollout.min_p) == (0.9, 0.1)


def test_unknown_recipes_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'arithmetic'"):
        load_config("arithmetik")
    with pytest.raises(ConfigError, match="does not exist"):
        load_config("missing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(str(broken))
    broken.write_text("seed: 1\nmax_steps: 3\nseed: 2")
    with pytest.raises(ConfigError, match="not valid YAML: 'seed' stands twice, in lines 1 and 3"):
        load_config(str(broken))
    broken.write_text("- 1")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_config(str(broken))
    broken.write_bytes(b"seed: 1\nrecipe: \xff")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(line 2\): save it as UTF-8"):
        load_config(str(broken))
    with pytest.raises(ConfigError, match="is a folder, where a YAML file is wanted"):
        load_config(str(tmp_path))
    with pytest.raises(ConfigError, match=r"'learner\.los'; did you mean 'learner\.loss'"):
        load_config("tiny", ["learner.los.beta=0"])


def test_every_key_has_a_description() -> None:
    text = yaml.safe_load(dump_config(load_config("arithmetic")))
    assert set(text) <= {key.partition(".")[0] for key in flat_keys()}
