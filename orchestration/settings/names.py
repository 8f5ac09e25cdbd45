"""Names that people know from other trainers, and where the same thing is said here; and names like a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

KNOWN_ELSEWHERE: Mapping[str, str] = {
    # TRL's GRPOConfig and transformers' TrainingArguments; what has the same name in another section is found by it
    "bf16": "learner.dtype",
    "dataset_name": "data.dataset",
    "dataset_config": "data.subset",
    "dataset_train_split": "data.train_split",
    "dataset_test_split": "data.eval_split",
    "eval_steps": "eval_every",
    "fp16": "learner.dtype",
    "generation_batch_size": "prompts_per_step",
    "gradient_accumulation_steps": "learner.max_tokens_per_microbatch",
    "load_in_4bit": "learner.quantization",
    "logging_steps": "example_every",
    "lora_alpha": "learner.lora.lora_alpha",
    "lora_dropout": "learner.lora.lora_dropout",
    "lora_modules_to_save": "learner.lora.modules_to_save",
    "lora_r": "learner.lora.r",
    "lora_target_modules": "learner.lora.target_modules",
    "max_prompt_length": "rollout.max_model_len",
    "model_name_or_path": "model.name",
    "model_revision": "model.revision",
    "num_train_epochs": "max_steps",
    "output_dir": "run_dir",
    "per_device_train_batch_size": "prompts_per_step",
    "reward_funcs": "reward.rewards",
    "reward_weights": "reward.rewards",
    "save_steps": "save_every",
    "save_total_limit": "learner.keep_checkpoints",
    "steps_per_generation": "learner.num_iterations",
    "torch_dtype": "learner.dtype",
    "use_peft": "learner.lora.r",
    "vllm_gpu_memory_utilization": "rollout.gpu_memory_utilization",
    "vllm_max_model_length": "rollout.max_model_len",
    "vllm_tensor_parallel_size": "rollout.tensor_parallel_size",
    "warmup_ratio": "learner.warmup_steps",
    # short names, and those of other trainers
    "learner.beta": "learner.loss.beta",
    "learner.loss_type": "learner.loss.loss_type",
    "learner.loss.max_completion_length": "rollout.max_completion_length",
    "learner.max_steps": "max_steps",
    "learner.reward_weights": "reward.rewards",
    "lr": "learner.learning_rate",
    "model": "model.name",
    "reward_url": "reward.url",
    "rollout.n": "rollout.num_generations",
}


def here_it_is(name: str, keys: list[str]) -> str | None:
    """The setting that another trainer's `name` is here, None when there is none.

    Args:
        name: as it was written, such as `per_device_train_batch_size` or `beta`.
        keys: all dotted keys there are; a name without a section is found at the end of one of the run's own.
    """
    if name in KNOWN_ELSEWHERE:
        return KNOWN_ELSEWHERE[name]
    if "." in name:
        return None
    places = [key for key in keys if key.rpartition(".")[2] == name]
    return min(places, key=lambda key: (key.split(".")[0] not in ("learner", "rollout"), key)) if places else None


def nearest(word: str, known: Sequence[str]) -> str:
    """What a mistaken key may have meant, for the end of a message.

    Args:
        word: As it was written.
        known: All dotted keys.

    Returns:
        `; did you mean 'learner.loss.beta'?`, or nothing when no known key is like it.
    """
    section, dot, leaf = word.rpartition(".")
    beside = {key.removeprefix(section + dot): key for key in known if dot and key.startswith(section + dot)}
    if beside:  # else a long name of the section would outweigh any leaf
        close = [beside[name] for name in difflib.get_close_matches(leaf, beside, n=1, cutoff=0.5)]
    else:
        close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
        close = [key for key in close if not word.startswith(f"{key}.")]
    if not close:  # the right leaf in the wrong section
        close = [key for key in known if key.rpartition(".")[2] == leaf][:1]
    return f"; did you mean {close[0]!r}?" if close else ""


def with_sections(known: Sequence[str]) -> list[str]:
    """Dotted keys and the sections that they lie in, `learner.loss` for `learner.loss.beta`.

    Args:
        known: Dotted keys.
    """
    sections = {key[:place] for key in known for place, sign in enumerate(key) if sign == "."}
    return [*sorted(sections), *known]
