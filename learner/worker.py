"""One learner rank: a plain class that Ray hosts. All ranks are called alike, with the same arguments."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.checkpoint import write_checkpoint
from learner.config import LearnerConfig
from learner.engine.computers import computers
from learner.engine.device import device_called, make_ready, on_half_the_threads, random_state, restore_random_state
from learner.engine.engine import TrainingEngine
from learner.engine.state import LearnerState, TrainingState, read_state, settings_that_bind, state_files
from learner.engine.together import all_or_none
from learner.errors import LearnerError, NonFiniteLossError
from learner.loss.entropy_selection import step_entropy_threshold
from learner.policy.adapter_files import AdapterFiles, AdapterFormat
from learner.policy.layers import without_dropout
from learner.policy.policy import Policy, base_dtype, load_policy, tree_inputs, tree_logprobs
from learner.probe import NUM_PREDICTIONS, ProbeHistory, probe_tolerance
from learner.step.budget import TokenBudget
from learner.step.metrics import MetricTotals, over_iterations
from learner.step.microbatches import WorkModel, plan_ranks
from learner.step.passes import Microbatch, Microbatches, loss_of_step, make_microbatch, run_pass
from learner.step.plan import StepPlan, plan_step, refuse_stale
from learner.step.ratios import log_ratios
from learner.step.share import gradient_share
from learner.tree.attention import kind_on
from learner.tree.prefix_tree import TokenSequence, build_tree
from learner.types import ScoredGroup, UpdateMetrics
from rollout_server.arrays import TokenIds
from rollout_server.types import AdapterPayload, AdapterProbe


class LearnerRank:
    """Holds one rank's model and applies GRPO updates to its adapter.

    Args:
        rank, world_size, master_addr, master_port: This rank among all, and where they meet; port 0: any, for
            one that is alone.
        model_path: Folder of the base model.
        config: How it learns.
        temperature: The sampler's: log-probabilities are taken at it.
        seed: Of the adapter's first values, and of whatever is random in training.
        device: `cpu`, `cuda` or `cuda:1`.
        max_completion_length: The sampler's: dr_grpo divides by it, and `overlong_cache` counts back from it.
        max_steps: Batches of the run: where schedules with an end come to it; None: there is no end.
        reward_weights: Of each reward in the run's order, for `normalize_then_sum`; 1 each if not given.
        on_progress: Told how many passes there were and files of checkpoints, after each: while it does not grow in an
            update or a checkpoint, the rank hangs.

    Raises:
        ValueError: The temperature is not above 0, or the configuration does not fit the other arguments.
        LearnerError: The device is not supported.
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
        max_completion_length: int | None = None,
        max_steps: int | None = None,
        reward_weights: Sequence[float] | None = None,
        on_progress: Callable[[int], None] = lambda passes: None,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"the learner needs a sampling temperature above 0, got {temperature}")
        config.check_run(max_steps=max_steps, max_completion_length=max_completion_length)
        self._rank, self._world_size = rank, world_size
        self._address = master_addr, master_port
        self._model_path, self._config = model_path, config
        self._temperature, self._seed = temperature, seed
        self._max_completion_length, self._max_steps = max_completion_length, max_steps
        self._reward_weights = reward_weights
        self._device = device_called(device)
        # Batches learned from: the policy's version. It is counted here alone; everybody else is told.
        self._step = 0
        self._last_update: UpdateMetrics | None = None
        self._progress, self._on_progress = 0, on_progress
        self._probes = ProbeHistory()
        self._format: AdapterFormat | None = None

    def start(self) -> None:
        """Loads the model and meets the other ranks; every rank must be started.

        Raises:
            LearnerError: The model cannot be loaded, or is not supported.
        """
        make_ready(self._device, num_threads=self._config.num_threads, world_size=self._world_size)
        self._policy: Policy = load_policy(self._model_path, self._config, device=self._device, seed=self._seed)
        if self._policy.own_attention:
            self._config = self._config.model_copy(update={"attention": "own", "share_prefixes": False})
        self._engine = TrainingEngine(
            self._policy,
            self._config,
            rank=self._rank,
            world_size=self._world_size,
            master_addr=self._address[0],
            master_port=self._address[1],
            device=self._device,
            max_steps=self._max_steps,
        )
        self._budget = TokenBudget(self._policy, self._config, self._device)
        # Dropout and whatever else is random differs between ranks, and repeats with the seed.
        torch.manual_seed(self._seed * 1000 + self._rank)

    def notes(self) -> tuple[str, ...]:
        """What a user should know of the started policy: which layers have adapters, what of the base was switched off,
        and why prefixes are not shared where they are not."""
        return self._policy.notes

    def update(self, groups: Sequence[ScoredGroup], *, max_staleness: int, step: int | None = None) -> UpdateMetrics:
        """`num_iterations` optimizer steps on all groups; this rank computes its share of them.

        The gradient is that of the whole batch's loss whatever the number of ranks and micro-batches.

        Args:
            groups: The batch, the same on every rank.
            max_staleness: How many versions a completion's adapter may be behind.
            step: The number that this update shall have, so that none is learned twice; None: the next. An update that
                was made already is not made again, and the answer of then is given.

        Returns:
            What the step says of itself; its `step` is the policy's new version.

        Raises:
            StaleSampleError: A completion is too old.
            NothingToLearnError: No completion was scored.
            NonFiniteLossError: The optimizer was not moved, but by the iterations before the one named.
            LearnerError: `step` is neither the next nor the last.
        """
        if step == self._step and self._last_update is not None:
            return self._last_update
        if step not in (None, self._step + 1):
            raise LearnerError(f"the learner is at step {self._step}, and was asked for update {step}")
        begun = time.perf_counter()
        refuse_stale(groups, policy_version=self._step, max_staleness=max_staleness)
        plan = self._plan(groups)
        self._probes.choose(groups, base_dtype(self._config, self._device))
        max_tokens = self._budget.tokens(lambda own: self._engine.all_reduce([own], op="min")[0])
        warning = self._budget.warning(max((len(one.token_ids) for one in plan.sequences), default=0), max_tokens)
        microbatches = self._microbatches(plan, self._own_indices(plan, max_tokens))
        values = over_iterations(
            [self._iteration(plan, microbatches, number) for number in range(1, self._config.num_iterations + 1)]
        )
        self._step += 1
        self._last_update = UpdateMetrics(
            step=self._step,
            advantages=plan.group_advantages,
            num_tokens=plan.num_tokens,
            num_distinct_tokens=int(values.pop("num_distinct_tokens")),
            values=values,
            seconds=time.perf_counter() - begun,
            warnings=() if warning is None else (warning,),
            log_ratios=log_ratios(groups, plan, microbatches),
            computed_by=computers(self._device, self._world_size),
        )
        return self._last_update

    def gradient_share(self, groups: Sequence[ScoredGroup], group: int, member: int) -> dict[str, float] | None:
        """What one completion has of the gradient that an update on `groups` would have now, in its first iteration and
        before clipping; nothing moves. For a single rank, whose dropout is off meanwhile.

        Returns:
            `share`, `norm`, `step_norm` and `cosine` of `learner.step.share`; None where the completion has no part in
            the loss: not scored, cut off and masked, or without an advantage.
        """
        plan = self._plan(groups)
        indices = [index for index, place in enumerate(plan.places) if place == (group, member)]
        if not indices:
            return None
        config = loss_of_step(self._config.loss, max_completion_length=self._max_completion_length)
        microbatches = self._microbatches(plan, self._own_indices(plan, self._budget.tokens(lambda own: own)))
        threshold = self._entropy_threshold(microbatches)

        def loss_of(microbatch: Microbatch) -> Tensor:
            self._tell_progress()
            return run_pass(
                self._policy, microbatch, plan, config, temperature=self._temperature, entropy_threshold=threshold
            ).loss

        with without_dropout(self._policy.dropouts):
            found = gradient_share(
                lambda: loss_of(self._microbatches(plan, [indices])[0]),
                (partial(loss_of, microbatch) for microbatch in microbatches),
                [parameter for parameter in self._policy.parameters() if parameter.requires_grad],
            )
        return found._asdict()

    def export_adapter(self) -> AdapterPayload:
        """The adapter's files and its version; what a worker proves it by comes from `probe_adapter`, later. Every rank
        must be called; rank 0 answers with the files, the others with none. At ZeRO-3 the parameters are gathered."""
        own = AdapterFiles(files=(), tied=())
        with self._engine.full_parameters() as parameters:
            if self._rank == 0:
                own = self._files(parameters, tied_once=True)
        return AdapterPayload(version=self._step, files=own.files, tied=own.tied, probe_token_ids=self._probes.tokens)

    def probe_adapter(self) -> AdapterProbe:
        """What this version says of the exported payload's `probe_token_ids`. Every rank must be called."""
        tolerance = probe_tolerance(base_dtype(self._config, self._device), self._config.probe_tolerance)
        return self._probes.probe(self._step, self._logprobs_of_probe, tolerance)

    def save_checkpoint(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Writes a checkpoint of this step: adapter, other trained parameters, optimizer, schedule, every rank's random
        state, and the caller's own files, so that the two cannot come apart. Every rank must be called; rank 0 writes.

        Args:
            folder: Where it goes, beside those of earlier steps.
            files: The caller's, name → content.

        Raises:
            LearnerError: It cannot be written, or (a rank names its own error) another rank failed; on every rank.
        """
        random = self._engine.gather_objects(random_state(self._device))
        with all_or_none(self._engine.gather_objects):
            training = self._engine.training_state()
            if training is not None:
                self._write(Path(folder), training, random, files)

    def load_checkpoint(self, folder: str) -> int:
        """Goes on from one checkpoint's folder, also onto another number of ranks or ZeRO stage; the random state is
        each rank's own only with as many ranks as wrote it. One that holds an adapter and no learner's state is gone on
        from with a new optimizer. Every rank must be called.

        Returns:
            The step it was written at: the policy's version.

        Raises:
            LearnerError: It is damaged, or was made with another model or adapter, or a rank cannot read it; on every
                rank, and nothing has moved then.
        """
        with self._engine.full_parameters() as parameters:
            made = self._format_of(_as_in_model(parameters))
        names = {name: f"{_MODEL}{own}" for name, own in made.names}
        with all_or_none(self._engine.gather_objects):
            binding = settings_that_bind(self._model_path, self._config)
            state = read_state(Path(folder), binding, names, made.config, num_iterations=self._config.num_iterations)
        self._engine.load_training_state(state.training)
        self._step, self._last_update = state.step, None
        self._probes = ProbeHistory(state.probe_token_ids)
        if state.probe_logprobs is not None:
            self._probes.of_versions[state.step] = state.probe_logprobs
        if len(state.random) == self._world_size:
            restore_random_state(self._device, state.random[self._rank])
        return self._step

    def shutdown(self) -> None:
        """Leaves the process group. Safe to call twice, or without a start."""
        engine = self.__dict__.pop("_engine", None)
        if engine is not None:
            engine.shutdown()

    def _write(self, folder: Path, training: TrainingState, random: Sequence[Any], files: Mapping[str, bytes]) -> None:
        state = LearnerState(
            step=self._step,
            training=training,
            random=tuple(random),
            probe_token_ids=self._probes.token_ids,
            probe_logprobs=self._probes.of_versions.get(self._step),
        )
        content = (*self._files(dict(training.parameters)).files, *files.items())
        made_with = settings_that_bind(self._model_path, self._config)
        write_checkpoint(
            folder,
            self._step,
            self._told(chain(content, state_files(state, made_with))),
            keep=self._config.keep_checkpoints,
        )

    def _told(self, files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        for file in files:
            self._tell_progress()
            yield file

    def _plan(self, groups: Sequence[ScoredGroup]) -> StepPlan:
        return plan_step(
            groups,
            self._config,
            reward_weights=self._reward_weights,
            max_completion_length=self._max_completion_length,
        )

    def _microbatches(self, plan: StepPlan, indices: Sequence[Sequence[int]]) -> Microbatches:
        """Of these sequences, with the base model's log-probs where the loss wants them."""
        microbatches = Microbatches(indices, lambda own: make_microbatch(plan, own, self._config, self._device))
        if self._config.loss.beta > 0:
            for microbatch in microbatches:
                microbatch.ref_logprobs_BT, _ = self._without_gradient(microbatch, use_adapter=False)
        return microbatches

    def _own_indices(self, plan: StepPlan, max_tokens: int) -> list[list[int]]:
        """The sequences of this rank's micro-batches; an empty list among them stands for a pass that adds nothing,
        which keeps the ranks in step where every pass needs them all."""
        alone = self._policy.must_be_alone(max((len(sequence.token_ids) for sequence in plan.sequences), default=0))
        ranks = plan_ranks(
            plan.sequences,
            self._world_size,
            max_tokens=1 if alone else max_tokens,
            share=self._config.share_prefixes,
            coarse=kind_on(self._device, self._config.attention) == "levels",
            rows=self._policy.own_attention,
            cost=WorkModel(positions_per_token=self._policy.positions_per_token),
        )
        own = ranks[self._rank]
        count = max(1, max(map(len, ranks)) if self._engine.needs_equal_microbatches else len(own))
        return own + [[] for _ in range(count - len(own))]

    def _iteration(self, plan: StepPlan, microbatches: Sequence[Microbatch], number: int) -> dict[str, float]:
        """One optimizer step on the batch; what it says of itself."""
        threshold = self._entropy_threshold(microbatches)
        config = loss_of_step(self._config.loss, max_completion_length=self._max_completion_length)
        totals = MetricTotals()
        for index, microbatch in enumerate(microbatches):  # nothing below waits for a GPU before the last has been sent
            result = run_pass(
                self._engine, microbatch, plan, config, temperature=self._temperature, entropy_threshold=threshold
            )
            self._tell_progress()
            totals.add(result.values, result.num_tokens)
            totals.add_sum(
                loss=result.loss.detach(),
                num_distinct_tokens=microbatch.num_distinct_tokens,
                num_microbatches=1,
                num_loss_tokens=result.num_tokens,
            )
            # The engine averages over the ranks; each rank's losses are parts of one sum.
            self._engine.backward(result.loss * self._world_size, last=index == len(microbatches) - 1)
        values = totals.reduced(self._engine.all_reduce)
        outcome = self._engine.step()
        if not outcome.applied:
            raise NonFiniteLossError(
                f"step {self._step + 1}, iteration {number} of {self._config.num_iterations}: the loss "
                f"({values['loss']}) or its gradient ({outcome.grad_norm}) is not finite; the optimizer was not moved. "
                "Look at the batch's log-probs, or lower the learning rate"
            )
        return values | {"grad_norm": outcome.grad_norm, "learning_rate": outcome.learning_rate}

    def _entropy_threshold(self, microbatches: Sequence[Microbatch]) -> float | None:
        """Of the whole step's tokens, on every rank the same, so that neither budget nor ranks change who is above."""
        if self._config.loss.top_entropy_quantile == 1.0:
            return None
        found = [(self._without_gradient(microbatch)[1], microbatch.mask_BT) for microbatch in microbatches]
        own = torch.cat([entropies_BT[mask_BT > 0] for entropies_BT, mask_BT in found]).cpu()
        entropies = torch.cat(self._engine.gather_objects(own))
        return step_entropy_threshold(entropies, self._config.loss.top_entropy_quantile)

    def _without_gradient(self, microbatch: Microbatch, *, use_adapter: bool = True) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies (B, T); without the adapter, the base model's: the reference of the KL term."""
        with without_dropout(self._policy.dropouts), torch.no_grad():
            result = tree_logprobs(
                self._engine, microbatch.inputs, temperature=self._temperature, use_adapter=use_adapter
            )
        self._tell_progress()
        return result

    def _tell_progress(self) -> None:
        self._progress += 1
        self._on_progress(self._progress)

    def _logprobs_of_probe(self, use_adapter: bool) -> tuple[float, ...]:
        tokens = TokenIds(self._probes.tokens)
        context = max(1, len(tokens) - NUM_PREDICTIONS)
        sequence = TokenSequence(prompt_token_ids=tokens[:context], completion_token_ids=tokens[context:])
        with without_dropout(self._policy.dropouts), torch.no_grad(), on_half_the_threads():
            inputs = tree_inputs(build_tree([sequence]), self._device, self._config.attention)
            logprobs_BT, _ = tree_logprobs(self._engine, inputs, temperature=1.0, use_adapter=use_adapter)
        return tuple(logprobs_BT.squeeze(0).tolist())

    def _files(self, parameters: dict[str, Tensor], *, tied_once: bool = False) -> AdapterFiles:
        own = _as_in_model(parameters)
        return self._format_of(own).files(own, tied_once=tied_once)

    def _format_of(self, own: Mapping[str, Tensor]) -> AdapterFormat:
        if self._format is None:
            self._format = AdapterFormat.of(self._policy.model, own, base_model=self._model_path)
        return self._format


_MODEL = "model."


def _as_in_model(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By their names in the peft model, which the policy holds as `model`."""
    return {name.removeprefix(_MODEL): tensor for name, tensor in parameters.items()}
