"""What a learner needs to go on, and how it lies in a checkpoint's folder: tensors as safetensors, the rest as JSON.

learner.json              step, positions of optimizer and schedule, the settings it was made with
parameters.safetensors    every trained parameter, whole, in float32
exp_avg.safetensors, exp_avg_sq.safetensors     AdamW's moments of them
random.safetensors        the random state of every rank
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from learner.checkpoint import check_checkpoint, step_of, weights_fingerprint
from learner.config import LearnerConfig
from learner.errors import LearnerError
from rollout_server.types import ADAPTER_CONFIG, ADAPTER_WEIGHTS

LEARNER_NAME = "learner.json"

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """What training moves. Tensors by parameter name, whole, on the CPU, the same at every ZeRO stage."""

    parameters: Tensors
    exp_avg: Tensors
    """AdamW's moments; without entries before the first step."""
    exp_avg_sq: Tensors
    optimizer_step: int
    """Steps AdamW has made: its bias correction."""
    schedule_step: int
    """Optimizer steps by the schedule's count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerState:
    """One learner, all ranks."""

    step: int
    """Batches learned from."""
    training: TrainingState
    random: tuple[Tensors, ...]
    """Of each rank: `cpu`, and `cuda` where there is one."""
    probe_token_ids: tuple[int, ...]
    probe_logprobs: tuple[float, ...] | None


def state_files(state: LearnerState, made_with: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """A learner's state as files of a checkpoint, made one by one: with trained embeddings they are large.

    Args:
        state: Where training stands, of all ranks.
        made_with: What `settings_that_bind` gives, by which a start with other settings is refused.

    Returns:
        (name, content): one JSON and four safetensors files.
    """
    from safetensors.torch import save

    training = state.training
    plain = {
        "step": state.step,
        "optimizer_step": training.optimizer_step,
        "schedule_step": training.schedule_step,
        "num_ranks": len(state.random),
        "probe_token_ids": state.probe_token_ids,
        "probe_logprobs": state.probe_logprobs,
        "made_with": made_with,
    }
    yield LEARNER_NAME, json.dumps(plain, indent=2).encode()
    random = {f"{rank}.{key}": value for rank, states in enumerate(state.random) for key, value in states.items()}
    yield "random.safetensors", save(random)
    yield "parameters.safetensors", save(dict(training.parameters))
    yield "exp_avg.safetensors", save(dict(training.exp_avg))
    yield "exp_avg_sq.safetensors", save(dict(training.exp_avg_sq))


def read_state(
    folder: Path,
    made_with: Mapping[str, Any],
    adapter_names: Mapping[str, str],
    adapter_config: bytes,
    *,
    num_iterations: int,
) -> LearnerState:
    """The state that `state_files` gave, from a checkpoint's folder; where there is none, what its adapter tells.

    Args:
        adapter_names: Name in a peft folder → name of the parameter.
        adapter_config: Of this run's adapter, as peft writes it.
        num_iterations: Optimizer steps of a batch.

    Raises:
        LearnerError: The folder is not a whole checkpoint, or was made with other settings than `made_with`, or is
            another kind of adapter; the message names each difference.
    """
    from safetensors.torch import load_file

    check_checkpoint(folder)
    if not (folder / LEARNER_NAME).is_file():
        if (folder / ADAPTER_WEIGHTS).is_file():
            _refuse_other_adapter(folder, json.loads(adapter_config))
            return _state_of_adapter(folder, adapter_names, num_iterations)
        raise LearnerError(f"{folder} holds no learner's state: {LEARNER_NAME} is missing")
    plain = json.loads((folder / LEARNER_NAME).read_bytes())
    refuse_other_settings(folder, plain["made_with"], made_with)
    random: list[dict[str, Tensor]] = [{} for _ in range(plain["num_ranks"])]
    for name, value in load_file(folder / "random.safetensors").items():
        rank, _, key = name.partition(".")
        random[int(rank)][key] = value
    return LearnerState(
        step=plain["step"],
        training=TrainingState(
            parameters=load_file(folder / "parameters.safetensors"),
            exp_avg=load_file(folder / "exp_avg.safetensors"),
            exp_avg_sq=load_file(folder / "exp_avg_sq.safetensors"),
            optimizer_step=plain["optimizer_step"],
            schedule_step=plain["schedule_step"],
        ),
        random=tuple(random),
        probe_token_ids=tuple(plain["probe_token_ids"]),
        probe_logprobs=None if plain["probe_logprobs"] is None else tuple(plain["probe_logprobs"]),
    )


def _state_of_adapter(folder: Path, names: Mapping[str, str], num_iterations: int) -> LearnerState:
    """The adapter's parameters, an optimizer that has made no step, a schedule that has made all of them."""
    from safetensors.torch import load_file

    step = step_of(folder)
    stored = load_file(folder / ADAPTER_WEIGHTS)
    parameters = {names.get(name, name): tensor.float() for name, tensor in stored.items()}
    return LearnerState(
        step=step,
        training=TrainingState(
            parameters=parameters, exp_avg={}, exp_avg_sq={}, optimizer_step=0, schedule_step=step * num_iterations
        ),
        random=(),
        probe_token_ids=(),
        probe_logprobs=None,
    )


_MAKE = (
    *("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias", "lora_bias", "use_qalora"),
    *("fan_in_fan_out", "layer_replication", "trainable_token_indices", "target_parameters", "arrow_config"),
)
"""Fields of peft's LoraConfig by which the same matrices are another policy."""


def _refuse_other_adapter(folder: Path, own: Mapping[str, Any]) -> None:
    """The matrices of an adapter say neither its scale nor what else they mean; its configuration does.

    Raises:
        LearnerError: It is not made as this run's is; the message names each difference.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise LearnerError(f"the adapter's {ADAPTER_CONFIG} in {folder} cannot be read: {error}") from error
    differences = [
        f"{name} was {config[name]}, is {own.get(name)}"
        for name in _MAKE
        if name in config and (config[name] or None) != (own.get(name) or None)
    ]
    if isinstance(start := config.get("init_lora_weights"), str) and start not in ("gaussian", "orthogonal"):
        differences.append(f"it was begun by {start}, which may have changed its base")
    if differences:
        raise LearnerError(f"the adapter in {folder} is not made as this run's: {'; '.join(differences)}")


def settings_that_bind(model_path: str, config: LearnerConfig) -> dict[str, Any]:
    """What the saved tensors mean nothing without: the base model's weights and the adapter's make.

    Rates, losses, schedules, dropout, ranks and ZeRO stage may change from one start to the next.

    Args:
        model_path: Folder of the base model; of its weights the names, sizes, first and last bytes are taken.
        config: Has rank, scale and targets of the adapter, and the quantization.

    Raises:
        LearnerError: The folder holds no weights.
    """
    lora = config.lora
    return {
        "model": {"path": model_path, "weights": weights_fingerprint(Path(model_path))},
        "quantization": config.quantization,
        "lora.r": lora.r,
        "lora.lora_alpha": lora.lora_alpha,
        "lora.target_modules": sorted(lora.target_modules),
        "lora.modules_to_save": sorted(lora.modules_to_save),
    }


def refuse_other_settings(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint under other settings. The same weights at another path are the same model.

    Args:
        folder: Of the checkpoint, for the message.
        then: The settings it was written under; `model` has the weights' fingerprint and their path.
        now: Those of this run; names that only `then` has do not count.

    Raises:
        LearnerError: They differ; with every difference.
    """
    differences = [
        f"{name} was {then.get(name)}, is {now[name]}"
        for name in now
        if name != "model" and then.get(name) != now[name]
    ]
    if then["model"]["weights"] != now["model"]["weights"]:
        paths = then["model"]["path"], now["model"]["path"]
        differences.insert(0, f"the weights at {paths[0]} have changed")
        if paths[0] != paths[1]:
            differences[0] = f"the base model was {paths[0]}, is {paths[1]}"
    if differences:
        raise LearnerError(
            f"checkpoint {folder} does not fit: {'; '.join(differences)}. Set it back, or choose another folder to "
            f"start anew"
        )


def refuse_other_parameters(then: Tensors, now: Mapping[str, tuple[int, ...]]) -> None:
    """Raises LearnerError unless the saved parameters are those of this run (names → shapes)."""
    found = {name: tuple(value.shape) for name, value in then.items()}
    differences = [
        *(f"{name} is missing" for name in now.keys() - found.keys()),
        *(f"{name} is not trained here" for name in found.keys() - now.keys()),
        *(
            f"{name} was {found[name]}, is {now[name]}"
            for name in now.keys() & found.keys()
            if found[name] != now[name]
        ),
    ]
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise LearnerError(f"the checkpoint's parameters are others: {'; '.join(sorted(differences)[:3])}{more}")
