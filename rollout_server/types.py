"""What crosses the rollout server's door: small frozen values of ints, floats and strings. Standard library only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A prompt's place among those that an engine begins together, so that they share its batches however they came."""

    key: str
    """Of all that belong together; never used twice."""
    index: int
    """From 0, in the order in which they begin."""
    size: int
    """How many there are."""

    def among(self, num_workers: int) -> tuple[int, Turn]:
        """Which of several workers takes it, and its place among that worker's.

        >>> Turn(key="k", index=5, size=7).among(2)
        (1, Turn(key='k', index=2, size=3))
        """
        worker = self.index % num_workers
        size = (self.size - worker + num_workers - 1) // num_workers
        return worker, Turn(key=self.key, index=self.index // num_workers, size=size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A tokenised prompt: the chat template and few-shot examples are already in it."""

    prompt_id: str
    token_ids: tuple[int, ...]
    seed: int | None = None
    """Of its completions, each of which derives one of its own; None: whatever the engine draws next. Engines that pay
    for seeds do not look at it (see `RolloutConfig.own_seeds`)."""
    turn: Turn | None = None
    """None: begin it at once."""

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError(f"prompt {self.prompt_id!r} has no tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How completions of one prompt are drawn; `temperature=0` is greedy. Names are TRL's."""

    num_generations: int = 8
    max_completion_length: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all tokens."""
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    """End tokens beyond the model's own; the one that ended a completion is its last token."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they stay in its text and tokens."""
    ignore_end_token: bool = False
    """Go on past the model's own end token: measurements need completions of equal length."""


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    """An end token or a stop string."""
    LENGTH = "length"
    """`max_completion_length` or the context was reached: the completion is truncated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One sampled completion, on exactly one adapter version from first token to last."""

    prompt_id: str
    token_ids: tuple[int, ...]
    sampling_logprobs: tuple[float, ...]
    """log p of each sampled token under the sampler's processed distribution (after temperature), natural log."""
    text: str
    finish_reason: FinishReason
    adapter_version: int
    """0 is the base model, before any adapter was published."""

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.sampling_logprobs):
            raise ValueError(
                f"completion of {self.prompt_id!r}: {len(self.token_ids)} tokens but "
                f"{len(self.sampling_logprobs)} log-probs"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterProbe:
    """A few fixed tokens and the learner's log-probabilities of them, by which a worker proves what it serves."""

    token_ids: tuple[int, ...]
    training_logprobs: tuple[float, ...]
    """`training_logprobs[i]` is log p(token_ids[i+1] | token_ids[:i+1]) at temperature 1; length is one less."""
    tolerance: float
    """Largest absolute difference allowed, nats."""
    previous_training_logprobs: tuple[float, ...] | None = None
    """The same under the version before, when the update was not zero: what is served must be nearer to
    `training_logprobs` than to these (a stale or ignored adapter is not)."""

    def __post_init__(self) -> None:
        if len(self.training_logprobs) != len(self.token_ids) - 1:
            raise ValueError(f"a probe of {len(self.token_ids)} tokens needs {len(self.token_ids) - 1} log-probs")


ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of a peft folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterPayload:
    """An adapter on its way from the learner to the rollout workers: the files of a peft folder, as bytes."""

    version: int
    files: tuple[tuple[str, bytes], ...]
    """(file name, content) of `ADAPTER_CONFIG` and `ADAPTER_WEIGHTS`. Modules trained whole (peft's `modules_to_save`)
    are in the latter."""
    tied: tuple[tuple[str, str], ...] = ()
    """(name, the name its tensor is stored under): a tied tensor travels once, though plain peft wants each name."""
    probe: AdapterProbe | None = None

    @property
    def num_bytes(self) -> int:
        return sum(len(content) for _, content in self.files)

    def checksum(self) -> str:
        """SHA-256 over names and contents, hexadecimal."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files):
            digest.update(f"{name}:{len(content)}:".encode())
            digest.update(content)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterVersion:
    """An adapter as it lies on a node."""

    number: int
    path: str
    checksum: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishReport:
    """What one worker says after it began to serve a version."""

    worker: str
    version: AdapterVersion
    write_ms: float
    """Time to write the files to the node's tmpfs; 0 when another worker of the node had done it."""
    load_ms: float
    """Time of vLLM's `add_lora`."""
    probe_ms: float
    probe_difference: float | None
    """Largest absolute difference between served and learner log-probs, nats; None without a probe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStep:
    """One step of an engine: what it gave, and how long those who got a token had waited for it."""

    at: float
    """When its tokens arrived, seconds on the host's monotonic clock."""
    token_gaps_s: tuple[float, ...]
    """For each sequence that got a token which is not its first: seconds since the token before."""
