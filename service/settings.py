"""Everything an operator can set, read from environment variables `RECOMMENDER_<FIELD>` in this one place."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

KIBIBYTE = 1024


class Settings(BaseSettings):
    """How one service process runs; immutable. A bad value stops the start and is named."""

    model_config = SettingsConfigDict(
        env_prefix="RECOMMENDER_", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 accepts other machines: do that behind something that authenticates callers."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and logs it."""
    store: Path = Path("store")
    """Artifact store whose `catalogs/CURRENT` is served. May be empty at the start: the first catalog is picked up."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Where the language model runs. `auto`: the first CUDA device, else the processor."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """INFO writes one line a request; WARNING only what needs attention."""
    max_body_bytes: int = Field(default=2048 * KIBIBYTE, ge=KIBIBYTE)
    """Largest request body; above it 413. The default holds 1,500 ids of 256 characters in UTF-8."""
    max_batch_requests: int = Field(default=16, ge=1)
    """Requests ranked together. Higher: more throughput, more memory, longer turns."""
    max_wait_ms: float = Field(default=2.0, ge=0, le=1000)
    """How long a lone request waits for company. 0 gives the lowest latency when idle; raise it on a busy GPU."""
    max_line: int = Field(default=128, ge=1)
    """Requests that may wait; the next one is answered 429 at once. About what is ranked in `request_timeout_s`."""
    request_timeout_s: float = Field(default=30.0, gt=0)
    """Longest a request waits for its ranking; then 504, and nothing more is computed for it."""
    drain_timeout_s: int = Field(default=30, ge=1)
    """After SIGTERM, how long requests already accepted may take. Keep it below the orchestrator's own patience."""
    catalog_poll_s: float = Field(default=2.0, gt=0)
    """How often `CURRENT` is read for a newly published catalog."""
    catalog_retry_s: float = Field(default=60.0, gt=0)
    """When to try again to load a version that was refused."""
