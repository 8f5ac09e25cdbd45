"""A configuration file for TRL's GRPO trainer as settings of ours: every key is mapped, refused by name, or said to
mean nothing here. Batches, epochs and steps are counted as TRL counts them.

Where a file leaves a key out, TRL's default holds, as far as it differs from ours.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from orchestration.errors import ConfigError, DataError, one_line
from orchestration.settings.names import nearest
from orchestration.settings.tree import parse_override
from orchestration.settings.trl_keys import COMPUTED, REFUSED, SAME, WITHOUT_MEANING
from reward_service.settings import put

SIGNS: Final = ("model_name_or_path", "per_device_train_batch_size", "output_dir", "use_peft", "reward_funcs")
"""A file with one of these keys was written for TRL."""

TRL_KEYS: Final = frozenset({*SAME, *COMPUTED, *REFUSED, *WITHOUT_MEANING})

DEFAULTS: Final[Mapping[str, Any]] = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3.0,
    "gradient_checkpointing": True,
}
"""Of TRL 1.16, where they are not ours."""
OLD_SIGN: Final = "train_dataset_id_or_path"
OLD_DEFAULTS: Final[Mapping[str, Any]] = {"beta": 0.04, "loss_type": "bnpo"}
"""Of TRL 0.18, for which the scripts were written whose files have `OLD_SIGN`."""

REWARDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "accuracy_reward": {"name": "math"},
    "reasoning_accuracy_reward": {"name": "math"},
    "think_format_reward": {"name": "regex", "params": {"pattern": r"(?s)<think>(?!.*<think>).*?</think>.*"}},
}
"""TRL's reward functions and the rewards of the service that do the same."""

TRL_MODULES: Final = ("trl.rewards", *(f"trl.rewards.{name}" for name in ("accuracy_rewards", "format_rewards")))
UNBOUNDED: Final = 1e6
"""Of a function's scores, which TRL does not bound: what is beyond it is taken as a mistake."""

STAGES: Final = (("zero_optimization", "stage"), ("deepspeed_config", "zero_stage"))
"""Where DeepSpeed's and accelerate's configurations have it."""

SERVED_RANKS: Final = (16, 32, 64, 128, 256, 320, 512)
"""Bounds of an adapter's rank that vLLM takes."""

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "prompt": ("prompt", "question", "problem", "query", "instruction"),
    "answer": ("final_answer", "answer", "ground_truth", "label", "target", "solution"),
}
"""Names that a table's columns go by, the likelier ones first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """What became of a key."""

    key: str
    value: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Where it went, by dotted key; empty: it means nothing here."""
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Translation:
    """A file's settings as a tree of ours, and what became of each of its keys."""

    tree: dict[str, Any]
    placed: tuple[Placed, ...]


def is_trl(tree: Mapping[str, Any]) -> bool:
    """Whether a file's keys are TRL's."""
    return any(sign in tree for sign in SIGNS)


def take_overrides(overrides: Sequence[str], tree: dict[str, Any], own: Collection[str]) -> list[str]:
    """Writes into a TRL file's tree those overrides that such a file could hold and that are no settings here.

    Args:
        overrides: `key=value`.
        tree: Of the TRL file; is changed.
        own: First levels of the settings here, which go before TRL's of the same name.

    Returns:
        The other overrides, in their order.
    """
    others = []
    for override in overrides:
        key, value = parse_override(override)
        if key in TRL_KEYS and key not in own:
            tree[key] = value
        else:
            others.append(override)
    return others


def translate(tree: Mapping[str, Any], own: Collection[str]) -> Translation:
    """A TRL file's tree as ours.

    Args:
        tree: the file's keys and values. Sections of ours among them (`reward: …`, `data: …`) stay as they are.
        own: the names of sections and single settings that there are here.

    Raises:
        ConfigError: a key is unknown, or asks for what cannot be had, each with the reason.
    """
    defaults = {**DEFAULTS, **(OLD_DEFAULTS if OLD_SIGN in tree else {})}
    given = {key: value for key, value in tree.items() if not _is_own(key, value, own)}
    result: dict[str, Any] = {key: value for key, value in tree.items() if _is_own(key, value, own)}
    placed = []
    keys = {**{key: value for key, value in defaults.items() if key not in given}, **given}
    for key, value in keys.items():
        one = _place(key, value, keys, result)
        if key not in given:
            one = Placed(key=key, value=value, settings=one.settings, why=f"TRL's default; {one.why}".rstrip("; "))
        placed.append(one)
        for dotted, setting in one.settings.items():
            put(result, dotted, setting)
    return Translation(tree=result, placed=tuple(placed))


def _is_own(key: str, value: Any, own: Collection[str]) -> bool:
    return key == "recipe" or (key in own and isinstance(value, dict))


def _place(key: str, value: Any, keys: Mapping[str, Any], result: Mapping[str, Any]) -> Placed:
    if key in SAME:
        return Placed(key=key, value=value, settings={} if value is None else {SAME[key]: _plain(value)})
    if key in WITHOUT_MEANING:
        return Placed(key=key, value=value, why=WITHOUT_MEANING[key])
    if key in REFUSED:
        harmless, why = REFUSED[key]
        if value not in harmless:
            raise ConfigError(f"{key}={value!r} cannot be had: {why}")
        return Placed(key=key, value=value, why="asks for nothing that is not so anyway")
    if key in COMPUTED:
        return _computed(key, value, keys, result)
    raise ConfigError(f"unknown setting {key!r}{nearest(key, sorted(TRL_KEYS))}")


def _plain(value: Any) -> Any:
    """YAML reads `5e-5` as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _computed(key: str, value: Any, keys: Mapping[str, Any], result: Mapping[str, Any]) -> Placed:
    settings: dict[str, Any] = {}
    why = ""
    match key:
        case "tokenizer_name_or_path":
            if value not in (None, keys.get("model_name_or_path")):
                raise ConfigError(f"{key}={value!r}: a model is used with its own tokenizer; leave it out")
            why = "a model is used with its own tokenizer"
        case "model_revision":
            settings = {} if value in (None, "main") else {"model.revision": value}
        case "dtype" | "torch_dtype" | "bf16":
            settings, why = _dtype(key, value)
        case "load_in_4bit":
            settings = {"learner.quantization": "nf4" if value else "none"}
        case "lora_target_modules":
            settings = {"learner.lora.target_modules": [value] if isinstance(value, str) else value} if value else {}
        case "lora_r":
            ranks = [rank for rank in SERVED_RANKS if rank >= int(value)]
            settings = {"learner.lora.r": value, **({"rollout.max_lora_rank": ranks[0]} if ranks else {})}
        case "use_cpu":
            settings = {"device": "cpu"} if value else {}
        case "vllm_mode":
            settings = {"placement": {"colocate": "colocated", "server": "split"}.get(value, value)}
        case "top_k":
            settings = {"rollout.top_k": 0 if value in (None, -1) else value}
        case "scale_rewards":
            settings = {"learner.scale_rewards": {True: "group", False: "none"}.get(value, value)}
        case "report_to":
            names = [value] if isinstance(value, str) else list(value or [])
            settings = {"report_to": [name for name in names if name != "none"]}
        case "resume_from_checkpoint":
            if value:
                raise ConfigError(f"{key}={value!r}: a run goes on where its folder is, run_dir=…; leave it out")
        case "max_steps":
            settings = {"max_steps": value} if value and value > 0 else {}
        case "num_train_epochs":
            if (keys.get("max_steps") or -1) > 0:
                why = "max_steps says more"
            else:
                settings = {"num_train_epochs": float(value)}
        case "warmup_ratio" | "warmup_steps":
            settings = (
                {"warmup_ratio": value} if 0 < float(value or 0) < 1 else {"learner.warmup_steps": int(value or 0)}
            )
        case "save_strategy" | "save_steps":
            settings, why = _every("save_every", "save", keys)
        case "eval_strategy" | "eval_steps":
            settings, why = _every("eval_every", "eval", keys)
        case "reward_funcs" | "reward_weights":
            rewards, own = _rewards(keys)
            settings = {"reward.rewards": rewards, **({"reward.custom_rewards": own} if own else {})}
            why = "functions are called by the reward service, one completion at a time" if own else ""
        case "deepspeed":
            settings, why = _deepspeed(value, keys)
        case "dataset_name" | "dataset_config" | "dataset_train_split" | "dataset_test_split":
            name = {"dataset_name": "dataset", "dataset_config": "subset"}.get(key, key.removeprefix("dataset_"))
            name = {"test_split": "eval_split"}.get(name, name)
            settings = {"data.kind": "table", f"data.{name}": value} if value and "dataset_name" in keys else {}
        case "train_dataset_id_or_path" | "test_dataset_id_or_path":
            name = "train_file" if key.startswith("train") else "eval_file"
            settings = {"data.kind": "table", f"data.{name}": value}
            why = "its columns are found by their names"
        case _:  # the batch
            settings, why = _batch(keys, result)
    return Placed(key=key, value=value, settings=settings, why=why)


def _dtype(key: str, value: Any) -> tuple[dict[str, Any], str]:
    if value in (True, "bfloat16", "bf16"):
        return {"learner.dtype": "auto"}, "bfloat16 on GPUs, float32 on CPUs"
    if value in (False, None, "auto"):
        return {}, ""
    if value not in ("float32", "fp32"):
        raise ConfigError(f"{key}={value!r} cannot be had: use bfloat16 or float32")
    return {"learner.dtype": "float32"}, ""


def _every(setting: str, what: str, keys: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    strategy, steps = (
        keys.get(f"{what}_strategy", "steps" if f"{what}_steps" in keys else "no"),
        keys.get(f"{what}_steps"),
    )
    if strategy in ("no", False, None):
        return {setting: 0}, ""
    if strategy == "steps":
        number = 500 if steps is None else steps
        if not float(number).is_integer():
            raise ConfigError(f"{what}_steps={steps!r}: give a whole number of steps")
        return {setting: int(number)}, ""
    ends = "a run that is stopped keeps its state" if what == "save" else "held-out accuracy is measured at both ends"
    return {setting: 0}, f"{strategy!r} is not counted here; {ends}, and {setting} counts steps"


def _batch(keys: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Prompts of a step: completions of an optimizer step over all ranks, divided by those of a prompt."""
    per_device = int(keys["per_device_train_batch_size"])
    accumulation = int(keys.get("gradient_accumulation_steps") or 1)
    generations = int(keys.get("num_generations") or 8)
    ranks = int(dict(result.get("learner") or {}).get("num_ranks", 1))
    completions = per_device * accumulation * ranks
    sampled = keys.get("generation_batch_size") or per_device * ranks * (
        keys.get("steps_per_generation") or accumulation
    )
    if int(sampled) != completions:
        raise ConfigError(
            f"a batch of {sampled} completions is sampled for optimizer steps of {completions}: here a batch is "
            f"learned from in one step; leave out generation_batch_size and steps_per_generation"
        )
    if completions % generations:
        raise ConfigError(
            f"an optimizer step of {completions} completions (per_device_train_batch_size={per_device}, "
            f"gradient_accumulation_steps={accumulation}, {ranks} ranks) is no multiple of "
            f"num_generations={generations}"
        )
    told = f"{per_device} completions × {accumulation} accumulated × {ranks} ranks / {generations} a prompt"
    return {"prompts_per_step": completions // generations}, told


def _rewards(keys: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rewards that are learned from, and those of them that are functions of the user's, by their dotted path."""
    functions = keys.get("reward_funcs")
    if not functions:
        raise ConfigError("reward_weights needs reward_funcs beside it, or weights in a section `reward: {rewards: …}`")
    names = [functions] if isinstance(functions, str) else list(functions)
    weights = keys.get("reward_weights") or [1.0] * len(names)
    if len(weights) != len(names):
        raise ConfigError(f"reward_weights has {len(weights)} entries for {len(names)} reward_funcs")
    rewards, own = [], []
    for name, weight in zip(names, weights, strict=True):
        module, _, function = name.rpartition(".")
        known = REWARDS.get(function) if module in ("", *TRL_MODULES) else {"name": function}
        if known is None:
            raise ConfigError(
                f"reward_funcs={name!r} is none of {', '.join(REWARDS)}; give a function of your own as "
                f"module.function, or name one of the service's rewards in `reward: {{rewards: …}}`"
            )
        if module not in ("", *TRL_MODULES):
            own.append({"name": function, "target": f"{module}:{function}", "low": -UNBOUNDED, "high": UNBOUNDED})
        rewards.append({**known, "weight": float(weight)})
    return rewards, own


def _deepspeed(value: Any, keys: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The ZeRO stage of a DeepSpeed configuration, or of accelerate's around one: a tree, or a JSON or YAML file."""
    if value is None:
        return {}, ""
    tree = value
    if isinstance(value, str):
        try:
            tree = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"deepspeed={value!r} cannot be read: {one_line(error)}") from error
    stages = [dict(tree.get(part) or {}).get(key) for part, key in STAGES] if isinstance(tree, Mapping) else []
    stage = next((stage for stage in stages if stage in (0, 1, 2, 3)), None)
    if stage is None:
        places = " or ".join(".".join(place) for place in STAGES)
        raise ConfigError(f"deepspeed={value!r} says no ZeRO stage of 0 to 3, as {places}; set learner.zero_stage")
    if stage == 3 and keys.get("load_in_4bit"):
        return {"learner.zero_stage": 2}, (
            "ZeRO-3 cannot partition a base in 4 bits, which load_in_4bit asks for: ZeRO-2, the base is small anyway"
        )
    return {"learner.zero_stage": stage}, "of the file only the ZeRO stage: the rest is the learner's own"


def steps_of(epochs: float, num_problems: int, prompts_per_step: int) -> int:
    """Optimizer steps of so many epochs as TRL counts them: what is left of an epoch's last batch is dropped.

    Args:
        epochs: May be a fraction.
        num_problems: Of the training set.
        prompts_per_step: More than there are problems: an epoch is a step.

    Returns:
        At least 1.
    """
    return max(1, math.ceil(epochs * max(1, num_problems // prompts_per_step)))


def name_columns(data: Any, *, all_of_them: bool = False) -> None:
    """Adds to the section `data` of a table which of its columns are the question and the answer, unless it says so.

    Args:
        data: The section.
        all_of_them: Give rewards the other columns too, each by its name.

    Raises ConfigError when the file cannot be read.
    """
    if not isinstance(data, dict) or data.get("kind") != "table" or not data.get("train_file"):
        return
    if "prompt" in data and "reference" in data:
        return
    from orchestration.data.rows import read_rows
    from orchestration.storage.s3 import local_file

    try:
        rows = read_rows(local_file(str(data["train_file"]), "data.train_file"), "data.train_file")
    except DataError as error:
        raise ConfigError(str(error)) from error
    for name, value in columns_in(rows[0], all_of_them=all_of_them):
        data.setdefault(name, value)


def columns_in(row: Mapping[str, Any], *, all_of_them: bool = False) -> Iterator[tuple[str, Any]]:
    """Settings of the task `table` for a table with such rows, where its columns have names that are known."""
    found = {what: next((name for name in names if name in row), None) for what, names in COLUMNS.items()}
    if found["prompt"]:
        yield "prompt", found["prompt"]
    others = {name: name for name in row if name != found["prompt"]} if all_of_them else {}
    if found["answer"] or others:
        yield "reference", others | ({"final_answer": found["answer"]} if found["answer"] else {})
