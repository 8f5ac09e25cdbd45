"""What GPU instances have: AWS's published figures, so that a job which no host can hold is refused before it waits."""

from __future__ import annotations

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


EFA_ENVIRONMENT: Mapping[str, str] = {
    "FI_PROVIDER": "efa",
    "FI_EFA_USE_DEVICE_RDMA": "1",
    "NCCL_SOCKET_IFNAME": "eth0",
}
"""For NCCL between hosts: data over EFA with RDMA, the first contact over the network that all training hosts have."""

INSTANCES = {
    "ml.p4d.24xlarge": Instance(gpus=8, cpus=96, memory_gib=1152, efa=4),
    "ml.p4de.24xlarge": Instance(gpus=8, cpus=96, memory_gib=1152, efa=4),
    "ml.p5.4xlarge": Instance(gpus=1, cpus=16, memory_gib=256, efa=1),
    "ml.p5.48xlarge": Instance(gpus=8, cpus=192, memory_gib=2048, efa=32),
    "ml.p5e.48xlarge": Instance(gpus=8, cpus=192, memory_gib=2048, efa=32),
    "ml.p5en.48xlarge": Instance(gpus=8, cpus=192, memory_gib=2048, efa=16),
    "ml.p6-b200.48xlarge": Instance(gpus=8, cpus=192, memory_gib=2048, efa=8),
    "ml.g4dn.xlarge": Instance(gpus=1, cpus=4, memory_gib=16),
    "ml.g4dn.2xlarge": Instance(gpus=1, cpus=8, memory_gib=32),
    "ml.g4dn.4xlarge": Instance(gpus=1, cpus=16, memory_gib=64),
    "ml.g4dn.8xlarge": Instance(gpus=1, cpus=32, memory_gib=128),
    "ml.g4dn.12xlarge": Instance(gpus=4, cpus=48, memory_gib=192),
    "ml.g4dn.16xlarge": Instance(gpus=1, cpus=64, memory_gib=256),
    "ml.g5.xlarge": Instance(gpus=1, cpus=4, memory_gib=16),
    "ml.g5.2xlarge": Instance(gpus=1, cpus=8, memory_gib=32),
    "ml.g5.4xlarge": Instance(gpus=1, cpus=16, memory_gib=64),
    "ml.g5.8xlarge": Instance(gpus=1, cpus=32, memory_gib=128),
    "ml.g5.12xlarge": Instance(gpus=4, cpus=48, memory_gib=192),
    "ml.g5.16xlarge": Instance(gpus=1, cpus=64, memory_gib=256),
    "ml.g5.24xlarge": Instance(gpus=4, cpus=96, memory_gib=384),
    "ml.g5.48xlarge": Instance(gpus=8, cpus=192, memory_gib=768),
    "ml.g6.xlarge": Instance(gpus=1, cpus=4, memory_gib=16),
    "ml.g6.2xlarge": Instance(gpus=1, cpus=8, memory_gib=32),
    "ml.g6.4xlarge": Instance(gpus=1, cpus=16, memory_gib=64),
    "ml.g6.8xlarge": Instance(gpus=1, cpus=32, memory_gib=128),
    "ml.g6.12xlarge": Instance(gpus=4, cpus=48, memory_gib=192),
    "ml.g6.16xlarge": Instance(gpus=1, cpus=64, memory_gib=256),
    "ml.g6.24xlarge": Instance(gpus=4, cpus=96, memory_gib=384),
    "ml.g6.48xlarge": Instance(gpus=8, cpus=192, memory_gib=768),
    "ml.g6e.xlarge": Instance(gpus=1, cpus=4, memory_gib=32),
    "ml.g6e.2xlarge": Instance(gpus=1, cpus=8, memory_gib=64),
    "ml.g6e.4xlarge": Instance(gpus=1, cpus=16, memory_gib=128),
    "ml.g6e.8xlarge": Instance(gpus=1, cpus=32, memory_gib=256),
    "ml.g6e.12xlarge": Instance(gpus=4, cpus=48, memory_gib=384),
    "ml.g6e.16xlarge": Instance(gpus=1, cpus=64, memory_gib=512),
    "ml.g6e.24xlarge": Instance(gpus=4, cpus=96, memory_gib=768),
    "ml.g6e.48xlarge": Instance(gpus=8, cpus=192, memory_gib=1536),
}
"""By their names as SageMaker and HyperPod spell them."""
