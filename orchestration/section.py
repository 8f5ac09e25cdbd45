"""What every group of settings is."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Of an environment variable that every place takes."""
INSTANCE_TYPE = r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$"
"""How SageMaker and HyperPod spell them."""


class Section(BaseModel):
    """A group of settings; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
