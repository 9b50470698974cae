"""The packed forward pass gives what the decoder's own gives: for every mix of lengths, with and without a past."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from model import packed_decoder
from model.packed_decoder import PackedDecoder, Packing, PlainProducts, is_supported

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama with other angles": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE)),
    "llama without shared keys": lambda: LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_key_value_heads": 4})),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
}
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def decoder_of(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """Random weights, norms and biases included: none is one or zero, as a fresh model's would be."""
    torch.manual_seed(0)
    decoder = KINDS[kind]()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return decoder.to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def llama() -> Any:
    return decoder_of("llama")


def embeddings(*lengths: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randn(length, SHAPE["hidden_size"], generator=generator).to(dtype) for length in lengths]


def own_states(decoder: Any, sequences: list[Tensor]) -> Tensor:
    """The last states [B, D], one sequence at a time, by the decoder's own forward pass."""
    return torch.cat([decoder.base_model(inputs_embeds=x[None]).last_hidden_state[:, -1] for x in sequences])


def packed_states(packed: PackedDecoder, sequences: list[Tensor]) -> Tensor:
    packing = Packing([len(x) for x in sequences], [0] * len(sequences), CPU)
    return packed.last_states(torch.cat(sequences), packing, packed.no_past())


@pytest.mark.parametrize("kind", KINDS)
def test_packed_states_are_those_of_the_decoder_itself(kind: str) -> None:
    decoder = decoder_of(kind)
    sequences = embeddings(30, 1, 17, 17)
    torch.testing.assert_close(
        packed_states(PackedDecoder(decoder), sequences), own_states(decoder, sequences), atol=1e-4, rtol=1e-4
    )


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS)
def test_a_sequence_has_the_same_state_in_any_company(llama: Any, lengths: list[int]) -> None:
    sequences = embeddings(*lengths)
    torch.testing.assert_close(
        packed_states(PackedDecoder(llama), sequences), own_states(llama, sequences), atol=1e-4, rtol=1e-4
    )


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=5))
def test_keys_of_a_past_stand_for_its_tokens(llama: Any, cuts: list[tuple[int, int]]) -> None:
    packed = PackedDecoder(llama)
    sequences = embeddings(*(past + new for past, new in cuts))
    pasts = [packed.no_past() for _ in cuts]
    for at, (past, _) in enumerate(cuts):
        if past:
            _, pasts[at] = packed.last_states_and_keys(
                sequences[at][:past], Packing([past], [0], CPU), packed.no_past()
            )
    packing = Packing([new for _, new in cuts], [past for past, _ in cuts], CPU)
    new_TD = torch.cat([x[past:] for x, (past, _) in zip(sequences, cuts, strict=True)])
    state_BD, keys = packed.last_states_and_keys(new_TD, packing, torch.cat(pasts, dim=2))
    torch.testing.assert_close(state_BD, own_states(llama, sequences), atol=1e-4, rtol=1e-4)
    whole = Packing([len(x) for x in sequences], [0] * len(sequences), CPU)
    _, recomputed = packed.last_states_and_keys(torch.cat(sequences), whole, packed.no_past())
    torch.testing.assert_close(keys, recomputed, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("max_dense_keys", [0, 512])
def test_bfloat16_points_the_same_way_with_both_kinds_of_attention(
    max_dense_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_decoder, "MAX_DENSE_KEYS", max_dense_keys)
    decoder = decoder_of("llama", torch.bfloat16)
    sequences = embeddings(40, 3, 25, dtype=torch.bfloat16)
    ours, own = packed_states(PackedDecoder(decoder), sequences), own_states(decoder, sequences)
    assert F.cosine_similarity(ours.float(), own.float()).min() >= 0.999


def test_without_onednn_the_states_are_the_same(llama: Any) -> None:
    sequences = embeddings(12, 30)
    plain = PackedDecoder(llama, products=PlainProducts())
    torch.testing.assert_close(
        packed_states(plain, sequences), packed_states(PackedDecoder(llama), sequences), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ],
)
def test_a_decoder_that_computes_something_else_is_not_packed(change: dict[str, Any]) -> None:
    decoder = LlamaForCausalLM(LlamaConfig(**SHAPE, **change))
    assert not is_supported(decoder)
    with pytest.raises(ValueError, match="llama"):
        PackedDecoder(decoder)


def test_another_kind_of_decoder_or_a_sliding_window_is_not_packed() -> None:
    assert not is_supported(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4)))
    assert not is_supported(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16)))


def test_a_consumed_decoder_holds_no_layers_any_more() -> None:
    decoder = decoder_of("llama")
    sequences = embeddings(9)
    expected = own_states(decoder, sequences)
    packed = PackedDecoder(decoder, consume=True)
    torch.testing.assert_close(packed_states(packed, sequences), expected, atol=1e-4, rtol=1e-4)
    assert not any("layers" in name for name, _ in decoder.named_parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_attention_on_a_gpu_points_the_same_way(dtype: torch.dtype) -> None:
    decoder = decoder_of("llama", dtype).to("cuda")
    sequences = [x.cuda() for x in embeddings(40, 3, 25, dtype=dtype)]
    packed = PackedDecoder(decoder)
    packing = Packing([40, 3, 25], [0, 0, 0], torch.device("cuda"))
    ours = packed.last_states(torch.cat(sequences), packing, packed.no_past())
    assert F.cosine_similarity(ours.float(), own_states(decoder, sequences).float()).min() >= 0.999
