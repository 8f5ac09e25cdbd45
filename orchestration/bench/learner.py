"""One optimizer step: our learner with the prefix tree, the same without it, and TRL's `GRPOTrainer` and asynchronous
trainer, side by side.

All four get the same model, adapter, sequences, advantages, dtype, threads and gradient checkpointing. Each lives in a
process of its own, loaded and warmed up, and they take turns, so that a machine that slows down slows down all of them
and peak memory is each one's own. That they did the same work is checked: their gradient norms must agree.

The floor is what a step cannot go below at the speed of this machine's matrix product, measured in the same run: the
multiply-adds of the distinct tokens through a frozen base with LoRA, forward and backward (and forward once more under
gradient checkpointing), attention and output head included.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learner.config import CPU_ENVIRONMENT
from learner.tree.prefix_tree import TokenSequence, build_tree
from learner.types import ScoredCompletion, ScoredGroup
from orchestration.bench.contenders import CONTENDERS, Setting, serve
from orchestration.bench.learner_floor import multiply_adds
from orchestration.bench.machine import machine_line
from orchestration.bench.neighbours import busy_neighbours, neighbour_figures
from orchestration.data.prompts import PromptBuilder
from orchestration.data.task import Task
from orchestration.data.tasks.arithmetic import Arithmetic
from orchestration.data.tasks.gsm8k import Gsm8k
from orchestration.errors import RlvrError
from orchestration.machine.facts import collect
from orchestration.models.resolve import resolve_model
from orchestration.models.tokenizer import load_tokenizer
from orchestration.report.progress import counted
from orchestration.storage.cache import Progress
from rollout_server.arrays import Logprobs, TokenIds
from rollout_server.types import Completion, FinishReason

START_TIMEOUT_S, STEP_TIMEOUT_S = 600.0, 3600.0
GRAD_NORM_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Relative. Not rounding alone: TRL leaves its completions in another order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerBench:
    """What `rlvr bench learner` measures."""

    model: str = "smollm2-135m-instruct"
    shots: int = 8
    num_prompts: int = 2
    num_generations: int = 8
    completion_length: int = 100
    rounds: int | None = None
    """5 on GPUs, where they are short, and 1 on CPUs."""
    threads: int | None = None
    """CPU threads of each contender; the machine's cores by default."""
    max_tokens_per_microbatch: int | None = None
    """On CPUs 4,096 if unset, on GPUs what the learner itself takes."""
    gradient_checkpointing: bool = True
    data_file: str | None = None
    """GSM8K's training file; generated problems if unset."""
    neighbours: int = 0
    """Busy loops that our step is measured beside too, once a round."""


def run(options: LearnerBench, progress: Progress) -> dict[str, Any]:
    """Measure one step of each contender, in turns.

    Returns:
        `machine`, `settings`, `attention` (each contender's kernel) and `figures`.

    Raises:
        RlvrError: There is nothing fair to compare, or a contender died.
    """
    device = "cuda" if collect().gpus else "cpu"
    num_rounds = options.rounds or (5 if device == "cuda" else 1)
    turns_of_round = len(CONTENDERS) + bool(options.neighbours)
    begin = counted(progress, 1 + len(CONTENDERS) + turns_of_round * num_rounds)
    begin(f"preparing the model {options.model} and its prompts")
    model_path = resolve_model(options.model, progress=progress)
    groups = make_groups(options, model_path)
    setting = Setting(
        model_path=str(model_path),
        device=device,
        dtype="float32" if device == "cpu" else "bfloat16",
        threads=options.threads or len(os.sched_getaffinity(0)),
        gradient_checkpointing=options.gradient_checkpointing,
        max_tokens_per_microbatch=options.max_tokens_per_microbatch or (4096 if device == "cpu" else None),
        num_rounds=num_rounds,
    )
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # for all contenders alike; ours get it from orchestration
    with ExitStack() as stack:
        turns = {}
        for name in CONTENDERS:
            begin(f"loading and warming up {name}")
            turns[name] = stack.enter_context(contender(name, setting, groups))
        rounds = [_round(number, turns, begin, options.neighbours) for number in range(num_rounds)]
    _check_same_work(rounds, GRAD_NORM_TOLERANCE[setting.dtype])
    floor = multiply_adds(model_path, sequences_of(groups), gradient_checkpointing=options.gradient_checkpointing)
    return {
        "machine": machine_line(),
        "settings": asdict(options) | asdict(setting) | {"model_path": options.model},
        "attention": {name: turn.attention for name, turn in turns.items() if turn.attention},
        "figures": _figures(rounds, groups, floor),
    }


def make_groups(options: LearnerBench, model_path: Path) -> tuple[ScoredGroup, ...]:
    """Make the batch: real prompts; completions of random tokens, half to all of `completion_length` long.

    What a token is does not change the work; random ones share no beginning, which is the tree's worst case.

    Args:
        options: How many, how long, and where the problems come from.
        model_path: Has the tokenizer and the size of the vocabulary.

    Returns:
        Groups whose rewards differ, so that none is left out of the step.
    """
    data: Task = Arithmetic(num_shots=options.shots, num_eval=1, difficulty=(3, 4, 5))
    if options.data_file is not None:
        data = Gsm8k(train_file=options.data_file, eval_file=options.data_file, num_shots=options.shots, num_eval=1)
    problems = data.load()
    builder = PromptBuilder(load_tokenizer(model_path), problems.shots, 1_000_000, layout=data.layout())
    vocabulary = json.loads((model_path / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    random = np.random.default_rng(0)
    groups = []
    for problem in problems.train[: options.num_prompts]:
        built = builder.build(problem)
        assert built is not None  # there is room for any prompt
        lengths = random.integers(options.completion_length // 2, options.completion_length, options.num_generations)
        members = []
        for index, length in enumerate(lengths.tolist()):
            completion = Completion(
                prompt_id=built.prompt.prompt_id,
                token_ids=TokenIds(random.integers(1, vocabulary, length + 1)),
                sampling_logprobs=Logprobs((0.0,) * (length + 1)),
                text="",
                finish_reason=FinishReason.STOP,
                adapter_version=0,
            )
            reward = float(index % 2)
            members.append(ScoredCompletion(completion=completion, rewards=(reward,), total=reward))
        groups.append(
            ScoredGroup(
                prompt_id=built.prompt.prompt_id, prompt_token_ids=built.prompt.token_ids, members=tuple(members)
            )
        )
    return tuple(groups)


def sequences_of(groups: Sequence[ScoredGroup]) -> list[TokenSequence]:
    return [
        TokenSequence(prompt_token_ids=group.prompt_token_ids, completion_token_ids=member.completion.token_ids)
        for group in groups
        for member in group.members
    ]


class _Turn:
    """A contender in its process; `take()` runs one step there."""

    def __init__(self, name: str, connection: Any) -> None:
        self._name, self._connection = name, connection
        self.attention: str | None = None
        """What computes its attention, once it is ready."""

    def until_ready(self) -> None:
        self.attention = self._expect(START_TIMEOUT_S).get("attention")

    def _expect(self, timeout_s: float) -> dict[str, Any]:
        if not self._connection.poll(timeout_s):
            raise RlvrError(f"the contender {self._name} did not answer within {timeout_s:g} s")
        try:
            kind, answer = self._connection.recv()
        except EOFError as error:
            raise RlvrError(
                f"the contender {self._name} died; usually too little memory: try fewer --prompts"
            ) from error
        if kind == "failed":
            raise RlvrError(f"the contender {self._name} failed: {answer}")
        said: dict[str, Any] = answer
        return said

    def take(self) -> dict[str, float]:
        self._connection.send("step")
        return self._expect(STEP_TIMEOUT_S)


_IMPORTED = ("learner.worker", "deepspeed", "peft", "trl.trainer.grpo_trainer")


def _context(device: str) -> Any:
    """On CPUs contenders are forked from a process that has imported what they need; CUDA survives no fork."""
    if device != "cpu":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # of the server, which imports DeepSpeed before a rank says so
    context.set_forkserver_preload([serve.__module__, *_IMPORTED])
    return context


@contextmanager
def contender(name: str, setting: Setting, groups: tuple[ScoredGroup, ...]) -> Iterator[_Turn]:
    """One of `CONTENDERS` in a process of its own, which ends with the block."""
    context = _context(setting.device)
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(name, setting, groups, there), daemon=True)
    process.start()
    there.close()
    try:
        turn = _Turn(name, here)
        turn.until_ready()
        yield turn
    finally:
        here.close()
        process.join(timeout=10)
        if process.is_alive():
            process.kill()


_LEARNERS = ("trl", "trl_async", "tree_off", "tree_on")
_Round = Mapping[str, Mapping[str, float]]
_BESIDE = "tree_on_beside_neighbours"


def _round(number: int, turns: Mapping[str, _Turn], begin: Callable[[str], None], neighbours: int) -> _Round:
    measured = {}
    for name in turns if number % 2 == 0 else reversed(list(turns)):  # nobody is always first
        begin(f"measuring {name}, round {number + 1}")
        measured[name] = turns[name].take()
    if neighbours:
        begin(f"measuring tree_on beside {neighbours} busy loops, round {number + 1}")
        with busy_neighbours(neighbours):
            measured[_BESIDE] = turns["tree_on"].take()
    return measured


def _check_same_work(rounds: Sequence[_Round], tolerance: float) -> None:
    norms = {name: rounds[0][name]["grad_norm"] for name in _LEARNERS}
    if max(norms.values()) - min(norms.values()) > tolerance * max(norms.values()):
        raise RlvrError(f"the contenders did not do the same work: their gradient norms are {norms}")


def _figures(rounds: Sequence[_Round], groups: Sequence[ScoredGroup], multiply_adds_of_step: float) -> dict[str, float]:
    def median(values: list[float]) -> float:
        return statistics.median(values)

    def seconds(name: str) -> list[float]:
        return [round_[name]["seconds"] for round_ in rounds]

    def peak(name: str) -> float:
        return max(round_[name]["peak_bytes"] for round_ in rounds)

    sequences = sequences_of(groups)
    completion_tokens = sum(len(sequence.completion_token_ids) for sequence in sequences)
    floors = [2 * multiply_adds_of_step / round_["matmul"]["flops"] for round_ in rounds]
    both = zip(seconds("trl"), seconds("tree_off"), seconds("tree_on"), floors, strict=True)
    ratios = [(trl / on, off / on, floor / on, trl / off) for trl, off, on, floor in both]
    beside = [round_[_BESIDE]["seconds"] for round_ in rounds if _BESIDE in round_]
    of_async = zip(seconds("trl_async"), seconds("tree_on"), strict=True)
    return {
        **neighbour_figures(seconds("tree_on"), beside),
        "ratio_to_trl": median([ratio[0] for ratio in ratios]),
        "ratio_to_trl_async": median([theirs / on for theirs, on in of_async]),
        "tree_speedup": median([ratio[1] for ratio in ratios]),
        "share_of_floor": median([ratio[2] for ratio in ratios]),
        "tree_off_ratio_to_trl": median([ratio[3] for ratio in ratios]),
        "memory_ratio_to_trl": peak("tree_on") / peak("trl"),
        "memory_ratio_to_trl_async": peak("tree_on") / peak("trl_async"),
        "tree_memory_ratio": peak("tree_on") / peak("tree_off"),
        "total_tokens": float(sum(len(sequence.token_ids) for sequence in sequences)),
        "distinct_tokens": float(build_tree(sequences).num_tokens),
        "completion_tokens": float(completion_tokens),
        **{f"{name}_seconds": median(seconds(name)) for name in _LEARNERS},
        **{f"{name}_peak_mib": peak(name) / 2**20 for name in _LEARNERS},
        "tree_on_completion_tokens_per_s": completion_tokens / median(seconds("tree_on")),
        "floor_seconds": median(floors),
        "matmul_gflops": median([round_["matmul"]["flops"] for round_ in rounds]) / 1e9,
        **{f"{name}_grad_norm": rounds[0][name]["grad_norm"] for name in _LEARNERS},
    }
