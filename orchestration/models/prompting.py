"""How a run asks its model: prompts in the model's tokens, and how completions are drawn."""

from __future__ import annotations

from pathlib import Path

from orchestration.data.problems import Problems
from orchestration.data.prompts import MixedPromptBuilder, PromptBuilder
from orchestration.models.tokenizer import load_tokenizer
from orchestration.settings.config import RunConfig
from rollout_server.types import SamplingParams


def training_sampling(config: RunConfig, builder: PromptBuilder) -> SamplingParams:
    """How the run's groups are drawn.

    Args:
        config: Has the sampler's settings.
        builder: Has strings and tokens at which the prompt's layout ends a completion, beside those of the settings.
    """
    rollout = config.rollout
    return SamplingParams(
        num_generations=rollout.num_generations,
        max_completion_length=rollout.max_completion_length,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p,
        stop=(*rollout.stop, *builder.stop),
        stop_token_ids=builder.stop_token_ids,
    )


def make_prompt_builder(config: RunConfig, problems: Problems, model_path: Path) -> PromptBuilder:
    """The run's prompts in the model's tokens; they leave room for a whole completion in the context.

    Raises:
        DataError: the model's folder has no tokenizer that loads.
    """
    room = config.rollout.max_model_len - config.rollout.max_completion_length
    tokenizer, parts = load_tokenizer(model_path), config.data.parts()

    def of(part: str) -> PromptBuilder:
        task, shots = config.data.part(part), [shot for shot in problems.shots if shot.part == part]
        return PromptBuilder(
            tokenizer,
            shots,
            room,
            layout=task.layout(),
            tools=task.tool_schemas(),
            template_kwargs=config.model.chat_template_kwargs,
        )

    return MixedPromptBuilder({part: of(part) for part in parts}) if parts else of("")
