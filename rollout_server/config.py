"""Settings of the rollout workers."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Device = Literal["cpu", "cuda"]
"""Where an engine runs."""


class RolloutConfig(BaseModel):
    """vLLM engines and how they sample. TRL's names where it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_workers: int | None = Field(
        None, ge=1, description="Number of rollout workers, each one vLLM engine; unset: as the GPUs allow, 1 without."
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Workers that an elastic run begins with; with fewer for restart_window_s it ends. Unset: "
        "num_workers.",
    )
    max_workers: int | None = Field(
        None,
        ge=1,
        description="Workers that an elastic run grows to: each starts where a node, one that has just joined too, has "
        "room, and takes groups once it has proved the current adapter. Unset: num_workers.",
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs per rollout worker.")
    num_generations: int = Field(8, ge=1, description="Completions per prompt: the size of a group.")
    max_completion_length: int = Field(256, ge=1, description="Tokens a completion may have.")
    temperature: float = Field(1.0, ge=0.0, description="Sampling temperature during training.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Nucleus mass; only 1, all tokens, can be learned from.")
    top_k: int = Field(0, ge=0, description="Most likely tokens kept; only 0, all, can be learned from.")
    min_p: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Tokens kept have this share of the likeliest one's probability; only 0, all, can be learned from.",
    )
    own_seeds: bool | None = Field(
        None,
        description="Draw each completion by a seed of its own, whatever else is drawn beside it; unset: "
        "on CPUs, as on GPUs it costs a launch for each sequence and token.",
    )
    stop: tuple[str, ...] = Field((), description="Strings that end a completion.")
    max_model_len: int = Field(2048, ge=16, description="Context: prompt and completion tokens together.")
    max_num_seqs: int = Field(64, ge=1, description="Sequences an engine decodes at once.")
    max_num_batched_tokens: int | None = Field(
        None, ge=16, description="Tokens of one engine step; unset: on CPUs 256, elsewhere vLLM's choice."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the served base; auto: float32, which is for CPUs alone, or bfloat16 on GPUs."
    )
    gpu_memory_utilization: float = Field(0.85, gt=0.0, le=1.0, description="Share of a GPU's memory vLLM may take.")
    kv_cache_gib: float = Field(1.0, gt=0.0, description="Key-value cache of a CPU engine, GiB.")
    block_size: int | None = Field(
        None,
        ge=1,
        description="Tokens of a block of the key-value cache: prefixes are found again by whole blocks. Unset: vLLM's "
        "own, on CPUs 128; there, 32 suits episodes of short turns.",
    )
    enforce_eager: bool = Field(False, description="No CUDA graphs and no compilation in the engine.")
    max_adapter_versions: int = Field(
        3, ge=2, description="Adapter versions a worker serves at once; publishing waits for the oldest to fall idle."
    )
    max_lora_rank: int = Field(16, ge=1, description="Largest adapter rank the engine takes.")
    start_timeout_s: float = Field(600.0, gt=0, description="Limit on an engine's start, seconds.")
    stall_timeout_s: float = Field(
        60.0,
        gt=0,
        description="A worker that does not answer, or makes no step with requests under way, for so long is replaced, "
        "seconds.",
    )
    generate_timeout_s: float = Field(
        600.0,
        gt=0,
        description="Limit on one completion's generation, from when it has a place in the engine, seconds.",
    )
    publish_timeout_s: float = Field(120.0, gt=0, description="Limit on one adapter publish, seconds.")
    adapter_dir: str = Field("/dev/shm", description="Folder, on tmpfs, where published adapters lie.")

    @property
    def elastic(self) -> bool:
        """Whether workers come and go with the nodes."""
        return self.min_workers is not None or self.max_workers is not None

    def workers_within(self, num_workers: int) -> int:
        """The nearest number of workers that the settings allow.

        Args:
            num_workers: As many as there is room for.

        Returns:
            At least `min_workers` (or 1) and at most `max_workers`, where they are set.
        """
        return min(max(num_workers, self.min_workers or 1), self.max_workers or num_workers)

    def generation_limit_s(self, num_sequences: int) -> float:
        """Within which an engine has ended all that it was given: sequences take its places in order, and each ends
        within `generate_timeout_s`. So the longest wait for a place is bounded, too.

        Args:
            num_sequences: Given at once; an engine has `max_num_seqs` places.

        Returns:
            Seconds.
        """
        return self.generate_timeout_s * math.ceil(num_sequences / self.max_num_seqs)

    def check_run(self, *, max_steps: int, placement: str) -> None:
        """Looks at what these settings have to do with others.

        Args:
            max_steps: Updates of the run; 0: it only samples, and any part of the distribution will do.
            placement: How the run divides its GPUs.

        Raises:
            ValueError: The numbers of workers do not go together or with the placement, or a learner would be given
                samples of a part of the distribution.
        """
        self._check_workers(placement)
        if max_steps:
            self._refuse_cut_distribution()

    def _check_workers(self, placement: str) -> None:
        names = ("min_workers", "num_workers", "max_workers")
        said = {name: count for name in names if (count := getattr(self, name)) is not None}
        if list(said.values()) != sorted(said.values()):
            counts = ", ".join(f"rollout.{name}={count}" for name, count in said.items())
            raise ValueError(f"{counts}: min_workers is the fewest of them, max_workers the most")
        if self.elastic and placement == "colocated":
            raise ValueError(
                "placement=colocated gives each worker a learner rank's GPU, and rollout.min_workers and max_workers "
                "let workers come and go: use placement=split"
            )

    def _refuse_cut_distribution(self) -> None:
        """For training.

        Raises:
            ValueError: Tokens are drawn from a part of the vocabulary. Their log-probs are then of that part, the
                learner's of the whole: each token's importance weight is the part's mass, and a sequence's, the product
                over its tokens, takes the gradient away (to 3e-6 over 256 tokens at `top_p` 0.9). To learn from them
                the learner would need every token's part, which vLLM tells on some of its runners only.
        """
        for name in ("top_p", "top_k", "min_p"):
            default = RolloutConfig.model_fields[name].default
            if (value := getattr(self, name)) != default:
                raise ValueError(
                    f"rollout.{name}={value} cannot be learned from: the sampler's log-probs are then of the tokens it "
                    f"keeps, the learner's of all, and their ratio over a completion takes the gradient away. Leave "
                    f"rollout.{name}={default}; rollout.temperature sharpens the distribution, for both alike"
                )
