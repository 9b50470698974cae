"""The catalogs in the artifact store. The only place of the service that reaches the model itself."""

from __future__ import annotations

import gc

from model.bounded_cache import DEFAULT_CACHES, CacheSizes
from model.store import Store
from service.protocols import Recommender


class StoredCatalogs:
    """Publications read from a store. The model's libraries are imported at first use, off the event loop."""

    def __init__(self, store: Store, device: str, caches: CacheSizes = DEFAULT_CACHES) -> None:
        self._store = store
        self._device = device
        self._caches = caches

    def current_version(self) -> str | None:
        from model.catalog import current_version

        return current_version(self._store.catalogs)

    def load(self, version: str, beside: Recommender | None) -> Recommender:
        from model import recommender

        if isinstance(beside, recommender.Recommender):
            return beside.reload(version)
        loaded = recommender.Recommender.load(self._store, version, self._device, self._caches)
        freeze_what_stays()
        return loaded


def freeze_what_stays() -> None:
    """Keep the garbage collector off what was imported and loaded: a walk over it stops every thread, for 30 ms."""
    gc.collect()
    gc.freeze()
