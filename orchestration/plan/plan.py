"""A plan: the best split of so many GPUs for a run, what it does an hour, needs and costs, and why it is the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestration.errors import ConfigError, MachineError
from orchestration.machine.model_sizes import ModelSize, model_size
from orchestration.plan.gpus import CPU, GPUS, PRICES_OF
from orchestration.plan.lengths import Lengths, StatedLengths
from orchestration.plan.measured import MeasuredRun, measured_rates, read_run, recorded_lengths
from orchestration.plan.rates import Rates, stated_rates
from orchestration.plan.simulate import Outcome, Split, simulate
from orchestration.plan.splits import Memory, best_split, fitting, gpus_of, memory_of, possible
from orchestration.settings.config import RunConfig

USUAL_SHARE, USUAL_DEVIATION = 0.5, 0.5
"""Assumed of completions whose lengths are not stated: their mean over the limit, their deviation over the mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machines:
    """What is planned for."""

    nodes: int = 1
    gpus_per_node: int = 8
    gpu: str = "a100-40"
    """A name of `GPUS`, or `cpu`."""
    price: float | None = None
    """Dollars an hour for a node; None: the table's."""

    @property
    def num_gpus(self) -> int:
        return 0 if self.gpu == CPU else self.nodes * self.gpus_per_node

    @property
    def dollars_an_hour(self) -> float | None:
        if self.price is not None:
            return self.nodes * self.price
        if self.gpu == CPU:
            return None
        return self.nodes * GPUS[self.gpu].dollars_an_hour * self.gpus_per_node / 8

    @property
    def price_source(self) -> str:
        if self.price is not None:
            return "as given"
        if self.gpu == CPU:
            return "no price is known: --price DOLLARS"
        part = "" if self.gpus_per_node == 8 else f", {self.gpus_per_node} of its 8 GPUs"
        return f"{GPUS[self.gpu].instance}{part}, {PRICES_OF}"


@dataclass(frozen=True, kw_only=True, slots=True)
class StatedTexts:
    """Lengths as the user states them; None where our assumption is to do."""

    completion_tokens: float | None = None
    prompt_tokens: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is best, and what else was looked at."""

    recipe: str
    machines: Machines
    best: Outcome
    others: tuple[Outcome, ...]
    """Other splits that were simulated, the better first."""
    as_set: Outcome | None
    """What the settings ask for by themselves, where that is another split."""
    idle_gpus: int
    memory: Memory
    node_memory: int
    """Of the processor's, bytes: what the actors of all nodes take together, over the nodes."""
    dollars_an_hour: float | None
    dollars_a_run: float | None
    run_hours: float
    """Of `max_steps`, without start and evaluations."""
    rates: Rates
    lengths: str
    why: tuple[str, ...]


def make_plan(
    config: RunConfig,
    machines: Machines,
    *,
    measured: Sequence[Path] = (),
    texts: StatedTexts = StatedTexts(),
) -> Plan:
    """Find the best split.

    Args:
        config: The run; where it sets numbers of workers and ranks, those are looked at beside the best.
        machines: What there is.
        measured: Run folders that rates and lengths are taken from; without them both are stated.
        texts: Lengths, where no run says them.

    Raises:
        ConfigError: nothing can be said: no rates for a CPU, an unknown size, a folder that holds no run.
        MachineError: no split fits into the GPUs' memory.
    """
    runs = [read_run(path) for path in measured]
    lengths = recorded_lengths(runs) if runs else stated_lengths(config, texts)
    rates = _rates(config, machines, runs, lengths)
    gpu_bytes = 0 if machines.gpu == CPU else GPUS[machines.gpu].memory_bytes
    width = config.rollout.tensor_parallel_size
    if machines.num_gpus and width > machines.gpus_per_node:
        raise MachineError(
            f"rollout.tensor_parallel_size={width} is more than the {machines.gpus_per_node} GPUs of a node: a "
            f"worker's GPUs are all on one"
        )
    splits = fitting(config, possible(config, machines.num_gpus), gpu_bytes)
    outcomes = best_split(config, splits, rates, lengths)
    best = outcomes[0]
    memory, needs = memory_of(config, best.split, gpu_bytes)
    as_set = _as_set(config, best.split, machines, rates, lengths)
    run_hours = config.max_steps * best.step_s / 3600
    dollars = machines.dollars_an_hour
    return Plan(
        recipe=config.recipe,
        machines=machines,
        best=best,
        others=tuple(outcomes[1:]),
        as_set=as_set,
        idle_gpus=machines.num_gpus - gpus_of(config, best.split),
        memory=memory,
        node_memory=needs.likely_memory_bytes // machines.nodes,
        dollars_an_hour=dollars,
        dollars_a_run=None if dollars is None else dollars * run_hours,
        run_hours=run_hours,
        rates=rates,
        lengths=lengths.describe(),
        why=tuple(_why(config, machines, outcomes, rates, lengths)),
    )


def stated_lengths(config: RunConfig, texts: StatedTexts) -> StatedLengths:
    """Lengths without a measurement: worked examples and instruction are what prompts have in common."""
    rollout, shots = config.rollout, int(getattr(config.data, "num_shots", 0))
    for name, tokens, bound in (
        ("--completion-tokens", texts.completion_tokens, "rollout.max_completion_length"),
        ("--prompt-tokens", texts.prompt_tokens, "rollout.max_model_len"),
    ):
        most = getattr(rollout, bound.removeprefix("rollout."))
        if tokens is not None and tokens > most:
            raise ConfigError(f"{name} {tokens:g} is more than {bound}={most}, which cuts them off: raise that too")
    prompt = texts.prompt_tokens or min(rollout.max_model_len - rollout.max_completion_length, 150 * (shots + 1))
    return StatedLengths(
        prompt_tokens=prompt,
        shared_prompt_tokens=prompt * shots // (shots + 1),
        mean=texts.completion_tokens or USUAL_SHARE * rollout.max_completion_length,
        deviation=USUAL_DEVIATION,
    )


def _rates(config: RunConfig, machines: Machines, runs: Sequence[MeasuredRun], lengths: Lengths) -> Rates:
    if runs:
        return measured_rates(runs, on_cpu=machines.gpu == CPU).for_slots(config.rollout.max_num_seqs)
    if machines.gpu == CPU:
        raise ConfigError("no rates are known for a CPU: measure some, rlvr plan … --measured RUN_DIR")
    assert isinstance(lengths, StatedLengths)
    return stated_rates(
        config,
        _size(config),
        GPUS[machines.gpu],
        context=lengths.prompt_tokens + lengths.mean / 2,
        num_nodes=machines.nodes,
    )


def _size(config: RunConfig) -> ModelSize:
    size = model_size(config.model.name)
    if size is None:
        raise ConfigError(
            f"model.name={config.model.name!r} does not say how large the model is: fetch it (rlvr model fetch), or "
            f"measure a run of it and give --measured RUN_DIR"
        )
    return size


def _as_set(config: RunConfig, best: Split, machines: Machines, rates: Rates, lengths: Lengths) -> Outcome | None:
    """Where the settings say both numbers, their own split, if it is another and there are GPUs for it."""
    own = _own_split(config, best, machines)
    if own is None or own == best or gpus_of(config, own) > machines.num_gpus:
        return None
    return simulate(config, own, rates, lengths)


def _own_split(config: RunConfig, best: Split, machines: Machines) -> Split | None:
    """What the settings say; as in a run, the GPUs are shared where they are too few and nothing says otherwise."""
    workers, ranks = config.rollout.num_workers, config.learner.num_ranks
    if workers is None or ranks is None:
        return None
    width = config.rollout.tensor_parallel_size
    too_few = config.placement == "auto" and width == 1 and workers + ranks > machines.num_gpus
    return Split(
        workers=workers, ranks=ranks, shared=best.cpu or too_few or config.placement == "colocated", cpu=best.cpu
    )


def _why(
    config: RunConfig, machines: Machines, outcomes: Sequence[Outcome], rates: Rates, lengths: Lengths
) -> Iterator[str]:
    best = outcomes[0]
    yield from _limit(config, best)
    split = best.split
    own = _own_split(config, split, machines)
    if own is not None and gpus_of(config, own) > machines.num_gpus:
        there = f"{machines.num_gpus} {'is' if machines.num_gpus == 1 else 'are'} there"
        yield f"the settings' own {_shape(own)} need {gpus_of(config, own)} GPUs, and {there}"
    if not split.cpu and config.placement == ("split" if split.shared else "colocated"):
        yield f"the settings say placement={config.placement}: change it for this split"
    for more, words in ((1, "more"), (-1, "fewer")):
        for other in outcomes[1:]:
            if not (split.shared or other.split.shared) and other.split.ranks == split.ranks + more:
                yield f"with one rank {words} ({_shape(other.split)}) it would make {other.steps_an_hour:.0f} steps/h"
    if split.shared and not split.cpu and len(outcomes) > 1:
        yield f"GPUs of their own ({_shape(outcomes[1].split)}) would make {outcomes[1].steps_an_hour:.0f} steps/h"
    for name in ("min_workers", "max_workers"):
        workers = getattr(config.rollout, name)
        if workers is not None and workers != split.workers:
            other = simulate(config, replace(split, workers=workers), rates, lengths)
            yield f"with rollout.{name}={workers} at work it would make {other.steps_an_hour:.0f} steps/h"
    if config.max_staleness == 0 and not split.shared:
        overlapped = simulate(config.model_copy(update={"max_staleness": 1}), split, rates, lengths)
        yield (
            f"sampler and learner take turns at max_staleness=0; with 1 the same split would make "
            f"{overlapped.steps_an_hour:.0f} steps/h"
        )
    idle = machines.num_gpus - gpus_of(config, split)
    if idle:
        yield (
            f"{idle} GPUs are idle: {config.prompts_per_step} groups a step keep no more busy; raise prompts_per_step, "
            f"or take fewer GPUs"
        )
    if split.ranks > machines.gpus_per_node and not split.cpu:
        yield (
            f"{split.ranks} ranks lie on several nodes: set learner.num_ranks, and run_dir on a disk that all of them "
            f"see"
        )


def _limit(config: RunConfig, best: Outcome) -> Iterator[str]:
    took = f"of a step's {best.step_s:.3g} s the learner is at work {best.learner_busy:.0%}, an engine"
    busy = f"{best.rollout_busy:.0%}"
    if best.split.shared:
        yield f"{took} {busy}; they share their processors"
    elif config.max_staleness == 0:
        yield f"{took} {busy}, one after the other"
    else:
        limit = "the learner" if best.learner_busy > best.rollout_busy else "generation"
        yield f"{took} {busy}: {limit} is the limit"


def _shape(split: Split) -> str:
    return f"{split.workers} + {split.ranks}"
