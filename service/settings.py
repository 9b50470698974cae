"""Everything an operator can set, read from environment variables `RECOMMENDER_<FIELD>` in this one place."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE


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
    max_batch_tokens: int = Field(default=2048, ge=1)
    """Prompt tokens computed together; a longer prompt goes alone. Raise it on a GPU (16384 and more) for throughput;
    lower it where the turn of a full batch, the least that a busy service makes callers wait, is too long."""
    max_batch_requests: int = Field(default=64, ge=1)
    """Requests ranked together; bounds batches of requests that cost no tokens."""
    max_wait_ms: float = Field(default=0.0, ge=0, le=1000)
    """How long a request waits for company while the device is idle. 0 is best for latency and rarely worse for
    throughput: whoever comes while the device is busy goes together anyway."""
    max_line: int = Field(default=1024, ge=1)
    """Requests that may wait; the next one is answered 429 at once, as is one that would have to wait longer than
    `request_timeout_s`, judged by the speed of recent batches. Bounds memory."""
    request_timeout_s: float = Field(default=30.0, gt=0)
    """Longest a request waits for its ranking; then 504, and nothing more is computed for it."""
    drain_timeout_s: int = Field(default=30, ge=1)
    """After SIGTERM, how long requests already accepted may take. Keep it below the orchestrator's own patience."""
    user_vector_cache_bytes: int = Field(default=32 * MEBIBYTE, ge=0)
    """What may be held of user vectors: the same history again costs a search, no forward pass. One takes 768 bytes at
    the demo's width of 3 x 64. 0 remembers none."""
    prefix_cache_bytes: int = Field(default=256 * MEBIBYTE, ge=0)
    """What may be held of keys and values, so that a history that goes on costs its new items alone. Ten items take
    about 4 MiB with SmolLM2-135M and 60 MiB with Sheared-LLaMA-2.7B, in the device's memory. 0 remembers none."""
    catalog_poll_s: float = Field(default=2.0, gt=0)
    """How often `CURRENT` is read for a newly published catalog."""
    catalog_retry_s: float = Field(default=60.0, gt=0)
    """When to try again to load a version that was refused."""
