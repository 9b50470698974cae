"""The decoder's forward pass as serving needs it: sequences back to back, only the last state of each leaves.

The same numbers as the Hugging Face model's own forward pass up to rounding, for less work: no padding, no output head,
keys and values of a shared beginning computed once, the last layer's queries and MLP for the last tokens only, the
norms' weights folded into the products that follow them, and on a processor oneDNN's packed weights with activation
and gate as part of the product. The residual stream is float32 whatever the weights are: for one part in a hundred of
the time, bfloat16 comes closer to float32 than it does in the model's own forward pass (docs/performance.md). Knows
nothing of items, prompts or people.

# B sequences, T new tokens of all, S keys of all (past and new), p past and n new tokens of one sequence,
# H query heads, K key heads, d head width, D model width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SUPPORTED = ("llama", "mistral", "qwen2")
"""Kinds of decoders (config.model_type) that share this structure: RMS norms, rotary halves, gated SiLU."""
MAX_DENSE_KEYS = 512
"""Up to this many keys, scores as one bfloat16 product are faster on a processor than the fused kernel that never
holds them all: 0.9 ms against 1.6 for 190 tokens of 9 heads after 13 on one core, 213 against 162 for 2 x 1,600."""


class Packing:
    """Where the tokens of B sequences lie when they lie back to back; sequence j has `past[j]` keys already."""

    def __init__(self, new: Sequence[int], past: Sequence[int], device: torch.device) -> None:
        self.new, self.past = list(new), list(past)
        starts_q, starts_k = _starts(self.new), _starts([n + p for n, p in zip(new, past, strict=True)])
        new_B, past_B = np.asarray(self.new), np.asarray(self.past)
        within_T = np.arange(starts_q[-1]) - np.repeat(starts_q[:-1], new_B)
        first_new_B = starts_k[:-1] + past_B
        past_starts = _starts(self.past)
        past_S = np.arange(past_starts[-1]) + np.repeat(starts_k[:-1] - past_starts[:-1], past_B)
        self.spans = list(zip(starts_q[:-1], starts_q[1:], starts_k[:-1], starts_k[1:], strict=True))
        self.num_keys = int(starts_k[-1])
        self.position_T = torch.from_numpy(within_T + np.repeat(past_B, new_B)).to(device)
        self.new_keys_T = torch.from_numpy(within_T + np.repeat(first_new_B, new_B)).to(device)
        self.past_keys = torch.from_numpy(past_S).to(device)
        self.last_B = torch.from_numpy(starts_q[1:] - 1).to(device)
        self.starts_q, self.starts_k = (torch.from_numpy(s.astype(np.int32)).to(device) for s in (starts_q, starts_k))

    def last_only(self) -> Packing:
        """The same keys, one query a sequence: its last token."""
        return Packing([1] * len(self.new), [n + p - 1 for n, p in zip(self.new, self.past, strict=True)], self.device)

    @property
    def device(self) -> torch.device:
        return self.last_B.device


@dataclass(frozen=True)
class _Layer:
    qkv: Any
    qkv_bias: Tensor | None
    out: Any
    gate: Any
    up: Any
    down: Any


class PackedDecoder:
    """The layers of one decoder, laid out for packed sequences.

    Raises ValueError for a decoder that `is_supported` refuses.
    """

    def __init__(self, decoder: Any, *, consume: bool = False, products: Products | None = None) -> None:
        """`consume`: the decoder gives up its own layers one by one, so that the weights are held once.

        `products`: how to multiply by weights; by default oneDNN's way on a processor that has it.
        """
        if not is_supported(decoder):
            raise ValueError(f"a decoder of kind {decoder.config.model_type!r} cannot be packed")
        model, config = decoder.base_model, decoder.config
        attention = model.layers[0].self_attn
        self.is_warm = False
        """Whether the shapes that serving meets have been run once."""
        self.dtype: torch.dtype = decoder.dtype
        self.device: torch.device = decoder.device
        self._head_width: int = attention.head_dim
        self._num_heads: int = attention.q_proj.out_features // self._head_width
        self._num_key_heads: int = attention.k_proj.out_features // self._head_width
        self._eps: float = config.rms_norm_eps
        self._rotary, self._norm = model.rotary_emb, model.norm
        has_onednn = _has_onednn(self.device, self.dtype)
        self._products = products or (OneDNNProducts() if has_onednn else PlainProducts())
        self._attend: Attend = _attend_varlen if _has_varlen(self.device, self.dtype) else _attend_each
        self._layers: list[_Layer] = []
        for number, layer in enumerate(model.layers):
            self._layers.append(self._lay_out(layer))
            if consume:
                model.layers[number] = nn.Identity()

    def _lay_out(self, layer: Any) -> _Layer:
        attention, mlp, pack = layer.self_attn, layer.mlp, self._products.pack
        # Scores come out scaled, because queries do.
        projections = ((attention.q_proj, attention.scaling), (attention.k_proj, 1.0), (attention.v_proj, 1.0))
        weight = torch.cat([projection.weight.float() * scaling for projection, scaling in projections])
        biases = [projection.bias * scaling for projection, scaling in projections if projection.bias is not None]
        before_attention, before_mlp = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        return _Layer(
            qkv=pack(self._folded(weight, before_attention)),
            qkv_bias=torch.cat(biases) if biases else None,
            out=pack(attention.o_proj.weight),
            gate=pack(self._folded(mlp.gate_proj.weight, before_mlp)),
            up=pack(self._folded(mlp.up_proj.weight, before_mlp)),
            down=pack(mlp.down_proj.weight),
        )

    def _folded(self, weight: Tensor, norm_weight: Tensor) -> Tensor:
        return (weight.float() * norm_weight.float()).to(self.dtype)

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values, over all layers."""
        return self.dtype.itemsize * 2 * len(self._layers) * self._num_key_heads * self._head_width

    def no_past(self) -> Tensor:
        """Keys and values of no tokens: [layers, 2, 0, K, d]."""
        shape = (len(self._layers), 2, 0, self._num_key_heads, self._head_width)
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def last_states(self, embed_TD: Tensor, packing: Packing, past: Tensor) -> Tensor:
        """Final states, float32 [B, D], of the last token of every sequence.

        `embed_TD`: embeddings of the new tokens. `past`: keys and values of the past ones, [layers, 2, sum of p, K, d].
        """
        return self._run(embed_TD, packing, past, None)

    @torch.inference_mode()
    def last_states_and_keys(self, embed_TD: Tensor, packing: Packing, past: Tensor) -> tuple[Tensor, Tensor]:
        """As `last_states`, with the keys and values of all tokens, past and new: [layers, 2, S, K, d]."""
        kept = self.no_past().new_empty(len(self._layers), 2, packing.num_keys, self._num_key_heads, self._head_width)
        return self._run(embed_TD, packing, past, kept), kept

    def _run(self, x_TD: Tensor, packing: Packing, past: Tensor, kept: Tensor | None) -> Tensor:
        rotation = self._rotation(x_TD, packing.position_T)
        shape = (2, packing.num_keys, self._num_key_heads, self._head_width)
        reused = x_TD.new_empty(shape) if kept is None else None
        x_TD = x_TD.to(torch.float32, copy=True)
        queries = packing
        for number, layer in enumerate(self._layers):
            keys = reused if reused is not None else kept[number]  # type: ignore[index]
            query_THd = self._project(layer, x_TD, rotation, packing, past[number], keys)
            if number == len(self._layers) - 1:
                queries = packing.last_only()
                query_THd, x_TD = query_THd[packing.last_B], x_TD[packing.last_B]
            attended_TD = self._attend(query_THd, keys[0], keys[1], queries)
            x_TD += self._products.plain(attended_TD, layer.out)
            x_TD += self._mlp(layer, self._normed(x_TD))
        state_BD: Tensor = self._norm(x_TD)
        return state_BD

    def _project(
        self, layer: _Layer, x_TD: Tensor, rotation: Rotation, packing: Packing, past: Tensor, keys: Tensor
    ) -> Tensor:
        """Queries [T, H, d]; the sequences' keys and values, past and new, are written into `keys` [2, S, K, d]."""
        H, K = self._num_heads, self._num_key_heads
        projected = self._products.plain(self._normed(x_TD), layer.qkv, layer.qkv_bias)
        qkv_THd = projected.view(len(x_TD), H + 2 * K, self._head_width)
        turned_THd = _rotate(qkv_THd[:, : H + K], rotation)
        keys.index_copy_(1, packing.past_keys, past)
        keys[0].index_copy_(0, packing.new_keys_T, turned_THd[:, H:])
        keys[1].index_copy_(0, packing.new_keys_T, qkv_THd[:, H + K :])
        return turned_THd[:, :H]

    def _mlp(self, layer: _Layer, x_TD: Tensor) -> Tensor:
        gate = self._products.silu(x_TD, layer.gate)
        return self._products.plain(self._products.times(x_TD, layer.up, gate), layer.down)

    def _normed(self, x_TD: Tensor) -> Tensor:
        """x / rms(x) in the weights' dtype; the norm's own weight is part of the product that follows."""
        if self.device.type != "cpu":
            return F.rms_norm(x_TD, x_TD.shape[-1:], None, self._eps).to(self.dtype)
        norm_T1: Tensor = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True)
        scale_T1 = norm_T1.square_().div_(x_TD.shape[-1]).add_(self._eps).rsqrt_()
        return torch.mul(x_TD, scale_T1, out=x_TD.new_empty(x_TD.shape, dtype=self.dtype))

    def _rotation(self, x_TD: Tensor, position_T: Tensor) -> Rotation:
        """Cosines of the rotary angles for a whole head and sines for its halves, [T, 1, d] and [T, 1, d / 2]."""
        cos, sin = self._rotary(x_TD[None], position_T[None])
        half = sin[0, :, None, : self._head_width // 2].contiguous()
        return cos[0, :, None], half, -half


Rotation = tuple[Tensor, Tensor, Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, Packing], Tensor]


def is_supported(decoder: Any) -> bool:
    """Whether `PackedDecoder` computes what this decoder's own forward pass computes."""
    config = decoder.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in SUPPORTED
        and config.hidden_act == "silu"
        and not getattr(config, "mlp_bias", False)
        and decoder.base_model.layers[0].self_attn.o_proj.bias is None
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and (config.model_type != "mistral" or config.sliding_window is None)
        and rope.get("rope_type", "default") not in ("dynamic", "longrope")  # theirs depends on the sequence's length
    )


def _starts(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _rotate(x_THd: Tensor, rotation: Rotation) -> Tensor:
    cos, sin, minus_sin = rotation
    half = x_THd.shape[-1] // 2
    turned = x_THd * cos
    turned[..., :half].addcmul_(x_THd[..., half:], minus_sin)
    turned[..., half:].addcmul_(x_THd[..., :half], sin)
    return turned


def _attend_varlen(q_THd: Tensor, k_SKd: Tensor, v_SKd: Tensor, packing: Packing) -> Tensor:
    """Causal attention of all sequences in one kernel; each query sees its sequence's keys up to its own."""
    from torch.nn.attention.varlen import varlen_attn  # of no use on a processor

    attended = varlen_attn(
        q_THd.contiguous(),
        k_SKd,
        v_SKd,
        packing.starts_q,
        packing.starts_k,
        max(packing.new),
        max(n + p for n, p in zip(packing.new, packing.past, strict=True)),
        scale=1.0,
        window_size=(-1, 0),
        enable_gqa=True,
        num_splits=1,  # so that a sequence's result does not depend on its company
    )
    assert isinstance(attended, Tensor)  # noqa: S101 - it returns more only when asked to
    return attended.flatten(1)


def _attend_each(q_THd: Tensor, k_SKd: Tensor, v_SKd: Tensor, packing: Packing) -> Tensor:
    """The same, sequence by sequence: on a processor a kernel for all would gain nothing."""
    attended_THd = torch.empty_like(q_THd, memory_format=torch.contiguous_format)
    for q_start, q_end, k_start, k_end in packing.spans:
        dense = q_THd.dtype == torch.bfloat16 and k_end - k_start <= MAX_DENSE_KEYS
        attend = _attend_dense if dense else _attend_fused
        attended_THd[q_start:q_end] = attend(q_THd[q_start:q_end], k_SKd[k_start:k_end], v_SKd[k_start:k_end])
    return attended_THd.flatten(1)


def _attend_fused(q_nHd: Tensor, k_mKd: Tensor, v_mKd: Tensor) -> Tensor:
    """[n, H, d] of one sequence."""
    n, m = len(q_nHd), len(k_mKd)
    # Queries of a short past, made of zeros, cost less than a mask, under which the unseen half is computed too: 82 ms
    # against 177 for 1,780 tokens after 13.
    num_added = m - n if n > 1 and m <= 2 * n else 0
    causal = n > 1 and n + num_added == m
    mask = None if causal or n == 1 else _unseen(n, m, 1, q_nHd)
    padded_nHd = F.pad(q_nHd, (0, 0, 0, 0, num_added, 0))
    q, k, v = (x.transpose(0, 1).contiguous()[None] for x in (padded_nHd, k_mKd, v_mKd))
    attended = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=1.0, enable_gqa=True)
    return attended[0, :, num_added:].transpose(0, 1)


def _attend_dense(q_nHd: Tensor, k_mKd: Tensor, v_mKd: Tensor) -> Tensor:
    """[n, H, d] of one sequence; the G heads that share a key head are one product."""
    n, H, d = q_nHd.shape
    m, K = k_mKd.shape[:2]
    G = H // K
    q_Kqd = q_nHd.reshape(n, K, G, d).transpose(0, 1).reshape(K, n * G, d)
    score_Kqm = torch.baddbmm(_unseen(n, m, G, q_nHd), q_Kqd, k_mKd.permute(1, 2, 0))
    attended_Kqd = torch.bmm(score_Kqm.softmax(-1), v_mKd.transpose(0, 1))
    return attended_Kqd.view(K, n, G, d).transpose(0, 1).reshape(n, H, d)


_MASKS: dict[tuple[int, int, torch.dtype, torch.device], Tensor] = {}


def _unseen(n: int, m: int, repeats: int, like: Tensor) -> Tensor:
    """[n * repeats, m]: zero where query i, the (m - n + i)-th token, sees key j, minus infinity where it does not."""
    size = 1 << (m - 1).bit_length()
    key = (size, repeats, like.dtype, like.device)
    if key not in _MASKS:
        mask = torch.full((size, size), float("-inf"), dtype=like.dtype, device=like.device).triu(1)
        _MASKS[key] = mask.repeat_interleave(repeats, dim=0)
    return _MASKS[key][(m - n) * repeats : m * repeats, :m]


def _has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def _has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel behind `varlen_attn` knows the dtype and the device: half precision, Ampere or newer."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and torch.cuda.get_device_capability(device) >= (8, 0)


class Products(Protocol):
    """Products x W^T by the weights of linear layers, and what is done to them at once."""

    def pack(self, weight: Tensor) -> Tensor:
        """A weight as the other methods take it."""

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor: ...
    def silu(self, x: Tensor, weight: Tensor) -> Tensor: ...
    def times(self, x: Tensor, weight: Tensor, other: Tensor) -> Tensor: ...


class OneDNNProducts:
    """Products by weights in oneDNN's own layout; what follows the product is done while it is in the cache."""

    def pack(self, weight: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        return packed

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._unary(x, weight, bias, "none")

    def silu(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._unary(x, weight, None, "swish")

    def times(self, x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, None, "mul")
        return product

    def _unary(self, x: Tensor, weight: Tensor, bias: Tensor | None, then: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], None)
        return product


class PlainProducts:
    """The same products where there is no oneDNN."""

    def pack(self, weight: Tensor) -> Tensor:
        return weight.contiguous()

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def silu(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.silu(F.linear(x, weight), inplace=True)

    def times(self, x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
        return F.linear(x, weight).mul_(other)
