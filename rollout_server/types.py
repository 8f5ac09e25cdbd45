"""What crosses the rollout server's door: small frozen values, of numbers, rows of them and strings. Standard library
only."""

from __future__ import annotations

import hashlib
import pickle
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, SupportsIndex

from rollout_server.arrays import Logprobs, TokenIds
from rollout_server.pickling import pickled_by_fields


@pickled_by_fields
@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A prompt's place among those that an engine begins together, so that they share its batches however they came."""

    key: str
    """Of all that belong together; never used twice."""
    index: int
    """From 0, in the order in which they begin."""
    size: int
    """How many there are."""
    homes: tuple[int, ...] = ()
    """Of each of them the `index` of an earlier one to whose worker it goes, which has the tokens it begins with; none:
    their own."""
    goes_on: bool = False
    """They are later turns of those before: the engine's prefix cache, which holds what they begin with, stays."""

    def among(self, num_workers: int) -> tuple[int, Turn]:
        """Which of several workers takes it, and its place among that worker's.

        >>> Turn(key="k", index=5, size=7).among(2)
        (1, Turn(key='k', index=2, size=3, homes=(), goes_on=False))
        >>> Turn(key="k", index=2, size=3, homes=(0, 1, 3), goes_on=True).among(2)
        (1, Turn(key='k', index=1, size=2, homes=(), goes_on=True))
        """
        if self.homes:
            workers = [home % num_workers for home in self.homes]
            worker = workers[self.index]
            index, size = workers[: self.index].count(worker), workers.count(worker)
            return worker, Turn(key=self.key, index=index, size=size, goes_on=self.goes_on)
        worker = self.index % num_workers
        size = (self.size - worker + num_workers - 1) // num_workers
        return worker, Turn(key=self.key, index=self.index // num_workers, size=size)


@pickled_by_fields
@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A tokenised prompt: the chat template and few-shot examples are already in it."""

    prompt_id: str
    token_ids: TokenIds
    """Any sequence of them is taken."""
    seed: int | None = None
    """Of its completions, each of which derives one of its own; None: whatever the engine draws next. Engines that pay
    for seeds do not look at it (see `RolloutConfig.own_seeds`)."""
    turn: Turn | None = None
    """None: begin it at once."""
    affinity: str | None = None
    """Prompts of one go to the worker that had the one before, whose cache holds what they share; None: to any."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", TokenIds(self.token_ids))
        if not self.token_ids:
            raise ValueError(f"prompt {self.prompt_id!r} has no tokens")


@pickled_by_fields
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
    TURNS = "turns"
    """An episode had as many turns as it may have."""
    TIME = "time"
    """An episode took as long as it may take."""
    FAILED = "failed"
    """An episode's environment failed."""


def checksum_of(token_ids: TokenIds) -> int:
    """CRC-32 of tokens."""
    return zlib.crc32(token_ids.tobytes())


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeTurn:
    """What the model said in one turn of an episode, and what came of it."""

    start: int
    """Of the turn's sampled tokens, among all of the completion's."""
    stop: int
    text: str
    """What the model said."""
    finish_reason: FinishReason
    """Why this turn ended."""
    adapter_version: int
    """On which it was sampled."""
    checksum: int = 0
    """Of the turn's tokens as the engine gave them (`checksum_of`)."""
    reward: float | None = None
    """What the environment paid for it; None: nothing was paid."""
    observation: str = ""
    """What the environment answered; empty where the episode ended with the turn."""
    num_cached: int = 0
    """Tokens before it whose keys and values the engine had."""
    num_cacheable: int = 0
    """Of the tokens of the turn before, and of those before it, as many as an engine that forgot nothing would have
    had: whole blocks of its cache, of the same version. 0 for a first turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fork:
    """Where an episode goes on behind other tokens than those so far: its model's template had rewritten what was said
    before."""

    start: int
    """Of its tokens, among all of the completion's."""
    prompt_token_ids: TokenIds
    """What stands before them: the whole conversation up to there, as rewritten. None of it is learned from here."""


@pickled_by_fields
@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One sampled completion, on exactly one adapter version from first token to last; or an episode of several turns,
    between which tokens were given by an environment, and each of which has the version that it was sampled on."""

    prompt_id: str
    token_ids: TokenIds
    """Any sequence of them is taken, here and below."""
    sampling_logprobs: Logprobs
    """log p of each sampled token under the sampler's processed distribution (after temperature), natural log."""
    text: str
    finish_reason: FinishReason
    adapter_version: int
    """0 is the base model, before any adapter was published. Of an episode the oldest of its turns'."""
    turns: tuple[EpisodeTurn, ...] = ()
    """An episode's, in order: tokens that are in none of them were given, not sampled, and have the log-prob 0. Without
    any, all tokens were sampled in one turn."""
    own_prompt_token_ids: TokenIds | None = None
    """What an episode began with, where its environment showed more than the group's prompt; None: that prompt."""
    failure: str | None = None
    """Why the episode came to nothing; it has no reward then."""
    forks: tuple[Fork, ...] = ()
    """In order. An episode is one sequence more than it has of them: each goes up to where the next begins."""
    num_cached_tokens: int = 0
    """Of its prompt, tokens whose keys and values the engine had (an episode's turns say it each)."""
    cache_block: int = 1
    """Tokens of a block of the engine's cache: what it keeps is whole ones."""

    @property
    def is_episode(self) -> bool:
        return bool(self.turns) or self.failure is not None

    @property
    def sampled(self) -> tuple[tuple[int, int], ...]:
        """Where the sampled tokens are, [start, stop) each."""
        if self.is_episode:
            return tuple((turn.start, turn.stop) for turn in self.turns)
        return ((0, len(self.token_ids)),)

    @property
    def num_sampled(self) -> int:
        """How many of the tokens were sampled."""
        if not self.is_episode:
            return len(self.token_ids)
        return sum(stop - start for start, stop in self.sampled)

    def pieces(self, prompt_token_ids: TokenIds) -> tuple[tuple[TokenIds, int, int], ...]:
        """The sequences that it is: of each what stands before it, and where its tokens are, [start, stop).

        Args:
            prompt_token_ids: Its group's prompt.
        """
        first = self.own_prompt_token_ids or prompt_token_ids
        starts = [0, *(fork.start for fork in self.forks)]
        stops = [*starts[1:], len(self.token_ids)]
        prompts = [first, *(fork.prompt_token_ids for fork in self.forks)]
        return tuple(zip(prompts, starts, stops, strict=True))

    @property
    def num_retokenised(self) -> int:
        """Sampled tokens of turns that are not what the engine gave: 0, or they were encoded again on the way."""
        return sum(
            turn.stop - turn.start
            for turn in self.turns
            if checksum_of(self.token_ids[turn.start : turn.stop]) != turn.checksum
        )

    @property
    def last_text(self) -> str:
        """What the model said last."""
        return self.turns[-1].text if self.turns else self.text

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", TokenIds(self.token_ids))
        object.__setattr__(self, "sampling_logprobs", Logprobs(self.sampling_logprobs))
        if self.own_prompt_token_ids is not None:
            object.__setattr__(self, "own_prompt_token_ids", TokenIds(self.own_prompt_token_ids))
        edges = [edge for turn in self.turns for edge in (turn.start, turn.stop)]
        if edges != sorted(edges) or (edges and not 0 <= edges[0] <= edges[-1] <= len(self.token_ids)):
            raise ValueError(f"episode of {self.prompt_id!r}: turns {self.sampled} of {len(self.token_ids)} tokens")
        if len(self.token_ids) != len(self.sampling_logprobs):
            raise ValueError(
                f"completion of {self.prompt_id!r}: {len(self.token_ids)} tokens but "
                f"{len(self.sampling_logprobs)} log-probs"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterProbe:
    """What the learner says of a few fixed tokens, by which a worker proves what it serves.

    Log-probabilities are natural, at temperature 1, and of the same predictions each time: the last ones of
    `AdapterPayload.probe_token_ids`. The tokens before are their context.
    """

    version: int
    training_logprobs: tuple[float, ...]
    """Of this version."""
    base_training_logprobs: tuple[float, ...]
    """Of version 0, the base model: what engine and learner disagree by before anything was learned."""
    previous_version: int | None = None
    previous_training_logprobs: tuple[float, ...] | None = None
    """Of that earlier version, mostly the one before; None where the learner remembers none."""
    tolerance: float
    """Largest absolute difference between served and trained that is ever allowed, nats."""

    def __post_init__(self) -> None:
        for other in (self.base_training_logprobs, self.previous_training_logprobs):
            if other is not None and len(other) != len(self.training_logprobs):
                raise ValueError(
                    f"a probe of {len(self.training_logprobs)} predictions has {len(other)} of another version"
                )


ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of a peft folder."""
_SMALL_BYTES = 1 << 16
"""What is no larger is copied: a configuration is read as bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterPayload:
    """An adapter on its way from the learner to the rollout workers: the files of a peft folder, as bytes."""

    version: int
    files: tuple[tuple[str, bytes | memoryview], ...]
    """(file name, content) of `ADAPTER_CONFIG` and `ADAPTER_WEIGHTS`. Modules trained whole (peft's `modules_to_save`)
    are in the latter. Where it was unpickled a content may be a view of what it came in, of unsigned bytes."""
    tied: tuple[tuple[str, str], ...] = ()
    """(name, the name its tensor is stored under): a tied tensor travels once, though plain peft wants each name."""
    probe_token_ids: tuple[int, ...] = ()
    """What the engine is asked to prove the version by; the learner's `AdapterProbe` of it comes later."""

    @property
    def num_bytes(self) -> int:
        return sum(len(content) for _, content in self.files)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Contents go beside the pickle where somebody takes them so: megabytes are not copied for it."""
        wrap: Any = pickle.PickleBuffer if protocol.__index__() >= 5 else bytes
        files = tuple((name, wrap(content)) for name, content in self.files)
        return _payload, (self.version, files, self.tied, self.probe_token_ids)

    def checksum(self) -> str:
        """SHA-256 over names and contents, hexadecimal."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files):
            digest.update(f"{name}:{len(content)}:".encode())
            digest.update(content)
        return digest.hexdigest()


def _payload(version: int, files: Sequence[tuple[str, Any]], tied: Any, probe_token_ids: Any) -> AdapterPayload:
    contents = [(name, one if isinstance(one, bytes) else memoryview(one).cast("B")) for name, one in files]
    return AdapterPayload(
        version=version,
        files=tuple((name, one if len(one) > _SMALL_BYTES else bytes(one)) for name, one in contents),
        tied=tied,
        probe_token_ids=probe_token_ids,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterVersion:
    """An adapter as it lies on a node."""

    number: int
    path: str
    key: str
    """Of this content alone: what the engine has cached under it is of no other."""
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
