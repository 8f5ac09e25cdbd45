"""The other benchmarks at a GPU's sizes: TRL, rollouts, publishing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from orchestration.bench.gpu.measuring import Measuring
from orchestration.report.progress import progress_printer
from orchestration.storage.cache import Progress

_MODEL = "random:qwen2.5-0.5b"


def trl(measuring: Measuring) -> None:
    """`rlvr bench learner`: the same step by ours and by TRL's trainers."""
    from orchestration.bench import learner

    options = learner.LearnerBench(
        model=_MODEL if measuring.cuda else "tiny",
        shots=8 if measuring.cuda else 1,
        num_prompts=16 if measuring.cuda else 2,
        num_generations=8 if measuring.cuda else 4,
        completion_length=200 if measuring.cuda else 8,
        gradient_checkpointing=not measuring.cuda,
    )
    _say_figures(measuring, "beside TRL", lambda progress: learner.run(options, progress))


def rollouts(measuring: Measuring) -> None:
    """`rlvr bench rollout`: an adapter or none, our workers or plain vLLM; eager too on a GPU."""
    from orchestration.bench import rollout

    settings = [f"model.name={_MODEL}", "rollout.max_completion_length=128", "rollout.max_model_len=2048"]
    number, modes = 256, {"compiled": [], "eager": ["rollout.enforce_eager=true"]}
    if not measuring.cuda:
        settings, number, modes = ["model.name=tiny", "rollout.kv_cache_gib=0.25"], 16, {"eager": []}
    for mode, more in modes.items():
        words = [*_settings(settings), *more]
        _say_figures(
            measuring,
            f"{number} sequences, {mode}",
            lambda progress, words=words: rollout.run(words, progress, num_sequences=number),  # type: ignore[misc]
        )


def publish(measuring: Measuring) -> None:
    """`rlvr bench sync`: publishing while generation runs."""
    from orchestration.bench import sync

    settings = [f"model.name={_MODEL}" if measuring.cuda else "model.name=tiny"]
    if not measuring.cuda:
        settings += ["rollout.kv_cache_gib=0.25", "prompts_per_step=2"]
    _say_figures(measuring, "under load", lambda progress: sync.run(_settings(settings), progress))


def _settings(words: Sequence[str]) -> list[str]:
    return ["arithmetic", *words]


def _say_figures(measuring: Measuring, case: str, measure: Callable[[Progress], dict[str, Any]]) -> None:
    with progress_printer(sys.stderr) as progress:
        result = measure(progress)
    measuring.say(case, **result.get("attention", {}), **result["figures"])
