"""How much arithmetic a prompt is by the model's shape, and how much of it a device can do in a second.

Counted are the matrix products of a LLaMA-type decoder: linear layers, and attention of every token to itself and those
before it. Embedding, norms, rotary positions and softmax are left out: they are about one percent of it.

# T tokens of a prompt
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

CPU_SIZES = ((512, 2048, 2048), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 2048, 2048))
CUDA_SIZES = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192))
"""(rows, depth, columns) of the products that `matmul_peak` tries."""


def matmul_flops(config: Any, num_tokens_list: Iterable[int], head: bool = False) -> int:
    """Floating-point operations (two a multiply-add) of one forward pass over sequences of these lengths.

    `config`: the decoder's transformers configuration. `head`: with the vocabulary's logits for every token. Keys and
    values that were computed before save exactly the operations of their own tokens, so a pass that continues C cached
    tokens up to T costs `matmul_flops(config, [T]) - matmul_flops(config, [C])`.
    """
    layer = _Layer.of(config)
    per_token = config.num_hidden_layers * layer.token + 2 * head * config.hidden_size * config.vocab_size
    per_pair = config.num_hidden_layers * layer.pair
    return sum(T * per_token + T * (T + 1) // 2 * per_pair for T in num_tokens_list)


def state_flops(config: Any, num_tokens: int, num_cached: int) -> int:
    """Operations that the final state of a sequence's last token needs beyond its first `num_cached` tokens.

    In the last layer that is keys and values of every token, and all else of the last one alone.
    """
    layer, T, C = _Layer.of(config), num_tokens, num_cached
    num_pairs = T * (T + 1) // 2 - C * (C + 1) // 2
    num_whole: int = config.num_hidden_layers - 1
    whole_layers = num_whole * ((T - C) * layer.token + num_pairs * layer.pair)
    return whole_layers + (T - C) * layer.keys_and_values + (layer.token - layer.keys_and_values) + T * layer.pair


@dataclass(frozen=True)
class _Layer:
    """Operations of one decoder layer."""

    token: int
    """Linear layers, for one token."""
    keys_and_values: int
    """What of it makes the token's key and value."""
    pair: int
    """Attention, for one token that sees one: query times key, and weight times value."""

    @classmethod
    def of(cls, config: Any) -> _Layer:
        D, heads = config.hidden_size, config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or D // heads
        queries, keys = heads * head_width, config.num_key_value_heads * head_width
        return cls(
            token=2 * D * (2 * queries + 2 * keys + 3 * config.intermediate_size),
            keys_and_values=2 * D * 2 * keys,
            pair=2 * 2 * queries,
        )


def matmul_peak(dtype: torch.dtype, device: torch.device, seconds: float = 0.5) -> float:
    """FLOP/s of the fastest of a few large matrix products, each tried for `seconds`, measured now.

    It uses the threads that torch uses now: set them as in the run that is held against it.
    """
    return max(_rate(size, dtype, device, seconds) for size in (CUDA_SIZES if device.type == "cuda" else CPU_SIZES))


def _rate(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    rows, depth, columns = size
    generator = torch.Generator().manual_seed(0)  # zeros would run faster than any real product on a GPU
    a = torch.randn(rows, depth, generator=generator).to(device, dtype)
    weight = torch.randn(columns, depth, generator=generator).to(device, dtype)
    return 2 * rows * depth * columns / best_seconds(lambda: torch.nn.functional.linear(a, weight), device, seconds)


@torch.inference_mode()
def best_seconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The shortest of the repetitions that fit into `seconds` (at least three, after one that does not count)."""
    times: list[float] = []
    timed(work, device)
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        times.append(timed(work, device))
    return min(times)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of `work`, what it left running on a GPU included."""
    _wait_for(device)
    start = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
