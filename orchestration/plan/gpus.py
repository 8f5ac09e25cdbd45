"""GPUs by name: peak arithmetic, memory and its bandwidth as NVIDIA states them, and what AWS asks for eight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CPU: Final = "cpu"
"""In the place of a GPU's name: there is none."""
PRICES_OF: Final = (
    "on demand, Linux, us-east-1, list prices of late 2025, which change: see https://aws.amazon.com/ec2/pricing/"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One accelerator."""

    name: str
    operations: float
    """Peak a second in bfloat16 on tensor cores, dense (no structured sparsity)."""
    bandwidth: float
    """Of its memory, bytes a second."""
    memory_bytes: int
    source: str
    instance: str
    """Of eight."""
    dollars_an_hour: float
    """Of that instance: `PRICES_OF`."""


def _gpu(
    name: str, tera: float, gigabytes_s: float, gigabytes: float, source: str, instance: str, dollars: float
) -> Gpu:
    return Gpu(
        name=name,
        operations=tera * 1e12,
        bandwidth=gigabytes_s * 1e9,
        memory_bytes=int(gigabytes * 2**30),
        source=source,
        instance=instance,
        dollars_an_hour=dollars,
    )


_A100, _H100 = "NVIDIA A100 data sheet (SXM)", "NVIDIA H100 data sheet (SXM), half of its figure with sparsity"
GPUS: Final = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-40", 312, 1555, 40, _A100, "p4d.24xlarge", 21.96),
        _gpu("a100-80", 312, 2039, 80, _A100, "p4de.24xlarge", 27.45),
        _gpu("h100", 989, 3350, 80, _H100, "p5.48xlarge", 55.04),
        _gpu("h200", 989, 4800, 141, "NVIDIA H200 data sheet, as above", "p5en.48xlarge", 63.30),
        _gpu("l4", 121, 300, 24, "NVIDIA L4 data sheet, as above", "g6.48xlarge", 13.35),
        _gpu("l40s", 362, 864, 48, "NVIDIA L40S data sheet", "g6e.48xlarge", 30.13),
        _gpu("a10g", 70, 600, 24, "NVIDIA A10G data sheet for AWS", "g5.48xlarge", 16.29),
    )
}
