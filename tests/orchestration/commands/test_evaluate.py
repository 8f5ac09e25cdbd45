"""What `rlvr eval` takes over from the run that trained the adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from learner.types import ScoredCompletion
from orchestration.commands.evaluate import as_lm_eval_judges, base_settings, evaluation_config
from orchestration.errors import ConfigError, DataError
from orchestration.run import lm_eval
from orchestration.run.evaluation import evaluate
from orchestration.settings.config import dump_config, load_config
from orchestration.types import BuiltPrompt, Problem
from rollout_server.types import Completion, FinishReason, Prompt, SamplingParams


def adapter_of_run(run: Path, *overrides: str) -> Path:
    adapter = run / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 4}))
    (run / "config.yaml").write_text(dump_config(load_config("tiny", overrides)))
    return adapter


def evaluated(adapter: Path, *overrides: str) -> tuple[str, bool]:
    config = evaluation_config(model="tiny", adapter=str(adapter), data="tiny", limit=None, overrides=overrides)
    return config.learner.quantization, config.learner.serve_dequantized_base


def test_an_adapter_is_evaluated_on_the_base_it_was_trained_on(tmp_path: Path) -> None:
    assert evaluated(adapter_of_run(tmp_path / "plain")) == ("none", True)
    quantized = adapter_of_run(tmp_path / "quantized", "learner.quantization=nf4")
    assert evaluated(quantized) == ("nf4", True)
    assert evaluated(quantized, "learner.serve_dequantized_base=false") == ("nf4", False)


def test_an_adapter_from_elsewhere_says_nothing_of_its_base(tmp_path: Path) -> None:
    assert base_settings(tmp_path / "adapter") == []
    for foreign in ("- a list", "learner: some words", "other: {quantization: nf4}"):
        (tmp_path / "config.yaml").write_text(foreign)
        assert base_settings(tmp_path / "adapter") == []
    (tmp_path / "config.yaml").write_text("{")
    with pytest.raises(DataError, match="beside the adapter, is not valid YAML"):
        base_settings(tmp_path / "adapter")


class Script:
    """A generator that says what it is told to, and a judge that keeps what it is shown."""

    reward_names = ("seen",)

    def __init__(self, *texts: str) -> None:
        self._texts = iter(texts)
        self.shown: list[str] = []

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        return [
            Completion(
                prompt_id=prompt.prompt_id,
                token_ids=(1,),
                sampling_logprobs=(0.0,),
                text=next(self._texts),
                finish_reason=FinishReason.STOP,
                adapter_version=0,
            )
        ]

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        self.shown += [one.text for one in completions]
        return [ScoredCompletion(completion=one, rewards=(1.0,), total=1.0) for one in completions]


def problem(answer: Any) -> Problem:
    return Problem(problem_id=f"p/{answer}", question=f"what is {answer}?", reference={"final_answer": answer})


async def test_as_lm_eval_judges_it() -> None:
    """What stands behind a stop string is shown to nobody, and its two filters judge what is left."""
    problems = [problem("72"), problem("5")]
    prompts = [
        BuiltPrompt(problem=one, text=one.question, prompt=Prompt(prompt_id=one.problem_id, token_ids=(1,)))
        for one in problems
    ]
    script = Script("#### 72\n\nQuestion: 1 + 1?\n#### 2", "it is 5.<|im_end|>6")
    sampling = SamplingParams(num_generations=1, max_completion_length=8)
    result = await evaluate(
        generator=script, judges={"seen": script}, problems=prompts, sampling=sampling, cut=lm_eval.cut
    )
    assert script.shown == ["#### 72\n\n", "it is 5."]
    assert as_lm_eval_judges(problems, result.completions_N) == {
        "strict_match": (1.0, 0.0),
        "flexible_extract": (1.0, 1.0),
    }


def test_a_task_without_final_answers_cannot_be_judged_so() -> None:
    with pytest.raises(ConfigError, match="--lm-eval-compatible compares final answers, and p/None has none"):
        as_lm_eval_judges([problem(None)], [])
