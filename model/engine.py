"""Histories to user vectors as fast as the device allows: the answers of `UserEncoder`, its slow twin.

Equal histories are computed once, those computed lately not at all, and the rest in forward passes of bounded size,
packed where the decoder allows it and padded where it does not. For the thread that owns the device; `num_tokens` for
any.

# B histories, D language-model width, P shared width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.bounded_cache import BoundedCache, CacheSizes
from model.encoder import BATCH_TOKENS, UserEncoder
from model.heads import float_tensor
from model.packed_decoder import PackedDecoder
from model.packed_encoder import PackedEncoder
from model.stages import Stages

ENTRY_BYTES = 300
"""Of Python's objects around a remembered vector."""
MAX_KEYS = 4
"""Keys that a forward pass may see, remembered ones included, for each token that it may compute."""


class _StateEncoder(Protocol):
    max_batch_tokens: int

    def num_tokens(self, history: np.ndarray) -> int: ...
    def num_keys(self, history: np.ndarray) -> int: ...
    def states(self, histories: Sequence[np.ndarray]) -> Tensor: ...
    def forget(self) -> None: ...


class Engine:
    """One language model and one catalog version."""

    def __init__(self, encoder: UserEncoder, decoder: PackedDecoder | None, caches: CacheSizes) -> None:
        """`decoder`: the encoder's own language model, packed; None: it runs padded, and no prefix is reused."""
        self._decoder = decoder
        self._heads = encoder.heads
        self._stages = Stages(encoder.language_model.device)
        self._vectors: BoundedCache[np.ndarray] = BoundedCache(caches.user_vector_bytes)
        self._states: _StateEncoder = _PaddedEncoder(encoder, self._stages)
        if decoder is not None:
            self._states = PackedEncoder(encoder, decoder, caches.prefix_bytes, self._stages)

    @property
    def stages(self) -> Stages:
        return self._stages

    def warm_up(self, history: np.ndarray) -> None:
        """Run `history` alone, then two of it, four, ... together, up to a full forward pass.

        So that no caller pays for kernels that are made, and memory that is taken, at the first use of a shape. Does
        nothing where another engine has warmed up the same decoder.
        """
        if self._decoder is None or self._decoder.is_warm:
            return
        num = 1
        while num * self._states.num_tokens(history) <= self._states.max_batch_tokens:
            self._compute([history] * num)
            self._states.forget()
            num *= 2
        self._decoder.is_warm = True

    def num_tokens(self, history: np.ndarray) -> int:
        """Tokens that `encode` has to compute for a history (item rows, already cut); 0 when it is remembered."""
        return 0 if _key(history) in self._vectors else self._states.num_tokens(history)

    def encode(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """User vectors float32 [B, 3P] of non-empty histories (item rows, oldest first, already cut)."""
        keys = [_key(history) for history in histories]
        known = {key: vector for key in keys if (vector := self._vectors.get(key)) is not None}
        new = {key: history for key, history in zip(keys, histories, strict=True) if key not in known}
        for turn in self._turns(list(new.values())):
            for history, vector_Q in zip(turn, self._compute(turn), strict=True):
                known[_key(history)] = vector_Q
                key = _key(history)
                num_bytes = vector_Q.nbytes + len(key) + ENTRY_BYTES
                self._vectors.put(key, vector_Q.copy(), num_bytes)  # a copy, not the whole batch with it
        return np.stack([known[key] for key in keys])

    def _turns(self, histories: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Parts of at most the tokens of one forward pass, and of keys that fit in memory beside them."""
        turn: list[np.ndarray] = []
        num_tokens = num_keys = 0
        most = self._states.max_batch_tokens
        for history in histories:
            own_tokens, own_keys = self._states.num_tokens(history), self._states.num_keys(history)
            if turn and (num_tokens + own_tokens > most or num_keys + own_keys > MAX_KEYS * most):
                yield turn
                turn, num_tokens, num_keys = [], 0, 0
            turn.append(history)
            num_tokens, num_keys = num_tokens + own_tokens, num_keys + own_keys
        if turn:
            yield turn

    @torch.inference_mode()
    def _compute(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        state_BD = self._states.states(histories)
        with self._stages.timed("project"):
            user_BQ: np.ndarray = self._heads.project_users(state_BD).cpu().numpy()
        return user_BQ


class _PaddedEncoder:
    """For decoders that cannot be packed."""

    def __init__(self, encoder: UserEncoder, stages: Stages) -> None:
        self._encoder = encoder
        self._stages = stages
        self.max_batch_tokens = BATCH_TOKENS[encoder.language_model.device.type]

    def num_tokens(self, history: np.ndarray) -> int:
        return len(self._encoder.builder.recommend(history, self._encoder.segments))

    def num_keys(self, history: np.ndarray) -> int:
        return self.num_tokens(history)

    def forget(self) -> None:
        """Nothing is remembered."""

    def states(self, histories: Sequence[np.ndarray]) -> Tensor:
        builder, segments = self._encoder.builder, self._encoder.segments
        with self._stages.timed("assemble"):
            prompts = [builder.recommend(history, segments) for history in histories]
        with self._stages.timed("forward"):
            return float_tensor(self._encoder.encode_states(prompts)).to(self._encoder.language_model.device)


def _key(history: np.ndarray) -> bytes:
    return bytes(np.ascontiguousarray(history, np.int64).data)
