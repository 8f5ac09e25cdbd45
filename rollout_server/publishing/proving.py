"""Loading a version into an engine, and the proof that it is served: what is asked when, and what is remembered."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rollout_server.publishing.probing import Gap, check_agreement, check_base, check_not_stale, is_clearly_fresh
from rollout_server.types import AdapterProbe, AdapterVersion


class ProbedEngine(Protocol):
    """What a proof needs of an inference engine."""

    async def add_lora(self, version: AdapterVersion) -> None: ...

    async def prompt_logprobs(
        self, token_ids: Sequence[int], versions: Sequence[AdapterVersion | None]
    ) -> list[list[float]]: ...

    async def add_lora_and_probe(
        self,
        version: AdapterVersion,
        token_ids: Sequence[int],
        versions: Sequence[AdapterVersion | None],
        before: AdapterVersion | None,
    ) -> tuple[float, list[list[float]], bool]: ...

    async def same_adapters(self, first: AdapterVersion, second: AdapterVersion | None) -> bool: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A version that the engine has, and what it answered then."""

    version: AdapterVersion
    before: AdapterVersion | None
    """What it is to replace; None: the base."""
    token_ids: tuple[int, ...]
    load_ms: float
    served: list[float] | None
    """Log-probabilities under `version`; None if nothing was asked."""
    served_before: list[float] | None
    """Under `before`; None if nothing was asked."""
    same: bool | None
    """It is in the engine's memory what `before` is, bit for bit; None if nobody looked."""
    whole: bool
    """Whole tensors of the model were replaced with it."""


class Prover:
    """The proofs of one engine, one after the other."""

    def __init__(self, engine: ProbedEngine, worker: str) -> None:
        self._engine, self._worker = engine, worker
        self._base_gap: Gap | None = None
        self._remembered: Loaded | None = None
        """The version proven last."""

    async def load(
        self,
        version: AdapterVersion,
        token_ids: tuple[int, ...],
        before: AdapterVersion | None,
        *,
        served_before: list[float] | None,
        alike: bool,
    ) -> Loaded:
        """Load a version, and ask for the probe in the same go.

        Args:
            version: What to load.
            token_ids: The probe's; none: nothing is asked.
            before: What the engine serves now; None: the base.
            served_before: What it said of the tokens, if it cannot be asked any more.
            alike: An adapter with such tensors did load before, so that this one will.
        """
        whole = served_before is not None
        versions: list[AdapterVersion | None] = [version]
        if token_ids and not whole:
            served_before = self._remembers(before, token_ids)
            if served_before is None:
                versions.append(before)
        same = None
        if token_ids and alike:
            load_ms, answers, same = await self._engine.add_lora_and_probe(version, token_ids, versions, before)
        else:
            began = time.perf_counter()
            await self._engine.add_lora(version)
            load_ms = (time.perf_counter() - began) * 1e3
            answers = await self._engine.prompt_logprobs(token_ids, versions) if token_ids else []
        return Loaded(
            version=version,
            before=before,
            token_ids=token_ids,
            load_ms=load_ms,
            served=answers[0] if answers else None,
            served_before=answers[1] if answers[1:] else served_before,
            same=same,
            whole=whole,
        )

    async def prove(self, loaded: Loaded, probe: AdapterProbe) -> Gap:
        """Is what was loaded served, and is it what was trained? Log-probabilities tell, unless the update is so small
        that what else is in a batch moves them as much; then the engine's memory is looked into.

        Returns:
            How far served and trained are apart.

        Raises:
            AdapterMismatchError, StaleAdapterError: It is not.
        """
        assert loaded.served is not None
        assert loaded.served_before is not None
        last = slice(-len(probe.training_logprobs), None)
        served, served_before, number = loaded.served[last], loaded.served_before[last], loaded.version.number
        if loaded.before is None:
            self._base_gap = check_base(served_before, probe, worker=self._worker)
            probe = dataclasses.replace(probe, previous_training_logprobs=probe.base_training_logprobs)
        elif loaded.before.number != probe.previous_version:  # as after a learner that died has made steps again
            probe = dataclasses.replace(probe, previous_training_logprobs=None)
        found = check_agreement(served, probe, self._base_gap, worker=self._worker, version=number)
        if not is_clearly_fresh(served, served_before, probe):
            same = False if loaded.whole else loaded.same
            if same is None:
                same = await self._engine.same_adapters(loaded.version, loaded.before)
            check_not_stale(
                served,
                served_before,
                probe,
                same=same,
                worker=self._worker,
                version=number,
                previous_version=0 if loaded.before is None else loaded.before.number,
            )
        self._remembered = loaded
        return found

    async def prove_again(self, version: AdapterVersion, token_ids: tuple[int, ...], probe: AdapterProbe) -> Gap:
        """Whether the version that is served still is.

        Args:
            version: As it was published.
            token_ids: Those that the probe was taken on, prompt and completion.
            probe: The learner's log-probs of the last of them, nats.

        Returns:
            How far the engine's log-probs are from the learner's now.

        Raises:
            AdapterMismatchError: Further than the bound; the message names worker and version.
        """
        (served,) = await self._engine.prompt_logprobs(token_ids, [version])
        served = served[-len(probe.training_logprobs) :]
        return check_agreement(served, probe, self._base_gap, worker=self._worker, version=version.number)

    def _remembers(self, version: AdapterVersion | None, token_ids: tuple[int, ...]) -> list[float] | None:
        last = self._remembered
        if last is None or (last.version, last.token_ids) != (version, token_ids):
            return None
        return last.served
