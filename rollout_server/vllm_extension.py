"""What vLLM's own processes do for us: replace whole tensors of the served model in place, compare adapters in their
memory, keep to their cores, and wait for each other asleep.

vLLM mixes the class here into its worker class (`worker_extension_cls`) in each process that holds a part of the model,
and calls its methods by name there (`collective_rpc`). They answer with a problem as text, or None: an exception would
be logged by every process it passes through.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import nn

_LOOK_S: Final = 0.001
"""For how long a process looks for the next message in a loop before it goes to sleep until one comes."""

_SHORTEST_SLEEP_MS: Final = 5

_FOLLOW_S: Final = 1.0
"""How often a worker looks what others take of its cores."""

_OTHERS_SHARE: Final = 0.3
"""Of one core: what they may take while its threads stay on a core each. vLLM's core is one of them."""

_SHARED_OPERATIONS: Final = 20


class FullTensorsExtension:
    """Methods of a vLLM worker; names begin with `rlvr_` so that none of vLLM's is hidden."""

    def rlvr_check_full_tensors(self, path: str) -> str | None:
        """Why the tensors of a safetensors file cannot replace the model's, or None. Changes nothing."""
        try:
            return check_tensors(self.get_model(), path)  # type: ignore[attr-defined]
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def rlvr_load_full_tensors(self, path: str) -> str | None:
        """Copy them into the model. After a problem the model holds a mixture."""
        try:
            load_tensors(self.get_model(), path)  # type: ignore[attr-defined]
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    def rlvr_same_adapters(self, first: int, second: int | None) -> bool:
        """Whether two loaded adapters, by their numbers, are the same in this rank's memory, bit for bit; for None,
        whether the first changes nothing of the base."""
        manager = self.model_runner.lora_manager._adapter_manager  # type: ignore[attr-defined]
        return same_adapters(manager, first, second)

    def rlvr_keep_to_cores(self, cores: tuple[int, ...]) -> None:
        """Run all threads on these cores: those that work together on one each while nobody else wants them, or the
        kernel puts two on one; but beside others on any, or one waits for whoever is on its core while another is idle.
        """
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), cores)
        probe_on_one_thread(self.model_runner)  # type: ignore[attr-defined]
        threads = working_threads(len(cores))
        if len(threads) == len(cores) > 1:
            threading.Thread(target=_follow_others, args=(threads, cores), daemon=True).start()


def working_threads(count: int) -> list[int]:
    """This thread and those that share torch's operations with it, by what they have run during some; none where the
    kernel does not count that."""
    try:
        before = _run_ns()
        for _ in range(_SHARED_OPERATIONS):
            torch.ones(2**20).sin_()
        after = _run_ns()
    except OSError:
        return []
    here = threading.get_native_id()
    others = sorted(after.keys() - {here}, key=lambda thread: after[thread] - before.get(thread, 0), reverse=True)
    return [here, *others[: count - 1]]


def place(threads: Sequence[int], cores: Sequence[int], *, apart: bool) -> None:
    """Each thread on a core of its own, or all on all.

    Args:
        threads: Their numbers in the kernel.
        cores: As many.
        apart: Thread i on core i alone; else each may be on any of `cores`.
    """
    for thread, core in zip(threads, cores, strict=True):
        os.sched_setaffinity(thread, {core} if apart else cores)


def probe_on_one_thread(runner: Any) -> None:
    """Have a vLLM model runner compute steps of probes alone on one thread, where it has two or three.

    The learner computes the same tokens beside it. On a core that one of two threads shares with that, each of some
    thousand small operations waits for it, and the other spins: seen on two cores, 0.21 s of processor instead of 0.09.
    Of more threads half would have to go for it, and libgomp would make new ones later, all on this thread's core.
    """
    execute, threads = runner.execute_model, torch.get_num_threads()

    def executed(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        torch._C.set_num_threads(1 if _holds_probes_alone(scheduled) else threads)  # torch's own is vLLM's by now
        return execute(scheduled, *args, **kwargs)

    if threads // 2 == 1:
        runner.execute_model = executed


def _holds_probes_alone(scheduled: Any) -> bool:
    """Whether a step of vLLM's, as its scheduler says, has prompts whose log-probs are asked, and nothing else."""
    new = [request.sampling_params for request in scheduled.scheduled_new_reqs]
    asked = [sampling is not None and sampling.prompt_logprobs is not None for sampling in new]
    return bool(asked) and all(asked) and not scheduled.scheduled_cached_reqs.req_ids


def _follow_others(threads: Sequence[int], cores: Sequence[int]) -> None:
    apart = False
    while True:
        began, busy_s, own_s = time.monotonic(), _busy_s(cores), time.process_time()
        time.sleep(_FOLLOW_S)
        others_s = (_busy_s(cores) - busy_s) - (time.process_time() - own_s)
        alone = others_s < _OTHERS_SHARE * (time.monotonic() - began)
        if alone != apart:
            place(threads, cores, apart=alone)
            apart = alone


def _run_ns() -> dict[int, int]:
    folder = Path("/proc/self/task")
    return {int(task.name): int((task / "schedstat").read_text().split()[0]) for task in folder.iterdir()}


def _busy_s(cores: Sequence[int]) -> float:
    """What all processes have run on these cores."""
    names = {f"cpu{core}" for core in cores}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    ticks = sum(int(line[i]) for line in lines if line[0] in names for i in (1, 2, 3, 6, 7))
    return ticks / os.sysconf("SC_CLK_TCK")


def same_adapters(manager: Any, first: int, second: int | None) -> bool:
    """As `FullTensorsExtension.rlvr_same_adapters`, of vLLM's `LoRAModelManager`. Of adapters that differ, the first
    matrix mostly does."""
    slots: Any = manager.lora_index_to_id
    for module in manager.modules.values():
        ups, downs = (_tensors(stacked) for stacked in (module.lora_b_stacked, module.lora_a_stacked))
        if second is None:
            if any(bool(stacked[slots.index(first)].any()) for stacked in ups):
                return False
        elif not all(torch.equal(s[slots.index(first)], s[slots.index(second)]) for s in (*ups, *downs)):
            return False
    return True


def _tensors(stacked: Any) -> tuple[torch.Tensor, ...]:
    return (stacked,) if isinstance(stacked, torch.Tensor) else tuple(stacked)


def check_tensors(model: nn.Module, path: str) -> str | None:
    """The first tensor of the file that has no place in the model, in words."""
    modules = _vocabulary_modules(model)
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # not a dictionary
            if name not in modules:
                return f"the served model has no vocabulary tensor {name!r}; it has {sorted(modules)}"
            found, wanted = tuple(file.get_slice(name).get_shape()), _shape(modules[name])
            if found != wanted:
                return f"{name!r} has shape {found}, but the served model wants {wanted}"
    return None


@torch.no_grad()
def load_tensors(model: nn.Module, path: str) -> None:
    """Copy the file's tensors into the model's parameters, cast to their dtype.

    The parameter's own loader takes this rank's rows and clears the padding. A tied output head is the same parameter
    under two names: either replaces both.
    """
    modules = _vocabulary_modules(model)
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # not a dictionary
            weight: Any = modules[name].weight
            weight.weight_loader(weight, file.get_tensor(name))
            for user in modules.values():
                if user.weight is weight:
                    _take_over(user)


def _take_over(module: Any) -> None:
    """vLLM's CPU linear layers multiply with a packed copy of the weight: have it made again."""
    method = getattr(module, "quant_method", None)
    if method is not None:
        method.process_weights_after_loading(module)


def _vocabulary_modules(model: nn.Module) -> dict[str, Any]:
    """Embeddings and output heads by their weight's name in the checkpoint, LoRA wrappers taken off the name."""
    return dict(_named_vocabulary(model))


def _named_vocabulary(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules(remove_duplicate=False):
        if hasattr(module, "org_vocab_size") and "weight" in module._parameters:
            yield f"{name}.weight".replace(".base_layer.", "."), module


def _shape(module: Any) -> tuple[int, int]:
    """Of the whole tensor: no padding, all ranks."""
    return module.org_vocab_size, module.embedding_dim


def wait_asleep() -> None:
    """Have vLLM's processes that are forked from this one wait for each other's messages asleep. They look for them in
    a loop for a second before: on a machine of few cores, the scheduler takes the time of the worker that it waits for.

    A writer calls its readers through a socket that drops a call while the one before is on its way, which that second
    hides. Here no call is dropped. One from before a reader has subscribed is lost all the same, so nobody sleeps
    longer than it has been idle. An idle engine soon wakes as seldom as vLLM has it look: every 5 s.
    """
    import zmq
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.utils.network_utils import get_open_zmq_inproc_path

    class Waiting(shm_broadcast.SpinCondition):  # type: ignore[misc]
        def __init__(self, is_reader: bool, context: Any, notify_address: str) -> None:
            own_address = notify_address if is_reader else get_open_zmq_inproc_path()
            super().__init__(is_reader, context, own_address, busy_loop_s=_LOOK_S)
            if not is_reader:
                self.local_notify_socket.setsockopt(zmq.SNDHWM, 0)  # no limit, for addresses bound from now on
                self.local_notify_socket.bind(notify_address)

        def wait(self, timeout_ms: int | None = None) -> None:
            idle_ms = int(1000 * (time.monotonic() - self.last_read))
            longest_ms = max(_SHORTEST_SLEEP_MS, idle_ms)
            super().wait(longest_ms if timeout_ms is None else min(timeout_ms, longest_ms))

    shm_broadcast.SpinCondition = Waiting


def share_gloo_device() -> None:
    """Have all groups of a process that is forked from this one share one device of gloo's, whose thread wakes a
    hundred times a second: vLLM makes a dozen groups, each of which would have its own."""
    from torch.distributed import distributed_c10d

    # Made when it is first asked for, after the fork, as a thread begins with it.
    device = functools.cache(distributed_c10d.ProcessGroupGloo.create_default_device)

    class Sharing(distributed_c10d.ProcessGroupGloo):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            options = distributed_c10d.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._devices, options._timeout = [device()], timeout
            super().__init__(store, rank, size, options)

    distributed_c10d.ProcessGroupGloo = Sharing  # type: ignore[misc]
