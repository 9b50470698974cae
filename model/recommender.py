"""One immutable snapshot of what is served: language model, checkpoint and catalog, ready to rank.

`rank` and `rank_prepared` must be called from one thread only, the one that owns the device. Knows neither HTTP nor
users.

# B queries with a usable history, P shared width, K results
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.bounded_cache import DEFAULT_CACHES, CacheSizes
from model.catalog import Catalog, current_version
from model.checkpoint import Checkpoint, load_checkpoint
from model.config import SIGNALS
from model.encoder import UserEncoder
from model.engine import Engine
from model.errors import ArtifactError, NotReadyError
from model.language_model import LanguageModel, choose_device, load_language_model
from model.prompt import PromptBuilder
from model.ranking import Query, RankedItem, Ranking, Signals, Weights
from model.store import Store


@dataclass(frozen=True, eq=False)
class PreparedQuery:
    """A query in terms of one catalog."""

    query: Query
    rows: np.ndarray
    """int64: rows of the known items, oldest first"""
    used: np.ndarray
    """The newest of them that fit the prompt."""
    unknown: tuple[str, ...]
    num_tokens: int
    """Tokens that its forward pass costs; 0 when it needs none."""

    @property
    def key(self) -> Hashable:
        """Equal for queries that have the same ranking."""
        return self.query


@dataclass(frozen=True, eq=False)
class _Choice:
    """The rows that may answer a query: `eligible` (None: all) without `excluded`."""

    excluded: np.ndarray
    eligible: np.ndarray | None


class Recommender:
    """Ranks the whole catalog for histories (paper, Eq. 8)."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        catalog: Catalog,
        language_model: LanguageModel,
        store: Store,
        caches: CacheSizes = DEFAULT_CACHES,
    ) -> None:
        """`language_model` is packed, and from then on serves only here.

        Raises ArtifactError when checkpoint, catalog and language model do not belong together.
        """
        self._check(checkpoint, catalog, language_model)
        self.catalog = catalog
        self._checkpoint = checkpoint
        self._store = store
        self._language_model = language_model
        checkpoint.joined.to(language_model.device)
        self._caches = caches
        self._builder = PromptBuilder(language_model.tokenizer, checkpoint.config.prompt)
        encoder = UserEncoder(language_model, checkpoint.heads, self._builder, catalog.segments, catalog.features)
        self._engine = Engine(encoder, language_model.pack(), caches)
        self._num_events = max(1, int(catalog.popularity.sum()))

    @classmethod
    def load(
        cls,
        store: Store,
        version: str | None = None,
        device: str = "auto",
        caches: CacheSizes = DEFAULT_CACHES,
    ) -> Recommender:
        """Load a catalog version (default: the one that CURRENT names) with its checkpoint and language model.

        Raises NotReadyError when nothing is published yet, ArtifactError when a file is damaged or does not fit.
        """
        torch_device = choose_device(device)
        catalog = _load_catalog(store, version, torch_device)
        checkpoint = load_checkpoint(store.checkpoints / catalog.checkpoint_id)
        language_model = load_language_model(checkpoint.config.language_model, store.models, torch_device)
        return cls(checkpoint, catalog, language_model, store, caches)

    def reload(self, version: str | None = None) -> Recommender:
        """A recommender of another catalog version; checkpoint and language model are shared where they can be."""
        catalog = _load_catalog(self._store, version, self._language_model.device)
        if catalog.checkpoint_id == self.checkpoint_id:
            return Recommender(self._checkpoint, catalog, self._language_model, self._store, self._caches)
        checkpoint = load_checkpoint(self._store.checkpoints / catalog.checkpoint_id)
        language_model = self._language_model
        if checkpoint.config.language_model != self._checkpoint.config.language_model:
            language_model = load_language_model(
                checkpoint.config.language_model, self._store.models, language_model.device
            )
        return Recommender(checkpoint, catalog, language_model, self._store, self._caches)

    @property
    def checkpoint_id(self) -> str:
        return self._checkpoint.id

    @property
    def catalog_version(self) -> str:
        return self.catalog.version

    @property
    def stage_s(self) -> Mapping[str, float]:
        """Seconds spent since the start, by stage of the work on the device thread."""
        return self._engine.stages.seconds

    def warm_up(self) -> None:
        """Run the shapes of forward passes that serving meets, and rank the checkpoint's canary histories.

        Raises ArtifactError when they do not give a finite ranking.
        """
        known = [
            history for history in self._checkpoint.canaries if any(self.catalog.row(i) is not None for i in history)
        ]
        prepared = [self.prepare(Query(history)) for history in known]
        if prepared:
            self._engine.warm_up(max((one.used for one in prepared), key=len))
        for ranking in self.rank_prepared(prepared):
            if not all(np.isfinite(item.score) for item in ranking.items):
                raise ArtifactError(
                    f"catalog {self.catalog_version} ranks a canary history with scores that are no numbers"
                )

    def prepare(self, query: Query) -> PreparedQuery:
        """The query in rows of this catalog, cut to what the prompt holds. Any thread; no tensors."""
        found = [(item_id, self.catalog.row(item_id)) for item_id in query.history]
        rows = np.array([row for _, row in found if row is not None], np.int64)
        unknown = tuple(dict.fromkeys(item_id for item_id, row in found if row is None))
        used = self._builder.keep_newest(rows, self.catalog.segments)
        num_tokens = self._engine.num_tokens(used) if len(used) else 0
        return PreparedQuery(query, rows, used, unknown, num_tokens)

    def rank(self, queries: Sequence[Query]) -> list[Ranking]:
        """Answer queries in order. An empty or all-unknown history gets the popularity ranking."""
        return self.rank_prepared([self.prepare(query) for query in queries])

    def rank_prepared(self, prepared: Sequence[PreparedQuery]) -> list[Ranking]:
        """Answer, in order, queries that this recommender has prepared."""
        choices = [self._choice(one) for one in prepared]
        answers: list[tuple[RankedItem, ...]] = [()] * len(prepared)
        modelled = [at for at, one in enumerate(prepared) if len(one.used)]
        if modelled:
            ranked = self._model_ranking([prepared[at] for at in modelled], [choices[at] for at in modelled])
            for at, items in zip(modelled, ranked, strict=True):
                answers[at] = items
        for at in set(range(len(prepared))).difference(modelled):
            answers[at] = self._popular_ranking(prepared[at].query, choices[at])
        return [
            Ranking(
                items=items,
                unknown_items=one.unknown,
                history_used=len(one.used),
                history_truncated=len(one.used) < len(one.rows),
                checkpoint=self.checkpoint_id,
                catalog_version=self.catalog_version,
                unknown_filters=self.catalog.unknown_filters(one.query.categories, one.query.brands),
            )
            for items, one in zip(answers, prepared, strict=True)
        ]

    def _model_ranking(
        self, prepared: Sequence[PreparedQuery], choices: Sequence[_Choice]
    ) -> list[tuple[RankedItem, ...]]:
        queries = [one.query for one in prepared]
        user_B3P = self._engine.encode([one.used for one in prepared])
        with self._engine.stages.timed("join"):
            joined, histories = self._checkpoint.joined, [one.rows for one in prepared]
            user_BQ = joined.user_vectors(user_B3P, histories, self.catalog.features)
        user_BQ = user_BQ * np.stack([self._scale(query.weights) for query in queries])
        with self._engine.stages.timed("search"):
            k = max(query.k for query in queries)
            excluded, eligible = zip(*((choice.excluded, choice.eligible) for choice in choices), strict=True)
            scores_BK, rows_BK = self.catalog.index.search(user_BQ, k, excluded, eligible)
        with self._engine.stages.timed("addends"):
            return [
                self._ranked(user_Q, scores_K[: query.k], rows_K[: query.k])
                for query, user_Q, scores_K, rows_K in zip(queries, user_BQ, scores_BK, rows_BK, strict=True)
            ]

    def _ranked(self, user_Q: np.ndarray, scores_K: np.ndarray, rows_K: np.ndarray) -> tuple[RankedItem, ...]:
        rows_K = rows_K[rows_K >= 0]
        addends_K3 = self.catalog.index.addends(user_Q, rows_K, self._checkpoint.joined.widths).astype(float)
        return tuple(
            RankedItem(self.catalog.item_id(row), float(score), "model", Signals(*addends))
            for row, score, addends in zip(rows_K, scores_K, addends_K3.tolist(), strict=False)
        )

    def _popular_ranking(self, query: Query, choice: _Choice) -> tuple[RankedItem, ...]:
        first = self.catalog.most_popular(query.k + len(choice.excluded), choice.eligible)
        rows = first[~np.isin(first, choice.excluded)][: query.k]
        return tuple(
            RankedItem(
                self.catalog.item_id(row),
                int(self.catalog.popularity[row]) / self._num_events,
                "popular",
                signals=None,
            )
            for row in rows
        )

    def _choice(self, prepared: PreparedQuery) -> _Choice:
        query = prepared.query
        named = [row for row in map(self.catalog.row, query.exclude) if row is not None]
        seen = np.empty(0, np.int64) if query.allow_repeats else prepared.rows
        return _Choice(
            excluded=np.unique(np.concatenate([seen, np.array(named, np.int64)])),
            eligible=self.catalog.eligible_rows(query.categories, query.brands),
        )

    def _scale(self, weights: Weights) -> np.ndarray:
        """float32 [Q]: a caller's weights scale the signals' shares of the user vector."""
        scales = np.array([getattr(weights, signal) for signal in SIGNALS], np.float32)
        return np.repeat(scales, self._checkpoint.joined.widths)

    @staticmethod
    def _check(checkpoint: Checkpoint, catalog: Catalog, language_model: LanguageModel) -> None:
        if catalog.checkpoint_id != checkpoint.id:
            raise ArtifactError(
                f"catalog {catalog.version} was made with checkpoint {catalog.checkpoint_id}, "
                f"not {checkpoint.id}: reindex"
            )
        width = sum(checkpoint.joined.widths)
        if catalog.item_vectors.shape[1] != width:
            raise ArtifactError(
                f"catalog {catalog.version} has item vectors of width {catalog.item_vectors.shape[1]}; its checkpoint "
                f"makes {width}: reindex"
            )
        if len(checkpoint.heads.rec) != language_model.width:
            raise ArtifactError(
                f"checkpoint {checkpoint.id} was trained on a language model of width {len(checkpoint.heads.rec)}; "
                f"the one loaded has {language_model.width}"
            )


def _load_catalog(store: Store, version: str | None, device: torch.device) -> Catalog:
    version = version or current_version(store.catalogs)
    if version is None:
        raise NotReadyError(f"no catalog is published in {store.catalogs}: run `python -m offline.reindex`")
    return Catalog.load(store.catalogs / version, device=str(device))
