"""A run's adapter folder as something to give away: a base model's name, a tokenizer, and a card that says what it is.

The weights stay as they are; plain peft and plain vLLM load the folder from anywhere.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import yaml

from orchestration.models.resolve import SMOLLM2
from orchestration.report.outcome import accuracies, read_outcome
from orchestration.settings.config import RunConfig
from orchestration.storage.atomic import atomic_write
from rollout_server.types import ADAPTER_CONFIG

CARD_FILE: Final = "README.md"
_HUB_NAMES: Final = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Models that are made here of other files, by where everybody else has them from."""
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "chat_template.jinja",
)


def base_model_name(name: str, model_path: Path) -> str:
    """What a base model is called elsewhere: its hub id where one is known, else the name that `rlvr model fetch`
    knows; of a folder, what its configuration says that it is, else the folder's own name.

    Args:
        name: as the settings have it.
        model_path: the model's folder here.
    """
    if name in _HUB_NAMES:
        return _HUB_NAMES[name]
    if not Path(name).expanduser().is_dir():
        return name
    try:
        said = json.loads((model_path / "config.json").read_bytes()).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        said = None
    return said if isinstance(said, str) and _HUB_ID.fullmatch(said) else model_path.name


def make_portable(adapter: Path, model_path: Path, config: RunConfig, summary: Mapping[str, Any]) -> None:
    """Add to an adapter's folder what it needs elsewhere: tokenizer, card, and a base model's name that means something
    there.

    Args:
        adapter: A peft folder.
        model_path: Of the base model; has the tokenizer.
        config: The run's.
        summary: How it ended.

    Raises:
        OSError: Something cannot be written; the adapter is whole all the same.
    """
    base = base_model_name(config.model.name, model_path)
    path = adapter / ADAPTER_CONFIG
    settings = json.loads(path.read_bytes()) | {"base_model_name_or_path": base, "revision": config.model.revision}
    for name in _TOKENIZER_FILES:
        if (model_path / name).is_file():
            shutil.copyfile(model_path / name, adapter / name)
    atomic_write(adapter / CARD_FILE, model_card(base, config, summary).encode("utf-8", "replace"))
    atomic_write(path, json.dumps(settings, indent=2).encode())


def model_card(base: str, config: RunConfig, summary: Mapping[str, Any]) -> str:
    """Markdown with the fields that model hubs read.

    Args:
        base: A name that means something elsewhere, such as a hub's.
        config: Of the run.
        summary: As `summary.json` has it.
    """
    head = {"base_model": base, "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["grpo", "rlvr"]}
    return "\n".join(
        [
            "---",
            yaml.safe_dump(head, sort_keys=False).strip(),
            "---",
            "",
            f"# A LoRA adapter of {base}",
            "",
            f"Trained by GRPO with verifiable rewards, recipe `{config.recipe}`, {summary.get('steps', 0)} steps of "
            f"{config.prompts_per_step} prompts × {config.rollout.num_generations} completions, seed {config.seed}; "
            f"the run {summary.get('status')}. Made with rlvr {metadata.version('rlvr')}.",
            "",
            *_results(summary),
            "## Data and rewards",
            "",
            f"Task `{config.data.kind}`. Rewards, whose weighted sum was learned from:",
            "",
            *(
                f"- `{spec.name}` × {spec.weight:g} {json.dumps(dict(spec.params)) * bool(spec.params)}".rstrip()
                for spec in config.rewards
            ),
            *(["", "**A control: totals were drawn at random.**"] if config.reward.control != "none" else []),
            "",
            "## Use",
            "",
            "```python",
            "from peft import AutoPeftModelForCausalLM",
            "from transformers import AutoTokenizer",
            "",
            "model = AutoPeftModelForCausalLM.from_pretrained(FOLDER)  # this folder",
            "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
            "```",
            "",
            *_where_from(base),
            "## Settings",
            "",
            "```yaml",
            yaml.safe_dump(_settings(config), sort_keys=False, allow_unicode=True).strip(),
            "```",
            "",
        ]
    )


def _results(summary: Mapping[str, Any]) -> Iterator[str]:
    outcome = read_outcome(summary, None)
    if outcome.comparisons:
        yield from ("## Results", "", "| rule | held-out accuracy | change, 95 % interval |", "|---|---|---|")
        yield from (f"| {one.name} | {accuracies(one)} | {one.change} |" for one in outcome.comparisons)
        yield ""


def _where_from(base: str) -> Iterator[str]:
    if not _HUB_ID.fullmatch(base):
        yield f"`{base}` is no hub's name: `rlvr model fetch {base}` makes it where rlvr knows it; else give its folder"
        yield "to `PeftModel.from_pretrained(base, FOLDER)`."
        yield ""


def _settings(config: RunConfig) -> Any:
    """Without where the run, and what it read, lay."""
    return _without_places(config.model_dump(mode="json", exclude={"run_dir", "ray_address"}))


def _without_places(value: Any) -> Any:
    """Absolute paths become the last of their parts."""
    if isinstance(value, dict):
        return {name: _without_places(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_places(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~/")) else value
