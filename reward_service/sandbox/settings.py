"""What the server's configuration says of the sandbox; picklable, so that worker processes make the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Backend = Literal["bubblewrap", "namespaces", "limits"]
Mode = Literal["auto", "strict", "bubblewrap", "namespaces", "limits"]


class SandboxSettings(BaseModel):
    """How strangers' code is run, and what it may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = Field(
        "auto",
        description="strict: bubblewrap or our own namespaces, else the service does not start. auto: the best that can"
        " be had, down to resource limits alone, with a warning. The others name one way and take no other.",
    )
    interpreter: Path | None = Field(None, description="Python that runs the code; None: the one of the service.")
    packages: tuple[Path, ...] = Field(
        (), description="Folders that code and tests import from too, read-only: a site-packages with numpy, say."
    )
    wall_s: float = Field(
        5.0, gt=0, le=600, description="Time for one test, seconds; while it waits for a processor it stands still."
    )
    cpu_s: int = Field(5, ge=1, le=600, description="Processor time of one process, whole seconds.")
    total_s: float = Field(20.0, gt=0, le=3600, description="Time for all tests of an item, seconds.")
    memory_mb: int = Field(512, ge=64, description="Memory of one process (address space), and of all together (used).")
    stack_mb: int = Field(64, ge=1, le=100, description="Stack of a process's main thread, for deep recursion.")
    recursion_limit: int = Field(
        10_000, ge=100, le=10**6, description="Depth of recursion that Python allows, until the code sets its own."
    )
    processes: int = Field(32, ge=4, le=4096, description="Processes and threads at a time.")
    open_files: int = Field(64, ge=16, description="Descriptors of one process.")
    file_mb: int = Field(16, ge=1, description="Size of one file.")
    scratch_mb: int = Field(32, ge=1, description="Size of the scratch folder, which is kept in memory.")
    output_kb: int = Field(
        8192, ge=1, le=65536, description="Output that is read of one test, or its value as text; more fails it."
    )
    value_parts: int = Field(
        1_000_000, ge=1, description="Elements, keys and values, nested ones included, that a test's value may have."
    )

    @property
    def deadline_s(self) -> float:
        """Seconds after which whoever waits for an item may take the sandbox for stuck."""
        return self.total_s + PATIENCE_S + GRACE_S + START_S


START_S = 15.0
"""Seconds within which a sandbox has to be up, on a machine that is busy."""
PATIENCE_S = 20.0
"""Seconds beyond `total_s` that tests which wait for a processor are waited for; then the item has no score."""
GRACE_S = 3.0
"""Seconds that the supervisor may be late beyond those before it is killed from outside."""
