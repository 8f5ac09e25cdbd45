"""`rlvr eval`: greedy accuracy of a model, with or without an adapter."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from learner.errors import LearnerError
from orchestration.cluster.reward.deployment import reward_client
from orchestration.commands.train import import_ahead, make_judges
from orchestration.errors import ConfigError, DataError, RlvrError
from orchestration.machine import doctor
from orchestration.machine.facts import collect
from orchestration.machine.placement import place
from orchestration.models.dequantized import served_model
from orchestration.models.prompting import make_prompt_builder, training_sampling
from orchestration.models.resolve import resolve_model
from orchestration.noise import noise_to_file
from orchestration.report.progress import progress_printer
from orchestration.run import lm_eval
from orchestration.run.evaluation import evaluate
from orchestration.run.intervals import bootstrap_mean
from orchestration.run.ledger.names import CONFIG_FILE
from orchestration.run.rewards import check_rewards
from orchestration.settings.config import RunConfig, load_config
from orchestration.settings.tree import recipe_names
from orchestration.storage.cache import Progress
from orchestration.storage.s3 import SCHEME, fetch_folder
from orchestration.types import Problem
from reward_service.clients.errors import RewardServiceError
from reward_service.errors import ServiceStartError
from rollout_server.errors import RolloutError
from rollout_server.forking.leftovers import owned_prefix
from rollout_server.types import Completion


def run_evaluation(
    *,
    model: str,
    adapter: str | None,
    data: str,
    limit: int | None,
    overrides: Sequence[str] = (),
    as_lm_eval: bool = False,
) -> dict[str, Any]:
    """Answer held-out problems greedily through vLLM.

    With learner.quantization, said by the settings or by the run folder the adapter lies in, the dequantised base is
    served, as in that run.

    Args:
        model: embedded name, local folder or hub id.
        adapter: a peft folder, here or on S3 (`s3://…`), or None for the base model.
        data: a recipe's name or YAML file, whose held-out problems are used, or a file of GSM8K's format.
        limit: use only the first so many problems.
        overrides: settings, as for `rlvr train`.
        as_lm_eval: answers end at lm-eval's stop strings, and are judged by the two filters of its task `gsm8k` too.

    Returns:
        Strict and lenient accuracy with 95 % bootstrap intervals, and counts; with `as_lm_eval` also `strict_match` and
        `flexible_extract`.

    Raises:
        RlvrError: one sentence for the user.
    """
    if adapter is not None and adapter.startswith(SCHEME):
        adapter = str(fetch_folder(adapter, "--adapter"))
    config = evaluation_config(model=model, adapter=adapter, data=data, limit=limit, overrides=overrides)
    try:
        with noise_to_file("rlvr-eval-") as stderr, progress_printer(stderr) as progress:
            return asyncio.run(_evaluate(config, adapter, progress, as_lm_eval=as_lm_eval))
    except (LearnerError, RolloutError, RewardServiceError, ServiceStartError) as error:
        raise RlvrError(str(error)) from error


def evaluation_config(
    *, model: str, adapter: str | None, data: str, limit: int | None, overrides: Sequence[str]
) -> RunConfig:
    """The settings that an evaluation shares with a run. Raises ConfigError or DataError."""
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
    """The rank in a peft folder's configuration. Raises DataError when it cannot be read."""
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


async def _evaluate(config: RunConfig, adapter: str | None, progress: Progress, *, as_lm_eval: bool) -> dict[str, Any]:
    from orchestration.cluster.local import local_generator, read_adapter  # loads numpy

    doctor.require_machine(config)
    device = place(config, num_gpus=len(collect().gpus)).device
    import_ahead(config)
    progress("reading the problems", 0.0)
    problems = config.data.load()
    if as_lm_eval:
        check_final_answers(problems.eval)
    await asyncio.to_thread(check_rewards, config, problems)
    progress(f"preparing the model {config.model.name}", 0.0)
    name, revision = config.model.name, config.model.revision
    model_path = await asyncio.to_thread(resolve_model, name, revision, progress=progress)
    served = await asyncio.to_thread(served_model, model_path, config, device=device, progress=progress)
    builder = make_prompt_builder(config, problems, model_path)
    held_out = builder.build_all(problems.eval)
    trained = None if adapter is None else read_adapter(Path(adapter))
    async with AsyncExitStack() as stack:
        logs = stack.enter_context(tempfile.TemporaryDirectory(prefix=owned_prefix("eval")))
        progress("starting the reward service and the vLLM engine", 0.0)
        client = await stack.enter_async_context(reward_client(config, Path(logs)))
        generator = await stack.enter_async_context(
            local_generator(model_path=served, config=config.rollout, device=device, seed=config.seed)
        )
        if trained is not None:
            await generator.publish(trained)
        sampling = training_sampling(config, builder)
        if as_lm_eval:
            sampling = replace(sampling, stop=(*sampling.stop, *lm_eval.STOPS))
        result = await evaluate(
            generator=generator,
            judges=make_judges(config, client, run_id="eval"),
            problems=held_out.prompts,
            sampling=sampling,
            cut=lm_eval.cut if as_lm_eval else str,
            on_progress=lambda done, total: progress(f"answering, {done} of {total} problems", done / total),
        )
    figures: dict[str, Any] = {
        "model": config.model.name,
        "adapter": adapter,
        "base": "original" if served == model_path else f"{config.learner.quantization}, dequantised",
        "num_problems": len(result.completions_N),
        "num_skipped": len(held_out.skipped),
        "num_tokens": result.num_tokens,
        "mean_completion_length": result.mean_completion_length,
    }
    scores_by_name = dict(result.scores)
    if as_lm_eval:
        scores_by_name |= as_lm_eval_judges([built.problem for built in held_out.prompts], result.completions_N)
    for name, scores in scores_by_name.items():
        scored = [score for score in scores if score is not None]
        interval = bootstrap_mean(scored, seed=config.seed)
        figures |= {
            f"{name}_accuracy": interval.estimate,
            f"{name}_interval_95": [interval.low, interval.high],
            f"{name}_unscored": len(scores) - len(scored),
        }
    return figures


def check_final_answers(problems: Sequence[Problem]) -> None:
    """ConfigError unless all problems have what lm-eval compares with."""
    for problem in problems:
        if not isinstance(problem.reference.get("final_answer"), str):
            raise ConfigError(
                f"--lm-eval-compatible compares final answers, and {problem.problem_id} has none; leave it out"
            )


def as_lm_eval_judges(
    problems: Sequence[Problem], completions: Sequence[Completion]
) -> dict[str, tuple[float | None, ...]]:
    """Scores by lm-eval's filter, one a problem; a problem without a final answer is a ConfigError."""
    check_final_answers(problems)
    answers = [str(problem.reference["final_answer"]) for problem in problems]
    filters = {"strict_match": lm_eval.strict_match, "flexible_extract": lm_eval.flexible_extract}
    return {
        name: tuple(judge(one.text, answer) for one, answer in zip(completions, answers, strict=True))
        for name, judge in filters.items()
    }
