"""What the server's configuration says of the judge. A request can choose neither the endpoint nor the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_OURS: Final = frozenset({"messages", "model", "n", "response_format", "stream"})


class JudgeSettings(BaseModel):
    """An OpenAI-compatible endpoint (`vllm serve` is one), and how much may be asked of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str = Field(description="The API's root, such as http://127.0.0.1:8000/v1.")
    model: str = Field(min_length=1, description="The model's name, as the endpoint knows it.")
    api_key_env: str | None = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Environment variable that holds the API key."
    )
    api_key_file: Path | None = Field(
        None, description="File that holds the API key; unlike a variable, worker processes do not inherit it."
    )
    timeout_s: float = Field(30.0, gt=0, le=3600, description="Time of one call, seconds.")
    deadline_s: float = Field(
        45.0, gt=0, le=3600, description="Time of one sample with all its tries, seconds; waiting its turn not counted."
    )
    max_tries: int = Field(4, ge=1, le=100, description="Calls for one sample, while they fail for want of an answer.")
    max_concurrency: int = Field(32, ge=1, le=4096, description="Calls at a time.")
    max_waiting_items: int = Field(16_384, ge=1, description="Items being judged or waiting; beyond it 429.")
    max_samples: int = Field(16, ge=1, le=64, description="Most samples of an item that a request may ask for.")
    max_tokens: int = Field(1024, ge=16, description="Longest answer, tokens; one that is cut off does not count.")
    max_input_chars: int = Field(
        200_000, ge=100, description="Longest prompt, completion and reference together; beyond it there is no score."
    )
    reasoning_chars: int = Field(
        500, ge=0, description="How much of the judge's reasoning the details hold; it may quote the completion."
    )
    cache_entries: int = Field(20_000, ge=0, description="Grades kept in memory; 0: none.")
    response_format: Literal["json_schema", "json_object", "none"] = Field(
        "json_schema",
        description="How the endpoint is held to JSON; for one that does not know json_schema, the others.",
    )
    extra_body: Mapping[str, Any] = Field(
        default_factory=dict,
        description="Further fields of each call, such as chat_template_kwargs; null leaves out one of ours.",
    )

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if "@" in parts.netloc:
            raise ValueError("the URL holds credentials, which logs would show; use api_key_env or api_key_file")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{value!r:.100} is not of the form http://HOST:PORT/v1")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file are both given; one of them is enough")
        if taken := sorted(_OURS & set(self.extra_body)):
            raise ValueError(f"extra_body cannot set {taken[0]!r}; the judge sets it itself")
        return self
