"""Where the time goes: seconds by stage, summed since the start."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stages:
    """Timings of one device's work; for the thread that owns the device."""

    def __init__(self, device: torch.device) -> None:
        self._waits = device.type == "cuda"
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the body to `stage`, until the device has done what the body asked of it."""
        start = time.perf_counter()
        yield
        if self._waits:
            torch.cuda.synchronize()
        self.seconds[stage] += time.perf_counter() - start
