"""`rlvr eval`: accuracy of a model, with or without an adapter, or of both and their difference."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from learner.errors import LearnerError
from orchestration.cluster.upkeep.ahead import import_ahead
from orchestration.errors import ConfigError, DataError, RlvrError
from orchestration.evals.evaluation import Evaluated, Wanted, evaluate
from orchestration.evals.store import locked
from orchestration.machine import doctor
from orchestration.machine.facts import collect
from orchestration.machine.placement import place
from orchestration.noise import noise_to_file
from orchestration.report.progress import progress_printer
from orchestration.run.ledger.names import CONFIG_FILE
from orchestration.settings.config import RunConfig, load_config
from orchestration.settings.tree import recipe_names
from orchestration.storage.s3 import SCHEME, fetch_folder
from reward_service.clients.errors import RewardServiceError
from reward_service.errors import ServiceStartError
from rollout_server.errors import RolloutError


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalOptions:
    """What is evaluated, and how."""

    model: str
    """Embedded name, local folder or hub id."""
    adapter: str | None
    """A peft folder, here or on S3 (`s3://…`); None: the base model alone."""
    data: str
    """A recipe's name or YAML file, whose held-out problems are used, or a file of GSM8K's format."""
    limit: int | None = None
    """Use only the first so many problems."""
    overrides: Sequence[str] = ()
    """Settings, as for `rlvr train`."""
    with_base: bool = True
    """Beside an adapter: the base too."""
    num_samples: int = 0
    """Completions a problem beside the greedy one, for pass@k and maj@k."""
    as_lm_eval: bool = False
    """Answers end at lm-eval's stop strings, and are judged by the two filters of its task `gsm8k` too."""
    article_tokens: int = 0
    """Greedy completions run on up to so many tokens, and are judged by the AWS article's evaluation too."""
    num_train: int = 0
    """Training problems asked too."""
    out: Path | None = None
    """Folder that keeps answers and figures, and from which an evaluation that was broken off goes on."""


def run_evaluation(options: EvalOptions) -> Evaluated:
    """Answer held-out problems through vLLM: greedily, by samples too, by the base and by an adapter.

    With learner.quantization, said by the settings or by the run folder the adapter lies in, the dequantised base is
    served, as in that run.

    Raises:
        RlvrError: one sentence for the user.
    """
    adapter = options.adapter
    if adapter is not None and adapter.startswith(SCHEME):
        adapter = str(fetch_folder(adapter, "--adapter"))
    config = evaluation_config(
        model=options.model, adapter=adapter, data=options.data, limit=options.limit, overrides=options.overrides
    )
    if options.article_tokens:
        config = with_room(config, options.article_tokens)
    wanted = Wanted(
        adapter=None if adapter is None else Path(adapter),
        adapter_name=options.adapter,
        with_base=options.with_base,
        num_samples=options.num_samples,
        as_lm_eval=options.as_lm_eval,
        article_tokens=options.article_tokens,
        num_train=options.num_train,
    )
    doctor.require_machine(config)
    device = place(config, num_gpus=len(collect().gpus)).device
    try:
        with locked(options.out) as store, noise_to_file("rlvr-eval-") as stderr, progress_printer(stderr) as progress:
            import_ahead(config)
            return asyncio.run(evaluate(config, wanted, store, device, progress))
    except (LearnerError, RolloutError, RewardServiceError, ServiceStartError) as error:
        raise RlvrError(str(error)) from error


def with_room(config: RunConfig, run_on_tokens: int) -> RunConfig:
    """The same settings with a context in which completions may run on; prompts may be as long as before."""
    rollout = config.rollout
    more = max(0, run_on_tokens - rollout.max_completion_length)
    longer = rollout.model_copy(update={"max_model_len": rollout.max_model_len + more})
    return config.model_copy(update={"rollout": longer})


def evaluation_config(
    *, model: str, adapter: str | None, data: str, limit: int | None, overrides: Sequence[str]
) -> RunConfig:
    """The settings that an evaluation shares with a run.

    Args:
        model: a name, a folder or a hub id.
        adapter: a peft folder here, which gives rank and quantisation; None: the base alone.
        data: a recipe, or a file in GSM8K's format.
        limit: held-out problems at the most.
        overrides: the user's settings, which hold over all others.

    Raises:
        ConfigError: a setting is wrong, or there is no such recipe or file.
        DataError: the adapter's configuration cannot be read.
    """
    settings = [f"model.name={json.dumps(model)}", "max_steps=0"]
    recipe = data
    if data not in recipe_names() and not data.endswith((".yaml", ".yml")):
        if not Path(data).is_file():
            raise ConfigError(
                f"--data {data!r} is neither a file nor a recipe; recipes are: {', '.join(recipe_names())}"
            )
        recipe = "gsm8k"
        settings += [f"data.eval_file={json.dumps(data)}"]
    if limit is not None:
        settings += [f"data.num_eval={limit}"]
    if adapter is not None:
        rank = adapter_rank(Path(adapter))
        settings += [f"rollout.max_lora_rank={rank}", f"learner.lora.r={rank}", *base_settings(Path(adapter))]
    return load_config(recipe, [*settings, *overrides])


def adapter_rank(folder: Path) -> int:
    """The rank in a peft folder's configuration.

    Raises:
        DataError: It cannot be read.
    """
    path = folder / "adapter_config.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a LoRA adapter's configuration ({error}); give a peft folder") from error


def base_settings(adapter: Path) -> list[str]:
    """What the run that wrote the adapter says of its base, as overrides: an adapter trained on a quantised base is
    evaluated on that one. Empty for a folder that lies in no run folder; then the settings decide alone."""
    path = adapter.resolve().parent / CONFIG_FILE
    if not path.is_file():
        return []
    try:
        run = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"{path}, beside the adapter, is not valid YAML: {' '.join(str(error).split())}") from error
    learner = run.get("learner") if isinstance(run, dict) else None
    if not isinstance(learner, dict):
        return []
    keys = ("quantization", "serve_dequantized_base", "dtype")
    return [f"learner.{key}={json.dumps(learner[key])}" for key in keys if key in learner]
