"""`rlvr replay`: a recorded step of a run again, alone: learned from its record, or sampled."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from learner.checkpoint import checkpoint_name, checkpoint_steps
from learner.errors import LearnerError
from orchestration.concurrency import in_thread
from orchestration.episodes.generator import acting
from orchestration.errors import ConfigError, RlvrError
from orchestration.machine.facts import collect
from orchestration.machine.placement import place
from orchestration.models.dequantized import served_model
from orchestration.models.prompting import make_prompt_builder, training_sampling
from orchestration.models.resolve import resolve_model
from orchestration.run.ledger.ledger import weights_digest
from orchestration.run.ledger.names import CHECKPOINTS_FOLDER, config_of
from orchestration.run.ledger.records import StepRecord, read_record, recorded_steps
from orchestration.run.ledger.recovery import catch_up
from orchestration.run.ports import AdapterHandle
from orchestration.settings.config import RunConfig, load_config
from orchestration.storage.cache import Progress
from rollout_server.errors import RolloutError
from rollout_server.types import Completion, Prompt, Turn


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayOptions:
    """What is replayed."""

    run_dir: Path
    step: int
    rollout: bool
    """Sample the step's prompts again, instead of learning from its groups."""
    completion: tuple[int, int] | None = None
    """Group and member whose share of the step's gradient is measured before it is learned."""


def run_replay(options: ReplayOptions, progress: Progress) -> dict[str, Any]:
    """Replay a step; the result says with `equal` whether it is, bit for bit, what was recorded.

    Raises RlvrError in one sentence: there is no such run or record, or nothing to begin from.
    """
    config = load_config(str(config_of(options.run_dir)))
    record = read_record(options.run_dir, _checked_step(options))
    try:
        return asyncio.run(_replay(options, config, record, progress))
    except (LearnerError, RolloutError) as error:
        raise RlvrError(str(error)) from error


def starting_point(run_dir: Path, step: int) -> int:
    """The step whose checkpoint a replay of `step` begins from, all steps after it being recorded; 0: the learner as it
    was when the run began.

    Raises RlvrError when there is none.
    """
    recorded = set(recorded_steps(run_dir))
    checkpoints = checkpoint_steps(run_dir / CHECKPOINTS_FOLDER)
    for start in (*sorted(checkpoints, reverse=True), 0):
        if start < step and recorded >= set(range(start + 1, step + 1)):
            return start
    kept = f"checkpoints of {_listed(checkpoints)}, records of {_listed(sorted(recorded))}"
    raise RlvrError(
        f"step {step} of {str(run_dir)!r} cannot be learned again: no checkpoint before it is followed by its records "
        f"({kept}); a run keeps more with learner.keep_checkpoints and keep_records"
    )


def differences(then: Mapping[str, float], now: Mapping[str, float]) -> dict[str, tuple[float | None, float | None]]:
    """Figures that are not the same: name → the two."""
    names = sorted(then.keys() | now.keys())
    pairs = {name: (then.get(name), now.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if not _same(*pair)}


def _same(then: float | None, now: float | None) -> bool:
    return then == now or (then is not None and now is not None and math.isnan(then) and math.isnan(now))


async def _replay(options: ReplayOptions, config: RunConfig, record: StepRecord, progress: Progress) -> dict[str, Any]:
    from orchestration.cluster.local_learner import local_learner  # loads numpy

    run_dir, step = options.run_dir, options.step
    start = starting_point(run_dir, step)
    placement = place(config, num_gpus=len(collect().gpus))
    device = placement.device
    progress(f"preparing the model {config.model.name}", 0.0)
    model_path = await in_thread(partial(resolve_model, config.model.name, config.model.revision, progress=progress))
    progress("starting the learner", 0.0)
    async with local_learner(model_path=model_path, config=config, device=device) as learner:
        exact = await catch_up(
            learner,
            run_dir,
            checkpoint=run_dir / CHECKPOINTS_FOLDER / checkpoint_name(start) if start else None,
            learned=start,
            recorded=step - 1,
            on_step=lambda number: progress(f"learning step {number} again", (number - start) / (step - start)),
        )
        figures: dict[str, Any] = {"step": step, "from_step": start, "before_equal": exact}
        if options.rollout:
            adapter = await learner.export_adapter() if step > 1 else None
        else:
            if options.completion is not None:
                figures["gradient"] = await learner.gradient_share(record.groups_P, *options.completion)
            progress(f"learning step {step} again", 1.0)
            update = await learner.update(record.groups_P)
            digest = weights_digest(await (await learner.export_adapter()).fetch())
            changed = differences(record.update.values, update.values)
            return figures | {
                "adapter": digest,
                "recorded_adapter": record.adapter or None,
                "equal": digest == record.adapter and not changed and update.advantages == record.update.advantages,
                "computed_by": update.computed_by,
                "recorded_by": record.update.computed_by,
                "values": update.values,
                "different": {name: list(pair) for name, pair in changed.items()},
            }
    sampled = await _sample(config, record, model_path, adapter, device=device, progress=progress)
    return figures | compare_rollouts(record, sampled) | {"recorded_workers": len(placement.rollout)}


async def _sample(
    config: RunConfig,
    record: StepRecord,
    model_path: Path,
    adapter: AdapterHandle | None,
    *,
    device: Any,
    progress: Progress,
) -> list[Sequence[Completion]]:
    """The groups of a step, drawn once more under the adapter before it."""
    from orchestration.cluster.local import local_generator

    if config.data.asks():
        raise ConfigError(
            f"--rollout draws without a reward service, and the task {config.data.kind!r} asks one between turns: "
            f"leave it out to learn the step again from what was drawn"
        )
    problems = config.data.load()
    builder = make_prompt_builder(config, problems, model_path)
    sampling = training_sampling(config, builder)
    served = await in_thread(partial(served_model, model_path, config, device=device, progress=progress))
    progress("starting the vLLM engine", 0.0)
    async with local_generator(model_path=served, config=config.rollout, device=device, seed=config.seed) as generator:
        if adapter is not None:
            await generator.publish(adapter)
        size = len(record.groups_P)
        prompts = [
            Prompt(
                prompt_id=group.prompt_id,
                token_ids=group.prompt_token_ids,
                seed=seed,
                turn=Turn(key=f"step-{record.step}", index=index, size=size),
            )
            for index, (group, seed) in enumerate(zip(record.groups_P, record.seeds, strict=True))
        ]
        progress(f"sampling {size} groups", 0.0)
        drawing = acting(generator, config, problems, builder, device=device)
        return list(await asyncio.gather(*(drawing.generate(prompt, sampling) for prompt in prompts)))


def compare_rollouts(record: StepRecord, sampled: Sequence[Sequence[Completion]]) -> dict[str, Any]:
    """How many completions have the recorded tokens, and how many the log-probabilities too, bit for bit."""
    pairs = [
        (member.completion, again)
        for group, completions in zip(record.groups_P, sampled, strict=True)
        for member, again in zip(group.members, completions, strict=True)
    ]
    tokens = sum(then.token_ids == now.token_ids for then, now in pairs)
    bits = sum(
        (then.token_ids, then.sampling_logprobs) == (now.token_ids, now.sampling_logprobs) for then, now in pairs
    )
    return {
        "num_completions": len(pairs),
        "same_tokens": tokens,
        "same_logprobs": bits,
        "equal": bits == len(pairs),
        "completions": [[completion.text for completion in completions] for completions in sampled],
    }


def in_words(result: Mapping[str, Any]) -> str:
    """For people."""
    step = result["step"]
    begun = (
        f"from {'the beginning' if not result['from_step'] else 'the checkpoint of step ' + str(result['from_step'])}"
    )
    if "same_tokens" in result:
        said = (
            f"step {step} sampled again, {begun}: of {result['num_completions']} completions {result['same_tokens']} "
            f"have the recorded tokens and {result['same_logprobs']} the recorded log-probabilities, bit for bit"
        )
        workers = result["recorded_workers"]
        return said if result["equal"] or workers == 1 else f"{said}\n  {_as_many(f'{workers} workers', '1')}"
    if result["equal"]:
        return f"step {step} learned again, {begun}: figures and adapter are the recorded ones, bit for bit"
    lines = [f"step {step} learned again, {begun}: the {'adapter' if not result['different'] else 'step'} is another"]
    lines += [f"  {name} was {then}, is {now}" for name, (then, now) in result["different"].items()]
    if not result["before_equal"]:
        lines.append("  so is the adapter that it began from")
    then, now = result["recorded_by"], result["computed_by"]
    if then and then != now:
        lines.append(f"  {_as_many(then, now)}")
    elif then:
        lines.append(f"  it was made by {now} both times: settings, the code or its libraries are others")
    return "\n".join(lines)


def _as_many(then: str, now: str) -> str:
    return (
        f"it was made by {then}, and again by {now}: the same bits are promised to as many workers, ranks and threads "
        f"on the same kind of processor"
    )


def _checked_step(options: ReplayOptions) -> int:
    steps = recorded_steps(options.run_dir)
    if options.step not in steps:
        raise ConfigError(
            f"{str(options.run_dir)!r} has no record of step {options.step}; it has records of {_listed(steps)}"
        )
    return options.step


def _listed(steps: Sequence[int]) -> str:
    """Steps as people write them: `3, 5 to 9`."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs) or "no step"
