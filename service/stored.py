"""The catalogs in the artifact store. The only place of the service that reaches the model itself."""

from __future__ import annotations

import gc
import os

from model.bounded_cache import DEFAULT_CACHES, CacheSizes
from model.store import Store
from service.protocols import Recommender

SPIN_COUNT = "1000"
"""How long a waiting OpenMP thread (libgomp) keeps its core before it sleeps. Left alone it waits for milliseconds: a
forward pass of 90 ms took 5.8 s as soon as another process used one of the two cores; so it takes 100 and 440 ms."""


class StoredCatalogs:
    """Publications read from a store. The model's libraries are imported at first use, off the event loop.

    Catalogs are loaded by one thread alone. A second team of OpenMP threads beside the device thread's would outnumber
    the cores, and libgomp would put every waiting thread to sleep at once: 125 ms for a forward pass of 90.
    """

    def __init__(self, store: Store, device: str, caches: CacheSizes = DEFAULT_CACHES) -> None:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when torch is imported, below
        self._store = store
        self._device = device
        self._caches = caches

    def current_version(self) -> str | None:
        from model.catalog import current_version

        return current_version(self._store.catalogs)

    def load(self, version: str, beside: Recommender | None) -> Recommender:
        from model import recommender
        from model.index_kinds import one_thread

        with one_thread():
            if isinstance(beside, recommender.Recommender):
                return beside.reload(version)
            loaded = recommender.Recommender.load(self._store, version, self._device, self._caches)
        freeze_what_stays()
        return loaded


def freeze_what_stays() -> None:
    """Keep the garbage collector off what was imported and loaded: a walk over it stops every thread, for 30 ms."""
    gc.collect()
    gc.freeze()
