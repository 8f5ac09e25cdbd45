"""The machine a figure was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

from orchestration.machine.facts import collect


def machine_line() -> str:
    """Processor, cores and GPUs in one line."""
    facts = collect()
    names = [gpu.name for gpu in facts.gpus]
    gpus = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names)) or "no GPU"
    return f"{facts.num_cores} cores of {_processor()}, {gpus}"


def num_gpus() -> int:
    """GPUs that a process of this machine would see."""
    return len(collect().gpus)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
