"""Arithmetic counted from a shape, against counts made another way."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.flops import matmul_flops, matmul_peak, state_flops

SHAPE = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.mark.parametrize("head", [False, True])
def test_linear_layers_are_counted_as_torch_counts_them(head: bool) -> None:
    # Eager attention computes every pair, so the half that causality hides is added to ours.
    T, model = 7, LlamaForCausalLM._from_config(SHAPE, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        (model if head else model.model)(torch.zeros(1, T, dtype=torch.long), use_cache=False)
    hidden_half = SHAPE.num_hidden_layers * 4 * 32 * (T * T - T * (T + 1) // 2)
    assert counted.get_total_flops() == matmul_flops(SHAPE, [T], head) + hidden_half


def test_sequences_add_up() -> None:
    assert matmul_flops(SHAPE, [3, 9]) == matmul_flops(SHAPE, [3]) + matmul_flops(SHAPE, [9])


def test_attention_grows_with_the_square_of_the_length() -> None:
    def attention(T: int) -> int:
        return matmul_flops(SHAPE, [T]) - T * (matmul_flops(SHAPE, [1]) - 4 * 3 * 32)

    assert attention(99) == 4 * 3 * 32 * 99 * 100 // 2


def test_a_width_of_heads_that_is_not_their_share_counts() -> None:
    wide = LlamaConfig(**{**SHAPE.to_dict(), "head_dim": 16})
    assert matmul_flops(wide, [1]) > matmul_flops(SHAPE, [1])


def test_one_state_needs_of_the_last_layer_only_keys_values_and_one_token() -> None:
    T, C = 9, 4
    one_layer = matmul_flops(LlamaConfig(**{**SHAPE.to_dict(), "num_hidden_layers": 1}), [T])
    two_layers = matmul_flops(LlamaConfig(**{**SHAPE.to_dict(), "num_hidden_layers": 2}), [T])
    assert two_layers == 2 * one_layer
    keys_and_values = 2 * 32 * 2 * 16  # two key heads of width 8, key and value
    queries_out_and_mlp = 2 * 32 * (32 + 32 + 3 * 64)
    last_layer = T * keys_and_values + queries_out_and_mlp + 4 * 32 * T
    assert state_flops(SHAPE, T, 0) == two_layers + last_layer
    saved = matmul_flops(LlamaConfig(**{**SHAPE.to_dict(), "num_hidden_layers": 2}), [C]) + C * keys_and_values
    assert state_flops(SHAPE, T, C) == two_layers + last_layer - saved


def test_the_peak_is_a_rate() -> None:
    assert matmul_peak(torch.float32, torch.device("cpu"), seconds=0) > 1e8
