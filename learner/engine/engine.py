"""The training engine: everything that depends on DeepSpeed and its version. The only file that imports it.

Read in DeepSpeed 0.19.8's source, and relied upon here:
- With neither bf16 nor fp16 enabled it casts nothing (`_configure_distributed_model`), so a bfloat16 or 4-bit base
  keeps its precision and the optimizer works on the float32 adapter it is given.
- Gradients are averaged over ranks. `gradient_accumulation_steps` is 1, so nothing else is divided; which backward is
  the last of a step is said by `set_gradient_accumulation_boundary`. The caller multiplies its loss by the number of
  ranks.
- ZeRO 0 and 1 reduce gradients once, at the boundary; ZeRO 2 and 3 at every backward, and 3 gathers parameters at
  every forward: there every rank needs the same number of micro-batches.
- ZeRO 1 to 3 refuse a step by themselves when the gradient norm is not finite (the optimizer's `overflow`); at ZeRO 0
  in float32 DeepSpeed looks at nothing, so it is looked at here.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from learner.config import LearnerConfig
from learner.engine import rendezvous
from learner.engine.schedule import make_schedule, move_to
from learner.engine.state import TrainingState, refuse_other_parameters
from learner.errors import LearnerError


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutcome:
    """What an optimizer step did. `applied` is False when the gradient was not finite: nothing moved."""

    applied: bool
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    """The one that was used."""


class TrainingEngine:
    """A policy under DeepSpeed on one rank. All ranks call its methods in the same order."""

    def __init__(
        self,
        policy: nn.Module,
        config: LearnerConfig,
        *,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        device: torch.device,
        max_steps: int | None = None,
    ) -> None:
        deepspeed = self._deepspeed = _quiet_deepspeed(device)
        self._stage = config.zero_stage
        self._rank, self._world_size = rank, world_size
        self._device = device
        with ExitStack() as begun:  # undone, should a part of it fail: the process may begin another
            begun.enter_context(
                _environment(
                    RANK=str(rank),
                    WORLD_SIZE=str(world_size),
                    LOCAL_RANK=str(device.index or 0 if device.type != "cpu" else rank),
                    MASTER_ADDR=master_addr,
                    MASTER_PORT=str(master_port),
                )
            )
            if _join(deepspeed, (master_addr, master_port), rank, world_size, config.start_timeout_s, device):
                begun.callback(_leave, deepspeed)
            self._named = [(name, one) for name, one in policy.named_parameters() if one.requires_grad]
            optimizer = torch.optim.AdamW(
                [parameter for _, parameter in self._named],
                lr=config.learning_rate,
                betas=(config.adam_beta1, config.adam_beta2),
                weight_decay=config.weight_decay,
            )
            self._schedule = make_schedule(optimizer, config, max_steps=max_steps)
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=policy,
                optimizer=optimizer,
                lr_scheduler=self._schedule,
                config=_settings(config, world_size),
                dist_init_required=False,
            )
            self._begun = begun.pop_all()
        if hasattr(self._optimizer, "check_grad_overflow"):
            self._optimizer.check_grad_overflow = True

    @property
    def needs_equal_microbatches(self) -> bool:
        """True when every rank must run the same number of forward and backward passes."""
        return self._stage >= 2

    @property
    def gathers_parameters(self) -> bool:
        """True when a forward pass, or reading parameters, needs all ranks."""
        return self._stage == 3

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the loss's gradient. A non-finite loss spoils the gradient on purpose, so that `step` refuses on every
        rank alike, without a collective of its own.

        Args:
            loss: This rank's part, times the number of ranks: gradients are averaged over them.
            last: Ends the step's accumulation. At ZeRO 2 and 3 every rank has to come to it with as many calls.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        loss = loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> StepOutcome:
        """Clips, moves the optimizer and the schedule, drops the gradients. A non-finite gradient moves nothing.

        Returns:
            Whether it moved; the gradient's norm over all ranks before clipping; the rate that was used.
        """
        learning_rate = float(self._schedule.get_last_lr()[0])
        if self._stage == 0:
            grads = [parameter.grad for _, parameter in self._named if parameter.grad is not None]
            grad_norm = float(torch.nn.utils.get_total_norm(grads))
            if not math.isfinite(grad_norm):
                self._engine.zero_grad()
                return StepOutcome(applied=False, grad_norm=grad_norm, learning_rate=learning_rate)
            self._engine.step()
            return StepOutcome(applied=True, grad_norm=grad_norm, learning_rate=learning_rate)
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        grad_norm = float(self._engine.get_global_grad_norm())
        return StepOutcome(applied=applied, grad_norm=grad_norm if applied else math.nan, learning_rate=learning_rate)

    def all_reduce(self, values: list[float], *, op: str = "sum") -> list[float]:
        """The values put together over the ranks, element by element, in float64. Every rank must call it.

        Args:
            values: This rank's, of the same number on each.
            op: `sum`, `max` or `min`.

        Returns:
            The same on every rank; with one rank the values as they are.
        """
        if self._world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        reduce_op = {"sum": torch.distributed.ReduceOp.SUM, "max": torch.distributed.ReduceOp.MAX}.get(op)
        torch.distributed.all_reduce(tensor, op=reduce_op or torch.distributed.ReduceOp.MIN)
        return [float(value) for value in tensor.tolist()]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self._world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self._world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    @contextmanager
    def full_parameters(self) -> Iterator[dict[str, Tensor]]:
        """The trainable parameters whole, by name, to read inside the block. All ranks at ZeRO 3."""
        parameters = [parameter for _, parameter in self._named]
        with self._deepspeed.zero.GatheredParameters(parameters, enabled=self.gathers_parameters):
            yield {name: parameter.detach() for name, parameter in self._named}

    def training_state(self) -> TrainingState | None:
        """Where training stands; all ranks take part, and only rank 0 keeps and returns it. What rank 0 has no memory
        for it raises at the end, when no rank waits for it any more."""
        inner = self._inner_optimizer()
        steps = [int(state["step"]) for state in inner.state.values() if "step" in state]
        keys = ("parameters", "exp_avg", "exp_avg_sq") if steps else ("parameters",)
        whole: dict[str, dict[str, Tensor]] = {"parameters": {}, "exp_avg": {}, "exp_avg_sq": {}}
        failure: Exception | None = None
        for name, parameter in self._named:
            for key in keys:
                value = self._full(parameter, None if key == "parameters" else key)
                if self._rank == 0 and failure is None:
                    try:
                        whole[key][name] = value.to("cpu", torch.float32, copy=True)
                    except (MemoryError, RuntimeError) as error:
                        failure = error
        if failure is not None:
            raise failure
        if self._rank != 0:
            return None
        return TrainingState(
            **whole, optimizer_step=steps[0] if steps else 0, schedule_step=int(self._schedule.last_epoch)
        )

    def load_training_state(self, state: TrainingState) -> None:
        """Goes on from there, at any stage and on any number of ranks. All ranks.

        Raises:
            LearnerError: Other parameters were trained.
        """
        refuse_other_parameters(state.parameters, {name: self._shape(parameter) for name, parameter in self._named})
        self._create_moments()
        for name, parameter in self._named:
            value = state.parameters[name].to(self._device)
            self._set_full(parameter, None, value)
            for key, moments in (("exp_avg", state.exp_avg), ("exp_avg_sq", state.exp_avg_sq)):
                moment = moments[name].to(self._device) if name in moments else torch.zeros_like(value)
                self._set_full(parameter, key, moment)
        for own in self._inner_optimizer().state.values():
            own["step"] = torch.tensor(float(state.optimizer_step))
        move_to(self._schedule, state.schedule_step)

    def _inner_optimizer(self) -> torch.optim.Optimizer:
        inner = getattr(self._optimizer, "optimizer", self._optimizer)
        assert isinstance(inner, torch.optim.Optimizer)
        return inner

    def _shape(self, parameter: Any) -> tuple[int, ...]:
        return tuple(parameter.ds_shape if self._stage == 3 else parameter.shape)

    def _full(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        """AdamW's moment `key` of a parameter, or for None its value at full precision; whole. All ranks."""
        if self._stage == 0:
            value = parameter.detach() if key is None else self._inner_optimizer().state[parameter][key]
        elif key is None:
            value = self._deepspeed.utils.safe_get_full_fp32_param(parameter)
        else:
            value = self._deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
        assert isinstance(value, Tensor)
        return value

    def _set_full(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        """The reverse of `_full`. All ranks."""
        utils = self._deepspeed.utils
        if self._stage == 3:
            part = self._own_part(parameter, value)
            if key is None:
                utils.safe_set_local_fp32_param(parameter, part)
            else:
                utils.safe_set_local_optimizer_state(parameter, part, key)
        elif self._stage > 0 and key is None:
            utils.safe_set_full_fp32_param(parameter, value)
        elif self._stage > 0:
            utils.safe_set_full_optimizer_state(parameter, value, key)
        elif key is not None:
            self._inner_optimizer().state[parameter][key].copy_(value)
        if key is None:  # what the forward pass reads: at stages above 0 a copy of the master just set
            gathered = self._deepspeed.zero.GatheredParameters
            with torch.no_grad(), gathered([parameter], modifier_rank=0, enabled=self.gathers_parameters):
                parameter.data.copy_(value)

    def _own_part(self, parameter: Any, value: Tensor) -> Tensor:
        """This rank's part of a whole tensor at ZeRO 3, filled up with zeros where the ranks do not divide its size.

        DeepSpeed's own setters of whole tensors read beyond the end of those.
        """
        size = parameter.ds_tensor.numel()
        flat = torch.nn.functional.pad(value.flatten(), (0, size * self._world_size - value.numel()))
        return flat.narrow(0, size * self._rank, size)

    def _create_moments(self) -> None:
        """AdamW makes its moments at its first step, and DeepSpeed links them to the parameters only then."""
        inner, masters = self._inner_optimizer(), [parameter for _, parameter in self._named]
        if self._stage in (1, 2):
            masters = self._optimizer.single_partition_of_fp32_groups
        elif self._stage == 3:
            masters = self._optimizer.fp32_partitioned_groups_flat
        for master in masters:
            if "exp_avg" not in inner.state[master]:
                zeros = {key: torch.zeros_like(master) for key in ("exp_avg", "exp_avg_sq")}
                inner.state[master] = {"step": torch.zeros((), dtype=torch.float32), **zeros}
        if self._stage in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def shutdown(self) -> None:
        """Leaves the process group, if this engine made it."""
        self._engine.destroy()
        self._begun.close()


def _leave(deepspeed: Any) -> None:
    if torch.distributed.is_initialized():
        deepspeed.comm.destroy_process_group()


def _quiet_deepspeed(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    for noisy in ("DeepSpeed", "deepspeed"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # ZeRO-3 on torch 2.13 says it hundreds of times.
    warnings.filterwarnings("ignore", message="`torch.distributed.* is deprecated", category=FutureWarning)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Its shared-memory collective is compiled at the first start (100 s, and a C++ compiler); gloo does as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """What a launcher would have set: DeepSpeed reads it at its start, ZeRO-3 later too. Left behind, it would tell
    every process that is started from here to join a group that is gone."""
    if not _OPEN:
        _BEFORE.update({name: os.environ.get(name) for name in variables})
    _OPEN.append(variables)
    os.environ.update(variables)
    try:
        yield
    finally:
        _OPEN[:] = [others for others in _OPEN if others is not variables]
        for name, value in (_OPEN[-1] if _OPEN else _BEFORE).items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


_OPEN: list[Mapping[str, str]] = []
"""Of this process's engines, the newest last: they need not end in the order in which they began."""
_BEFORE: dict[str, str | None] = {}


def _join(
    deepspeed: Any, meeting: tuple[str, int], rank: int, world_size: int, timeout_s: float, device: torch.device
) -> bool:
    """Enters the process group; True when it did not exist. The rendezvous and every collective end in `timeout_s`."""
    if torch.distributed.is_initialized():
        if torch.distributed.get_world_size() != world_size:
            raise LearnerError("this process is already in a process group of another size")
        return False
    deepspeed.init_distributed(
        dist_backend="gloo" if device.type == "cpu" else "nccl",
        auto_mpi_discovery=False,
        verbose=False,
        init_method=rendezvous.at(*meeting),
        timeout=timedelta(seconds=timeout_s),
        rank=rank,
        world_size=world_size,
    )
    return True


def _settings(config: LearnerConfig, world_size: int) -> dict[str, Any]:
    bucket = 50_000_000  # elements; an adapter is far smaller, and DeepSpeed allocates the whole bucket
    return {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": config.zero_stage != 0,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
    }
