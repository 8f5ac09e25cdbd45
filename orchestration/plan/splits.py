"""Which split of the GPUs is best: an estimate for each number of ranks, then simulations round the best of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import fmean

from orchestration.errors import MachineError
from orchestration.machine.needs import Needs, needs_of
from orchestration.machine.placement import with_workers
from orchestration.plan.lengths import Lengths, lengths_of
from orchestration.plan.rates import Rates
from orchestration.plan.simulate import Outcome, Split, simulate
from orchestration.settings.config import RunConfig

MOST_SIMULATED = 12
AS_GOOD = 1.01
"""Times the least seconds of a step."""

Simulate = Callable[[Split], Outcome]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Of one GPU, bytes; `has` is 0 on CPUs."""

    has: int
    rollout: int
    """The least that an engine asks for: vLLM takes its whole share, and what is left over is cache."""
    learner: int
    """A rank with its largest micro-batch."""
    shared: bool

    @property
    def fits(self) -> bool:
        if not self.has:
            return True
        return max(self.rollout + self.learner if self.shared else 0, self.rollout, self.learner) <= self.has


def with_split(config: RunConfig, split: Split) -> RunConfig:
    """The run with these numbers of workers and ranks."""
    return with_workers(config, split.workers).model_copy(
        update={
            "placement": "auto" if split.cpu else "colocated" if split.shared else "split",
            "device": "cpu" if split.cpu else "auto",
            "learner": config.learner.model_copy(update={"num_ranks": split.ranks}),
        }
    )


def memory_of(config: RunConfig, split: Split, gpu_bytes: int) -> tuple[Memory, Needs]:
    """What the split asks of each GPU, as `rlvr doctor` counts it.

    Args:
        config: Of the run; its own numbers of workers and ranks do not count.
        split: Those that do.
        gpu_bytes: Of one GPU.

    Returns:
        A GPU's memory, bytes, and all needs of the run.
    """
    num_gpus = 0 if split.cpu else gpus_of(config, split)
    needs = needs_of(with_split(config, split), num_gpus=num_gpus)
    rollout = needs.rollout_gpu_bytes
    if split.shared and not split.cpu:  # vLLM takes its share, however little it needs
        rollout = max(rollout, int(needs.gpu_memory_share * gpu_bytes))
    memory = Memory(
        has=0 if split.cpu else gpu_bytes,
        rollout=rollout,
        learner=needs.learner_gpu_bytes + needs.tokens_per_microbatch * needs.token_gpu_bytes,
        shared=split.shared,
    )
    return memory, needs


def gpus_of(config: RunConfig, split: Split) -> int:
    """That the split uses."""
    if split.cpu:
        return 0
    rollout = split.workers * config.rollout.tensor_parallel_size
    return max(rollout, split.ranks) if split.shared else rollout + split.ranks


def possible(config: RunConfig, num_gpus: int) -> list[Split]:
    """Every split of so many GPUs that the flow can use: no more ranks than groups in a batch, no more workers than
    groups under way. Those of an elastic run share no GPU."""
    rollout = config.rollout
    if num_gpus == 0:
        workers, ranks = rollout.max_workers or rollout.num_workers or 1, config.learner.num_ranks or 1
        return [Split(workers=workers, ranks=ranks, shared=True, cpu=True)]
    width = rollout.tensor_parallel_size
    most_workers = min(config.prompts_per_step * (config.max_staleness + 1), rollout.max_workers or num_gpus)
    splits = [
        Split(workers=min((num_gpus - ranks) // width, most_workers), ranks=ranks)
        for ranks in range(1, min(config.prompts_per_step, num_gpus - width) + 1)
    ]
    if width == 1 and config.rollout_nodes == config.learner_nodes and not rollout.elastic:
        shared = min(num_gpus, config.prompts_per_step)
        splits.append(Split(workers=shared, ranks=shared, shared=True))
    return splits


def fitting(config: RunConfig, splits: Iterable[Split], gpu_bytes: int) -> list[Split]:
    """Those that a GPU's memory holds.

    Raises:
        MachineError: none is; it says what the least of them needs.
    """
    # What a GPU holds does not depend on how many workers there are.
    judged = [
        (split, memory_of(config, split if split.shared else replace(split, workers=1), gpu_bytes)[0])
        for split in splits
    ]
    if not judged:
        raise MachineError(
            f"no split fits: rollout.tensor_parallel_size={config.rollout.tensor_parallel_size} leaves no GPU to learn "
            f"on; take a smaller one, or more GPUs"
        )
    kept = [split for split, memory in judged if memory.fits]
    if not kept:
        least = min((memory for _, memory in judged), key=lambda memory: max(memory.rollout, memory.learner))
        raise MachineError(
            f"no split fits: a rollout GPU needs {_gib(least.rollout)} and a learner GPU {_gib(least.learner)} of "
            f"{_gib(gpu_bytes)}; take larger GPUs{''.join(_remedies(config, least))}"
        )
    return kept


def _remedies(config: RunConfig, least: Memory) -> Iterator[str]:
    """Settings that make the side smaller that is too large, of those that are not set yet."""
    learner = config.learner
    if least.learner > least.has:
        if learner.quantization == "none" and learner.zero_stage != 3:
            yield ", or learner.quantization=nf4"
            yield ", or learner.zero_stage=3"
        if not learner.gradient_checkpointing:
            yield ", or learner.gradient_checkpointing=true"
    if least.rollout > least.has:
        width = config.rollout.tensor_parallel_size
        wider = next(
            n for n in (2**power for power in range(1, 64)) if n > width and least.rollout * width <= n * least.has
        )
        yield f", and rollout.tensor_parallel_size={wider} for the workers"


def best_split(
    config: RunConfig, splits: list[Split], rates: Rates, lengths: Lengths, run: Simulate | None = None
) -> list[Outcome]:
    """Outcomes of the splits that were simulated, the best first; among those that are as good, the one with the
    fewest GPUs.

    An estimate, for each number of ranks, of what generation and learning take says where to begin; from there
    simulated neighbours say where it gets better.

    Args:
        config: the run.
        splits: those that fit into memory.
        rates: what the GPUs do in a second.
        lengths: of prompts and completions.
        run: simulates one; None: `simulate`, from these arguments.
    """
    run = run or (lambda split: simulate(config, split, rates, lengths))
    split_by_ranks = {split.ranks: split for split in splits if not split.shared}
    tried = [run(split) for split in splits if split.shared]
    if split_by_ranks:
        sample = _Sample.of(config, lengths)
        guess = min(split_by_ranks.values(), key=lambda split: estimate_s(config, split, rates, sample))
        tried += _climb(guess, split_by_ranks, run, MOST_SIMULATED - len(tried))
    as_good = AS_GOOD * min(outcome.step_s for outcome in tried)
    tried.sort(key=lambda outcome: outcome.step_s)
    return sorted(tried, key=lambda one: gpus_of(config, one.split) if one.step_s <= as_good else float("inf"))


def _climb(start: Split, by_ranks: dict[int, Split], run: Simulate, most: int) -> list[Outcome]:
    """Simulate the start and its neighbours, nearer and nearer ones, moving to whichever is better."""
    seen = {start.ranks: run(start)}
    best, stride = start.ranks, max(1, start.ranks // 2)
    while True:
        for ranks in (best - stride, best + stride):
            if ranks in by_ranks and ranks not in seen and len(seen) < most:
                seen[ranks] = run(by_ranks[ranks])
        better = min(seen, key=lambda ranks: (seen[ranks].step_s, ranks))
        if better == best and stride == 1:
            return list(seen.values())
        stride = stride if better != best else stride // 2
        best = better
        if len(seen) >= most:
            return list(seen.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sample:
    """Means of a few groups."""

    length: float
    longest: float
    prompt: float
    distinct: float
    """Tokens of a group in the learner's tree."""

    @classmethod
    def of(cls, config: RunConfig, lengths: Lengths) -> _Sample:
        rollout = config.rollout
        chance = random.Random(0)
        groups = [
            lengths.group(str(i), rollout.num_generations, rollout.max_completion_length, chance) for i in range(32)
        ]
        return cls(
            length=fmean(length for group in groups for length in lengths_of(group)),
            longest=fmean(max(lengths_of(group)) for group in groups),
            prompt=fmean(len(group.prompt_token_ids) for group in groups),
            distinct=lengths.distinct_tokens(groups) / len(groups),
        )


def estimate_s(config: RunConfig, split: Split, rates: Rates, sample: _Sample) -> float:
    """A step's seconds, roughly: work over speed, without queues and stragglers.

    Args:
        config: Of the run.
        split: Who gets which GPUs.
        rates: Of the machine.
        sample: Mean and longest length of completions, tokens of a prompt.
    """
    sequences = config.prompts_per_step * config.rollout.num_generations / split.workers
    together = min(rates.slots, max(1.0, sequences * (1 + config.max_staleness)))
    steps = max(sequences * sample.length / together, 0.0 if config.max_staleness else sample.longest)
    generation_s = steps * rates.tick_s(round(together)) + sequences / config.rollout.num_generations * (
        rates.prefill_token_s * sample.prompt
    )
    groups = -(-config.prompts_per_step // split.ranks)
    learning_s = rates.learning_s(groups * sample.distinct) + rates.publish_s + rates.other_s
    return max(generation_s, learning_s) if config.max_staleness else generation_s + learning_s


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
