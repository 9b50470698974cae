"""Two ordinary ways to serve the same model, to be measured beside ours under the same HTTP service.

`Naive` is what the published code of language-model recommenders does for a person: tokenise the texts of the history,
run the whole causal language model over the prompt with its vocabulary head and all hidden states, score every item
with torch, take the best. `Padded` is what a careful engineer adds first: prompts tokenised beforehand, the batcher's
batches padded on the right to their longest prompt, the decoder without its head. Both are eager Hugging Face models in
the checkpoint's dtype, with the attention kernels that Hugging Face chooses, and compute every prompt from its first
token. They read the same catalog and checkpoint as ours and give the same rankings within rounding.

They do what a load of plain histories needs: of a query they read `history` and `k`, nothing else.

# B prompts, L items of a history, D language-model width, N catalog items, P shared width, K results
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.catalog import Catalog
from model.checkpoint import load_checkpoint
from model.config import SIGNALS
from model.encoder import UserEncoder
from model.heads import ItemFeatures, float_tensor
from model.language_model import choose_device, load_language_model
from model.prompt import PromptBatch, PromptBuilder, Segments, build_segments, pad
from model.ranking import Query, RankedItem, Ranking, Signals
from model.stages import Stages
from model.store import Store

TEXTS = ("title", "brand", "category", "description")


@dataclass(frozen=True, eq=False)
class PreparedHistory:
    """A query in rows of the catalog."""

    query: Query
    rows: np.ndarray
    """int64: item rows that the prompt shows, oldest first"""
    known: np.ndarray
    """int64: rows of all known items of the history, which the other parts of a score read"""
    num_tokens: int
    """Of the whole prompt."""

    @property
    def key(self) -> Hashable:
        return self.query


class Rival:
    """What the rivals have in common; a subclass says how prompts become states."""

    def __init__(self, store: Store, version: str, device: str = "auto") -> None:
        self._device = choose_device(device)
        self.catalog = Catalog.load(store.catalogs / version)
        checkpoint = load_checkpoint(store.checkpoints / self.catalog.checkpoint_id)
        self.checkpoint_id = checkpoint.id
        self._prompt_config = checkpoint.config.prompt
        self._language_model = load_language_model(checkpoint.config.language_model, store.models, self._device)
        self._builder = PromptBuilder(self._language_model.tokenizer, self._prompt_config)
        self._joined, self._heads = checkpoint.joined, checkpoint.heads
        self._joined.to(self._device)
        self._canaries = checkpoint.canaries
        self._item_NQ = float_tensor(self.catalog.item_vectors).to(self._device)
        self._prefix_tokens = len(self._builder.recommend(np.empty(0, np.int64), self.catalog.segments))
        self._stages = Stages(self._device)

    @property
    def stage_s(self) -> Mapping[str, float]:
        """Seconds since the start, by stage."""
        return self._stages.seconds

    def warm_up(self) -> None:
        self.rank_prepared([self.prepare(Query(history)) for history in self._canaries])

    def prepare(self, query: Query) -> PreparedHistory:
        known = np.array([row for row in map(self.catalog.row, query.history) if row is not None], np.int64)
        rows = self._builder.keep_newest(known, self.catalog.segments)
        num_tokens = self._prefix_tokens + int(self.catalog.segments.lengths(rows).sum())
        return PreparedHistory(query, rows, known, num_tokens)

    @torch.inference_mode()
    def rank_prepared(self, prepared: Sequence[PreparedHistory]) -> list[Ranking]:
        """One ranking a prepared history; none of them may be empty."""
        state_BD = self._states([one.rows for one in prepared])
        with self._stages.timed("search"):
            user_B3P = self._heads.project_users(state_BD).cpu().numpy()
            user_BQ = self._joined.user_vectors(user_B3P, [one.known for one in prepared], self.catalog.features)
            return self._search(prepared, float_tensor(user_BQ).to(self._device))

    def _states(self, histories: Sequence[np.ndarray]) -> Tensor:
        """h([REC]) float32 [B, D]"""
        raise NotImplementedError

    def _search(self, prepared: Sequence[PreparedHistory], user_BQ: Tensor) -> list[Ranking]:
        score_BN = user_BQ @ self._item_NQ.T
        for score_N, one in zip(score_BN, prepared, strict=True):
            score_N[torch.from_numpy(one.known).to(self._device)] = -torch.inf
        best = score_BN.topk(max(one.query.k for one in prepared))
        product_BKQ = self._item_NQ[best.indices] * user_BQ[:, None]
        shares = product_BKQ.split(list(self._joined.widths), dim=2)
        addends = torch.stack([share.sum(2) for share in shares], dim=2).tolist()
        return [
            self._ranking(one, *answer)
            for one, *answer in zip(prepared, best.values.tolist(), best.indices.tolist(), addends, strict=True)
        ]

    def _ranking(
        self, one: PreparedHistory, scores: list[float], rows: list[int], addends: list[list[float]]
    ) -> Ranking:
        items = tuple(
            RankedItem(self.catalog.item_id(row), score, "model", Signals(*parts))
            for row, score, parts in zip(rows[: one.query.k], scores, addends, strict=False)
        )
        return Ranking(items, (), len(one.rows), False, self.checkpoint_id, self.catalog.version)

    def _embed(self, histories: Sequence[np.ndarray], segments: Segments, features: ItemFeatures) -> Tensor:
        """Embedded prompts [B, T, D], padded on the right, of histories in rows of `segments` and `features`."""
        encoder = UserEncoder(self._language_model, self._heads, self._builder, segments, features)
        return encoder.embed(self._batch(histories, segments))

    def _batch(self, histories: Sequence[np.ndarray], segments: Segments) -> PromptBatch:
        return pad([self._builder.recommend(history, segments) for history in histories], self._device)


class Naive(Rival):
    """One history at a time, from its texts to its scores. Serve it with batches of one."""

    def __init__(self, store: Store, version: str, device: str = "auto", *, head: bool = True) -> None:
        """`head`: run the vocabulary head over the prompt and keep all layers' states, as published code does."""
        super().__init__(store, version, device)
        self._head = head

    def _states(self, histories: Sequence[np.ndarray]) -> Tensor:
        return torch.cat([self._state(rows) for rows in histories])

    def _state(self, rows: np.ndarray) -> Tensor:
        with self._stages.timed("tokenise"):
            segments = build_segments(self._language_model.tokenizer, self._texts(rows), self._prompt_config)
        with self._stages.timed("assemble"):
            embed_1TD = self._embed([np.arange(len(rows))], segments, self._features(rows))
        with self._stages.timed("forward"):
            decoder = self._language_model.decoder
            if self._head:
                output = decoder(inputs_embeds=embed_1TD, output_hidden_states=True, use_cache=False)
                return output.hidden_states[-1][:, -1].float()  # type: ignore[no-any-return]
            output = decoder.base_model(inputs_embeds=embed_1TD, use_cache=False)
            return output.last_hidden_state[:, -1].float()  # type: ignore[no-any-return]

    def _texts(self, rows: np.ndarray) -> pa.Table:
        items = [self.catalog.item(int(row)) for row in rows]
        return pa.table({name: pa.array([getattr(item, name) for item in items], pa.string()) for name in TEXTS})

    def _features(self, rows: np.ndarray) -> ItemFeatures:
        features = self.catalog.features
        return ItemFeatures(
            {signal: features.vectors[signal][rows] for signal in SIGNALS},
            {signal: features.origin[signal][rows] for signal in SIGNALS},
        )


class Padded(Rival):
    """Whatever the batcher hands over, in one padded forward pass of the decoder."""

    def _states(self, histories: Sequence[np.ndarray]) -> Tensor:
        catalog = self.catalog
        with self._stages.timed("assemble"):
            embed_BTD = self._embed(histories, catalog.segments, catalog.features)
            lengths = [self._prefix_tokens + int(catalog.segments.lengths(rows).sum()) for rows in histories]
        with self._stages.timed("forward"):
            # No mask: under causal attention a token never sees the padding on its right.
            output = self._language_model.decoder.base_model(inputs_embeds=embed_BTD, use_cache=False)
            last = torch.tensor(lengths, device=self._device) - 1
            state_BTD: Tensor = output.last_hidden_state
            return state_BTD[torch.arange(len(lengths), device=self._device), last].float()
