"""vLLM by itself, the baseline of `rlvr bench rollout`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollout_server.config import Device, RolloutConfig
from rollout_server.engine_settings import engine_arguments, prepare_environment
from rollout_server.types import AdapterVersion, Completion, Prompt, SamplingParams
from rollout_server.vllm_types import completion_from, lora_request, vllm_sampling_parameters

_SHUTDOWN_TIMEOUT_S = 15.0


class PlainVllm:
    """`vllm.LLM` with the settings of a worker's engine and nothing of ours around it."""

    def __init__(self, model_path: str, config: RolloutConfig, device: Device, seed: int, **changes: Any) -> None:
        """`changes` are vLLM's own arguments, instead of those of a worker's engine."""
        prepare_environment(config, device)
        from vllm import LLM

        self._max_model_len = config.max_model_len
        self._llm = LLM(**(engine_arguments(model_path, config, device, seed) | changes))

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, lora: AdapterVersion | None
    ) -> list[list[Completion]]:
        """Draw one group for each prompt through `LLM.generate`.

        Args:
            prompts: Prompts that leave room for a completion in the context.
            sampling: How every group is drawn.
            lora: The adapter to draw from; None is the base.

        Returns:
            The groups, in the order of the prompts.
        """
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts],
            [vllm_sampling_parameters(prompt, sampling, self._max_model_len) for prompt in prompts],
            use_tqdm=False,
            lora_request=None if lora is None else lora_request(lora),
        )
        version = 0 if lora is None else lora.number
        return [
            [completion_from(prompt.prompt_id, piece, version) for piece in output.outputs]
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    def shutdown(self) -> None:
        """Stop vLLM's processes."""
        self._llm.llm_engine.engine_core.shutdown(_SHUTDOWN_TIMEOUT_S)
