"""Histories to h([REC]) by the packed decoder: pre-tokenised segments, assembled without a loop over tokens.

The static prefix's keys and values are computed once. Those of the histories read lately are remembered, so that a
history that goes on costs its new items alone. For the thread that owns the device; `num_tokens` for any.

# B histories, L items of all histories, T new tokens, D language-model width, K key heads, d head width
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from model.encoder import UserEncoder
from model.packed_decoder import PackedDecoder, Packing
from model.prefix_cache import PrefixCache
from model.stages import Stages

MAX_BATCH_TOKENS = defaultdict(lambda: 16_384, cpu=2048)
"""Tokens of one forward pass by device. A processor is no faster with more (docs/performance.md)."""


class PackedEncoder:
    """One language model, packed, over one catalog's segments and features."""

    def __init__(self, encoder: UserEncoder, decoder: PackedDecoder, prefix_bytes: int, stages: Stages) -> None:
        """`encoder` embeds the tokens; `prefix_bytes` bounds the keys and values that are remembered, 0: none."""
        self._encoder = encoder
        self._decoder = decoder
        self._device = encoder.language_model.device
        self._stages = stages
        self._prefixes = PrefixCache(prefix_bytes)
        self._remembers = prefix_bytes > 0
        self._instruction = encoder.builder.instruction.astype(np.int64)
        self._static = self._static_keys()
        self.max_batch_tokens = MAX_BATCH_TOKENS[self._device.type]

    def num_tokens(self, history: np.ndarray) -> int:
        """Tokens that have to be computed for a history (item rows, already cut)."""
        new = history[self._prefixes.num_known(history) :]
        return int(self._encoder.segments.lengths(new).sum()) + len(self._instruction)

    def num_keys(self, history: np.ndarray) -> int:
        """Tokens of the whole prompt, whose keys and values a forward pass holds."""
        num_own = int(self._encoder.segments.lengths(history).sum())
        return self._static.shape[2] + num_own + len(self._instruction)

    @torch.inference_mode()
    def states(self, histories: Sequence[np.ndarray]) -> Tensor:
        """h([REC]), float32 [B, D], of non-empty histories that are cut already."""
        with self._stages.timed("assemble"):
            known = [self._prefixes.longest(history) for history in histories]
            new = [history[len(keys) :] for history, keys in zip(histories, known, strict=True)]
            past = torch.cat([keys for own in known for keys in (self._static, *own)], dim=2)
            num_past = [sum(keys.shape[2] for keys in (self._static, *own)) for own in known]
            token_T, item_T, num_new = self._assemble(new)
            packing = Packing(num_new, num_past, self._device)
            embed_TD = self._embed(token_T, item_T)
        with self._stages.timed("forward"):
            if not self._remembers:
                return self._decoder.last_states(embed_TD, packing, past)
            state_BD, keys = self._decoder.last_states_and_keys(embed_TD, packing, past)
        with self._stages.timed("remember"):
            self._remember(histories, keys, packing)
        return state_BD

    def forget(self) -> None:
        """Remember no history any more."""
        self._prefixes.clear()

    def _assemble(self, histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Token ids [T], the row of the item that each belongs to [T], and how many tokens every history has.

        The segments of a history, then the instruction; then the next history.
        """
        segments, num_tail = self._encoder.segments, len(self._instruction)
        item_L = np.concatenate(histories)
        length_L = segments.lengths(item_L)
        owner_L = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        num_new_B = np.bincount(owner_L, length_L, len(histories)).astype(np.int64) + num_tail
        first_L = np.cumsum(length_L) - length_L
        within = np.arange(int(length_L.sum())) - np.repeat(first_L, length_L)
        place = np.repeat(first_L + owner_L * num_tail, length_L) + within
        token_T = np.empty(int(num_new_B.sum()), np.int64)
        item_T = np.full(len(token_T), -1, np.int64)
        token_T[place] = segments.tokens[np.repeat(segments.offsets[item_L], length_L) + within]
        item_T[place] = np.repeat(item_L, length_L)
        token_T[np.cumsum(num_new_B)[:, None] - num_tail + np.arange(num_tail)] = self._instruction
        return token_T, item_T, num_new_B.tolist()

    def _embed(self, token_T: np.ndarray, item_T: np.ndarray) -> Tensor:
        token, item = (torch.from_numpy(array)[None].to(self._device) for array in (token_T, item_T))
        return self._encoder.embed_tokens(token, item)[0]

    def _remember(self, histories: Sequence[np.ndarray], keys: Tensor, packing: Packing) -> None:
        """Keep the keys and values of every segment: not of the static prefix before, nor of the instruction behind."""
        for history, (_, _, start, _) in zip(histories, packing.spans, strict=True):
            ends = np.cumsum([start + self._static.shape[2], *self._encoder.segments.lengths(history)])
            self._prefixes.keep(history, [keys[:, :, s:e] for s, e in pairwise(ends)])

    @torch.inference_mode()
    def _static_keys(self) -> Tensor:
        """Keys and values of the static prefix, [layers, 2, p, K, d]."""
        prefix = self._encoder.builder.prefix.astype(np.int64)
        embed_TD = self._embed(prefix, np.full(len(prefix), -1))
        packing = Packing([len(prefix)], [0], self._device)
        return self._decoder.last_states_and_keys(embed_TD, packing, self._decoder.no_past())[1]
