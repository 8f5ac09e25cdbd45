"""Settings of the service."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ServiceSettings(BaseModel):
    """Where the service listens and what it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on; loopback only, as there are no keys."
    )
    port: int = Field(8300, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Largest request body, bytes; beyond it 413.")
    max_items: int = Field(4096, ge=1, description="Most items of one request; beyond it 422.")
    max_text_chars: int = Field(2_000_000, ge=1, description="Longest prompt or completion, characters; beyond it 422.")
    body_timeout_s: float = Field(30.0, gt=0, description="Time a client has to send its body, seconds; beyond it 408.")
    num_threads: int = Field(2, ge=1, le=64, description="Threads that score.")
    chunk_items: int = Field(128, ge=1, description="Items one thread scores before other requests get their turn.")
    readiness_timeout_s: float = Field(2.0, gt=0, description="Time a scoring thread has to answer /readyz, seconds.")
    shutdown_timeout_s: float = Field(10.0, gt=0, description="Time accepted requests have to end on SIGTERM, seconds.")
