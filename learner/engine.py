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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from learner.config import LearnerConfig
from learner.errors import LearnerError


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutcome:
    """What an optimizer step did. `applied` is False when the gradient was not finite: nothing moved."""

    applied: bool
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    """The one that was used."""


def lr_factor(config: LearnerConfig) -> Callable[[int], float]:
    """Step (from 0) → factor on the learning rate: linear warm-up, then constant, linear or half a cosine to 0."""
    kind, warmup, total = config.lr_scheduler_type, config.warmup_steps, config.max_steps
    if kind != "constant" and total is None:
        raise LearnerError(f"lr_scheduler_type={kind!r} needs max_steps: the step at which the rate reaches its end")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if kind == "constant" or total is None:
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return 1.0 - progress if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


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
    ) -> None:
        os.environ.setdefault("DS_ACCELERATOR", device.type)
        for noisy in ("DeepSpeed", "deepspeed"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        # ZeRO-3 on torch 2.13 says it hundreds of times.
        warnings.filterwarnings("ignore", message="`torch.distributed.* is deprecated", category=FutureWarning)
        import deepspeed

        self._deepspeed = deepspeed
        deepspeed.utils.logger.setLevel(logging.ERROR)
        # Its shared-memory collective is compiled at the first start (100 s, and a C++ compiler); gloo does as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._stage = config.zero_stage
        self._world_size = world_size
        self._device = device
        self._owns_group = _join(deepspeed, rank, world_size, master_addr, master_port, device, config.start_timeout_s)
        self._named = [(name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            [parameter for _, parameter in self._named],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(config))
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=policy,
            optimizer=optimizer,
            lr_scheduler=self._schedule,
            config=_settings(config, world_size),
            dist_init_required=False,
        )
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
        """Adds the loss's gradient; `last` ends the step's accumulation. A non-finite loss spoils the gradient on
        purpose, so that `step` refuses on every rank alike, without a collective of its own."""
        self._engine.set_gradient_accumulation_boundary(last)
        loss = loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> StepOutcome:
        """Clips, moves the optimizer and the schedule, drops the gradients. A non-finite gradient moves nothing."""
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
        """Element-wise `sum`, `max` or `min` of the values over the ranks."""
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

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self._world_size > 1:
            torch.distributed.barrier()

    @contextmanager
    def full_parameters(self) -> Iterator[dict[str, Tensor]]:
        """The trainable parameters whole, by name, to read inside the block. All ranks at ZeRO 3."""
        parameters = [parameter for _, parameter in self._named]
        with self._deepspeed.zero.GatheredParameters(parameters, enabled=self.gathers_parameters):
            yield {name: parameter.detach() for name, parameter in self._named}

    def training_state(self) -> dict[str, Any]:
        """Adapter, AdamW's moments and the schedule, whole and on the CPU, the same at every ZeRO stage. All ranks."""
        with self.full_parameters() as parameters:
            adapter = {name: tensor.float().cpu().clone() for name, tensor in parameters.items()}
        moments: dict[str, dict[str, Tensor]] = {}
        inner = self._inner_optimizer()
        steps = [float(state["step"]) for state in inner.state.values() if "step" in state]
        for name, parameter in self._named if steps else []:
            moments[name] = {key: self._moment(parameter, key).cpu().clone() for key in ("exp_avg", "exp_avg_sq")}
        return {
            "adapter": adapter,
            "moments": moments,
            "optimizer_step": steps[0] if steps else 0.0,
            "schedule": self._schedule.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """The reverse of `training_state`, onto any stage and any number of ranks. All ranks."""
        if set(state["adapter"]) != {name for name, _ in self._named}:
            raise LearnerError("the checkpoint's adapter has other parameters than this run's: lora settings differ")
        if state["moments"]:
            self._create_moments()
        for name, parameter in self._named:
            self._set_parameter(parameter, state["adapter"][name])
            for key, value in state["moments"].get(name, {}).items():
                self._set_moment(parameter, key, value)
        for moments in self._inner_optimizer().state.values():
            moments["step"] = torch.as_tensor(state["optimizer_step"], dtype=torch.float32)
        self._schedule.load_state_dict(state["schedule"])
        for group, rate in zip(self._inner_optimizer().param_groups, self._schedule.get_last_lr(), strict=True):
            group["lr"] = rate

    def _inner_optimizer(self) -> torch.optim.Optimizer:
        inner = getattr(self._optimizer, "optimizer", self._optimizer)
        assert isinstance(inner, torch.optim.Optimizer)
        return inner

    def _moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        if self._stage == 0:
            value = self._inner_optimizer().state[parameter][key]
        else:
            value = self._deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
        assert isinstance(value, Tensor)
        return value

    def _set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        value = value.to(self._device)
        if self._stage == 0:
            self._inner_optimizer().state[parameter][key].copy_(value)
        else:
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)

    def _set_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        value = value.to(self._device)
        if self._stage == 0:
            parameter.data.copy_(value)
        else:
            self._deepspeed.utils.safe_set_full_fp32_param(parameter, value)
            with (
                torch.no_grad(),
                self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.gathers_parameters),
            ):
                parameter.data.copy_(value)

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
        if self._owns_group and torch.distributed.is_initialized():
            self._deepspeed.comm.destroy_process_group()


def _join(
    deepspeed: Any, rank: int, world_size: int, addr: str, port: int, device: torch.device, timeout_s: float
) -> bool:
    """Enters the process group; True when it did not exist. The rendezvous and every collective end in `timeout_s`."""
    if torch.distributed.is_initialized():
        if torch.distributed.get_world_size() != world_size:
            raise LearnerError("this process is already in a process group of another size")
        return False
    local_rank = device.index or 0 if device.type != "cpu" else rank
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(local_rank),
        MASTER_ADDR=addr,
        MASTER_PORT=str(port),
    )
    deepspeed.init_distributed(
        dist_backend="gloo" if device.type == "cpu" else "nccl",
        auto_mpi_discovery=False,
        verbose=False,
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
