"""One learner rank: a plain class that Ray hosts. All ranks are called alike, with the same arguments.

Shapes: B sequences of a micro-batch, T completion tokens of its longest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from learner.adapter_files import adapter_files
from learner.checkpoint import read_checkpoint, write_checkpoint
from learner.config import LearnerConfig
from learner.cpu_memory import keep_freed_memory
from learner.engine import TrainingEngine
from learner.errors import LearnerError, NonFiniteLossError
from learner.loss import global_loss_weight, policy_loss
from learner.metrics import MetricTotals
from learner.microbatches import Member, plan_ranks
from learner.policy import Policy, TreeInputs, base_dtype, load_policy, tree_inputs, tree_logprobs
from learner.prefix_tree import TokenSequence, build_tree
from learner.step import StepPlan, plan_step, refuse_stale
from learner.types import ScoredGroup, UpdateMetrics
from rollout_server.types import AdapterPayload, AdapterProbe

PROBE_LENGTH = 16


class LearnerRank:
    """Holds one rank's model and applies GRPO updates to its adapter.

    `temperature` is the sampler's: log-probabilities are taken at it. `device` is `cpu`, `cuda` or `cuda:1`.
    """

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        model_path: str,
        config: LearnerConfig,
        temperature: float,
        seed: int,
        device: str,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"the learner needs a sampling temperature above 0, got {temperature}")
        self._rank, self._world_size = rank, world_size
        self._address = master_addr, master_port
        self._model_path, self._config = model_path, config
        self._temperature, self._seed = temperature, seed
        self._device = _device(device)
        self._step = 0
        self._probe_token_ids: tuple[int, ...] = ()
        self._probe_logprobs: tuple[float, ...] | None = None

    def start(self) -> None:
        """Loads the model and meets the other ranks; every rank must be started.

        Raises LearnerError for a model that cannot be loaded or is not supported.
        """
        if self._device.type == "cpu":
            keep_freed_memory()
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            torch.set_num_threads(self._config.num_threads or max(1, cores // self._world_size))
        else:
            torch.cuda.set_device(self._device)
        self._policy: Policy = load_policy(self._model_path, self._config, device=self._device, seed=self._seed)
        self._engine = TrainingEngine(
            self._policy,
            self._config,
            rank=self._rank,
            world_size=self._world_size,
            master_addr=self._address[0],
            master_port=self._address[1],
            device=self._device,
        )
        # Dropout and whatever else is random differs between ranks, and repeats with the seed.
        torch.manual_seed(self._seed * 1000 + self._rank)

    def update(self, groups: Sequence[ScoredGroup], *, policy_version: int, max_staleness: int) -> UpdateMetrics:
        """One optimizer step on all groups; this rank computes its share of them.

        The gradient is that of the whole batch's loss whatever the number of ranks and micro-batches.

        Raises StaleSampleError, NothingToLearnError, or NonFiniteLossError: in each case nothing has moved.
        """
        begun = time.perf_counter()
        refuse_stale(groups, policy_version=policy_version, max_staleness=max_staleness)
        plan = plan_step(groups, self._config)
        if not self._probe_token_ids:
            self._probe_token_ids = _probe_tokens(groups)
            self._probe_logprobs = self._logprobs_of_probe()
        totals = MetricTotals()
        batches = self._microbatches(plan)
        for index, batch in enumerate(batches):
            loss = self._loss(plan, batch, totals)
            self._engine.backward(loss * self._world_size, last=index == len(batches) - 1)
        values = totals.reduced(self._engine.all_reduce)
        outcome = self._engine.step()
        if not outcome.applied:
            raise NonFiniteLossError(
                f"step {self._step + 1}: the loss ({values['loss']}) or its gradient ({outcome.grad_norm}) is not "
                "finite; the optimizer was not moved. Look at the batch's log-probs, or lower the learning rate"
            )
        self._step += 1
        num_distinct_tokens = int(values.pop("num_distinct_tokens"))
        values |= {"grad_norm": outcome.grad_norm, "learning_rate": outcome.learning_rate}
        return UpdateMetrics(
            step=self._step,
            values=values | plan.values,
            advantages=plan.group_advantages,
            num_tokens=plan.num_tokens,
            num_distinct_tokens=num_distinct_tokens,
            seconds=time.perf_counter() - begun,
        )

    def export_adapter(self, version: int) -> AdapterPayload:
        """The adapter's files and a probe of it. Every rank must be called; rank 0 answers with the files, the others
        with none. At ZeRO-3 the parameters are gathered."""
        probe = self._probe()
        files: tuple[tuple[str, bytes], ...] = ()
        with self._engine.full_parameters() as parameters:
            if self._rank == 0:
                files = self._files(parameters)
        return AdapterPayload(version=version, files=files, probe=probe)

    def save_checkpoint(self, folder: str) -> None:
        """Adapter, optimizer, schedule, every rank's random state and the step, as a folder that appears whole. Every
        rank must be called; rank 0 writes."""
        state = self._engine.training_state() | {
            "step": self._step,
            "random": self._engine.gather_objects(_random_state(self._device)),
            "probe_token_ids": list(self._probe_token_ids),
            "probe_logprobs": None if self._probe_logprobs is None else list(self._probe_logprobs),
        }
        if self._rank == 0:
            write_checkpoint(folder, state, self._files(state["adapter"]))
        self._engine.barrier()

    def load_checkpoint(self, folder: str) -> int:
        """Goes on from a checkpoint; the step it was written at. Also onto another number of ranks or ZeRO stage; the
        random state is each rank's own only with as many ranks as wrote it. Every rank must be called."""
        state = read_checkpoint(folder)
        self._engine.load_training_state(state)
        self._step = int(state["step"])
        self._probe_token_ids = tuple(state["probe_token_ids"])
        self._probe_logprobs = None if state["probe_logprobs"] is None else tuple(state["probe_logprobs"])
        if len(state["random"]) == self._world_size:
            _restore_random_state(self._device, state["random"][self._rank])
        return self._step

    def shutdown(self) -> None:
        """Leaves the process group. Safe to call twice, or without a start."""
        engine = self.__dict__.pop("_engine", None)
        if engine is not None:
            engine.shutdown()

    def _microbatches(self, plan: StepPlan) -> list[list[Member]]:
        """This rank's micro-batches; an empty list among them stands for a pass that adds nothing, which keeps the
        ranks in step where every pass needs them all."""
        ranks = plan_ranks(
            plan.members,
            self._world_size,
            max_tokens=self._config.max_tokens_per_microbatch,
            share=self._config.share_prefixes,
        )
        own = ranks[self._rank]
        count = max(1, max(map(len, ranks)) if self._engine.needs_equal_microbatches else len(own))
        return own + [[] for _ in range(count - len(own))]

    def _loss(self, plan: StepPlan, batch: list[Member], totals: MetricTotals) -> Tensor:
        """This micro-batch's part of the step's loss; its metrics go to `totals`."""
        sequences = [member.sequence for member in batch] or [_EMPTY_PASS]
        tree = build_tree(sequences, share=self._config.share_prefixes)
        inputs = tree_inputs(tree, self._device)
        ref_logprobs_BT = self._reference(inputs) if self._config.loss.beta > 0 else None
        logprobs_BT, entropy_BT = tree_logprobs(self._engine, inputs, temperature=self._temperature)
        mask_BT = inputs.mask_BT if batch else torch.zeros_like(inputs.mask_BT)
        advantages = [plan.advantages[member.index] for member in batch] or [0.0]
        loss, values = policy_loss(
            logprobs_BT,
            torch.tensor(advantages, dtype=torch.float32, device=self._device),
            mask_BT,
            config=self._config.loss,
            ref_logprobs_BT=ref_logprobs_BT,
            sampling_logprobs_BT=self._sampling(plan, batch, mask_BT),
            num_items=plan.num_items,
        )
        loss = loss * global_loss_weight(
            self._config.loss.loss_type, num_sequences=len(batch), global_num_sequences=plan.num_sequences
        )
        num_tokens = int(mask_BT.sum())
        values["entropy"] = float((entropy_BT * mask_BT).sum()) / max(1, num_tokens)
        totals.add(values, num_tokens)
        totals.add_sum(loss=float(loss.detach()), num_distinct_tokens=tree.num_tokens, num_microbatches=1)
        return loss

    def _sampling(self, plan: StepPlan, batch: list[Member], mask_BT: Tensor) -> Tensor:
        rows = [plan.sampling_logprobs[member.index] for member in batch]
        width = mask_BT.shape[1]
        padded = [list(row) + [0.0] * (width - len(row)) for row in rows] or [[0.0] * width]
        return torch.tensor(padded, dtype=torch.float32, device=self._device)

    def _reference(self, inputs: TreeInputs) -> Tensor:
        with self._evaluating():
            return tree_logprobs(self._engine, inputs, temperature=self._temperature, use_adapter=False)[0]

    def _probe(self) -> AdapterProbe:
        """~16 fixed tokens and their log-probabilities, now and at the previous export.

        The previous ones go along only where some token moved by half the tolerance or more: below that, two exact
        computations of the same policy differ as much as two versions do, and "nearer to the new" means nothing.
        """
        logprobs = self._logprobs_of_probe()
        before, self._probe_logprobs = self._probe_logprobs, logprobs
        tolerance = self._config.probe_tolerance or _DEFAULT_TOLERANCE[base_dtype(self._config, self._device)]
        moved = 0.0 if before is None else max(abs(a - b) for a, b in zip(before, logprobs, strict=True))
        return AdapterProbe(
            token_ids=self._probe_token_ids or _FALLBACK_PROBE,
            training_logprobs=logprobs,
            tolerance=tolerance,
            previous_training_logprobs=before if moved >= tolerance / 2 else None,
        )

    def _logprobs_of_probe(self) -> tuple[float, ...]:
        tokens = self._probe_token_ids or _FALLBACK_PROBE
        sequence = TokenSequence(prompt_token_ids=tokens[:1], completion_token_ids=tokens[1:])
        with self._evaluating():
            inputs = tree_inputs(build_tree([sequence]), self._device)
            logprobs_BT, _ = tree_logprobs(self._engine, inputs, temperature=1.0)
        return tuple(logprobs_BT.squeeze(0).tolist())

    def _files(self, parameters: dict[str, Tensor]) -> tuple[tuple[str, bytes], ...]:
        own = {name.removeprefix("model."): tensor for name, tensor in parameters.items()}
        return adapter_files(self._policy.model, own, base_model=self._model_path)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No gradient, no dropout.

        Not `policy.eval()`: bitsandbytes then repacks a 4-bit base on CPUs, with its scales rounded to bfloat16.
        """
        dropouts = [module for module in self._policy.modules() if isinstance(module, nn.Dropout)]
        try:
            for module in dropouts:
                module.eval()
            with torch.no_grad():
                yield
        finally:
            for module in dropouts:
                module.train()


_DEFAULT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
_FALLBACK_PROBE = tuple(range(1, PROBE_LENGTH + 1))
_EMPTY_PASS = TokenSequence(prompt_token_ids=(0,), completion_token_ids=(0,))


def _probe_tokens(groups: Sequence[ScoredGroup]) -> tuple[int, ...]:
    """The end of the first prompt and the beginning of its first completion: tokens of the kind that training moves."""
    group = groups[0]
    completion = group.members[0].completion.token_ids[: PROBE_LENGTH * 3 // 4]
    tokens = group.prompt_token_ids[len(completion) - PROBE_LENGTH :] + completion
    return tokens if len(tokens) >= 2 else _FALLBACK_PROBE


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise LearnerError(f"device {name!r} is not supported: cpu or cuda")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _restore_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
