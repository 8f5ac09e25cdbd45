"""What a run that goes on may change of its settings, and what it may not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from orchestration.errors import ConfigError
from orchestration.run.ledger.names import CONFIG_FILE
from orchestration.run.ledger.resume import Resumable, find_resumable
from orchestration.settings.config import RunConfig

BINDING = (
    "seed",
    "prompts_per_step",
    "model",
    "data",
    "curriculum",
    "reward.rewards",
    "reward.control",
    "reward.verifier",
    "learner.quantization",
    "learner.lora.r",
    "learner.lora.lora_alpha",
    "learner.lora.target_modules",
    "learner.lora.modules_to_save",
)
"""Settings, and sections of them, that a run keeps to its end: its steps mean nothing beside steps with others."""

_SILENT = ("run_dir", "recipe", "resume")


def where_to_go_on(run_dir: Path, config: RunConfig, problems: str, weights: str = "") -> Resumable | None:
    """Where the run in a folder goes on, None when it has made no step yet.

    Args:
        problems: digest of the training problems.
        weights: fingerprint of the base model's.

    Raises:
        ConfigError: it cannot go on so: see `find_resumable`; or it was begun with other settings or problems.
        DataError: see `find_resumable`.
    """
    found = find_resumable(run_dir, from_adapter=config.resume == "adapter")
    if found is None:
        return None
    same = not found.state.problems or found.state.problems == problems
    same_model = not found.state.weights or found.state.weights == weights
    then = _settings_then(run_dir)
    changed = changed_settings(then, config.model_dump(mode="json"))
    bound = {
        name: values
        for name, values in changed.items()
        if _binds(name) and not (_is_path(values) and (same_model if name == "model.name" else same))
    }
    differences = _listed(bound)
    if not same and not any(name.startswith("data.") for name in bound):
        others = "its training problems were others, by their files or by the code that makes them"
        differences = "; ".join(filter(None, [differences, others]))
    if not same_model and not any(name.startswith("model.") for name in bound):
        differences = "; ".join(filter(None, [differences, f"the weights of {config.model.name} were others"]))
    if differences:
        raise ConfigError(
            f"run_dir={str(run_dir)!r} was begun otherwise: {differences}. Set it back to go on, or choose another "
            f"run_dir to start anew"
        )
    free = {name: values for name, values in changed.items() if name not in bound and name not in _SILENT}
    damaged = () if then else (f"{run_dir / CONFIG_FILE} cannot be read: nobody has compared the settings with it",)
    return replace(found, changed=_listed(free), damaged=(*found.damaged, *damaged))


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted name → the two values; a setting that one of them does not know is left out."""
    first, second = dict(_flat(then)), dict(_flat(now))
    return {name: (first[name], second[name]) for name in first if name in second and first[name] != second[name]}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in tree.items():
        leaves += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return leaves


def _settings_then(run_dir: Path) -> Mapping[str, Any]:
    try:
        tree = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, Mapping) else {}


def _binds(name: str) -> bool:
    return any(name == bound or name.startswith(f"{bound}.") for bound in BINDING)


def _is_path(values: tuple[Any, Any]) -> bool:
    """The same files may lie elsewhere: what is in them is compared."""
    return all(isinstance(value, str) and "/" in value for value in values)


def _listed(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name} was {then}, is {now}" for name, (then, now) in sorted(changed.items()))
