"""What GPU instances have: AWS's published figures, so that a job which no host can hold is refused before it waits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One host."""

    gpus: int
    cpus: int
    """Virtual cores."""
    memory_gib: int
    efa: int = 0
    """Network adapters with RDMA, which learner ranks on several hosts want."""


@dataclass(frozen=True, slots=True)
class GpuKind:
    """A GPU's name and compute capability."""

    name: str
    capability: tuple[int, int]


EFA_ENVIRONMENT: Mapping[str, str] = {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1"}
"""For NCCL between hosts: data over EFA with RDMA."""

LEAST_CAPABILITY = (7, 5)
"""CUDA 13, which torch and vLLM of the image are built for, compiles for nothing older."""

GPU_KINDS = {
    "p2": GpuKind("K80", (3, 7)),
    "p3": GpuKind("V100", (7, 0)),
    "p3dn": GpuKind("V100", (7, 0)),
    "p4d": GpuKind("A100", (8, 0)),
    "p4de": GpuKind("A100", (8, 0)),
    "p5": GpuKind("H100", (9, 0)),
    "p5e": GpuKind("H200", (9, 0)),
    "p5en": GpuKind("H200", (9, 0)),
    "p6-b200": GpuKind("B200", (10, 0)),
    "p6-b300": GpuKind("B300", (10, 3)),
    "g3": GpuKind("M60", (5, 2)),
    "g3s": GpuKind("M60", (5, 2)),
    "g4dn": GpuKind("T4", (7, 5)),
    "g5": GpuKind("A10G", (8, 6)),
    "g6": GpuKind("L4", (8, 9)),
    "g6e": GpuKind("L40S", (8, 9)),
}
"""By the families of instance types."""


def num_cpus(instance_type: str) -> int:
    """Virtual cores of a host: AWS's sizes have four for each `x`, in all families."""
    size = re.search(r"\.(?:(\d*)x)?large$", instance_type)
    return 1 if size is None else 2 if size[1] is None else 4 * int(size[1] or 1)


_P = {  # GPUs, memory in GiB, EFA
    "p4d.24xlarge": (8, 1152, 4),
    "p4de.24xlarge": (8, 1152, 4),
    "p5.4xlarge": (1, 256, 1),
    "p5.48xlarge": (8, 2048, 32),
    "p5e.48xlarge": (8, 2048, 32),
    "p5en.48xlarge": (8, 2048, 16),
    "p6-b200.48xlarge": (8, 2048, 8),
}
_G = {"xlarge": 1, "2xlarge": 1, "4xlarge": 1, "8xlarge": 1, "12xlarge": 4, "16xlarge": 1, "24xlarge": 4, "48xlarge": 8}
_G_GIB_PER_CORE = {"g4dn": 4, "g5": 4, "g6": 4, "g6e": 8}

INSTANCES = {
    f"ml.{name}": Instance(gpus=gpus, cpus=num_cpus(name), memory_gib=memory_gib, efa=efa)
    for name, (gpus, memory_gib, efa) in _P.items()
} | {
    f"ml.{family}.{size}": Instance(gpus=gpus, cpus=num_cpus(f".{size}"), memory_gib=num_cpus(f".{size}") * gib)
    for family, gib in _G_GIB_PER_CORE.items()
    for size, gpus in _G.items()
    if family != "g4dn" or size not in ("24xlarge", "48xlarge")
}
"""By their names as SageMaker and HyperPod spell them."""


def gpu_kind(instance_type: str) -> GpuKind | None:
    """The GPUs of ml.FAMILY.SIZE; None: it has none, or they are not known here."""
    return GPU_KINDS.get(instance_type.split(".")[1])


def has_own_disks(instance_type: str) -> bool:
    """Whether its hosts have instance storage, which newer GPUs and `d` types do: SageMaker uses no volumes there."""
    return re.match(r"ml\.(p3dn|p[4-9]|g[4-9]|trn|[a-z]\d+[a-z]*d[a-z]*\.)", instance_type) is not None
