"""What a service is asked in a measurement: histories over a catalog, as long as real people's, each another one.

# L items of a history, T tokens of a prompt
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from benchmarks.flops import state_flops
from model.catalog import Catalog, current_version
from model.checkpoint import load_checkpoint
from model.language_model import load_tokenizer
from model.prompt import Prompt, PromptBuilder
from model.store import Store

NUM_STRATA = 20
GIFT_CARDS = {4: 206, 5: 114, 6: 52, 7: 32, 8: 12, 9: 8, 10: 29}
"""Test users by their number of earlier events, those with more than ten at ten. Amazon 2018, Gift Cards, 5-core (453
users), read by offline.ingest."""


class Questions:
    """Histories of random items of the current catalog of a store."""

    def __init__(self, store: Store) -> None:
        version = current_version(store.catalogs)
        if version is None:
            raise ValueError(f"no catalog is published in {store.catalogs}")
        self._catalog = Catalog.load(store.catalogs / version)
        config = load_checkpoint(store.checkpoints / self._catalog.checkpoint_id).config
        self.language_model = config.language_model
        self._builder = PromptBuilder(load_tokenizer(config.language_model, store.models), config.prompt)

    def histories(self, num: int, lengths: npt.NDArray[np.int64], seed: int) -> list[npt.NDArray[np.int64]]:
        """`num` histories as item rows; every NUM_STRATA in a row have the same mixture of `lengths`."""
        generator = np.random.default_rng(seed)
        strata = np.quantile(lengths, (np.arange(NUM_STRATA) + 0.5) / NUM_STRATA, method="inverted_cdf").astype(int)
        mixed = np.concatenate([generator.permutation(strata) for _ in range(-(-num // NUM_STRATA))])[:num]
        return [generator.choice(self._catalog.num_items, length, replace=False) for length in mixed]

    def body(self, history: npt.NDArray[np.int64]) -> str:
        """The JSON of a request."""
        return json.dumps({"history": [self._catalog.item_id(int(row)) for row in history]})

    def prompt(self, history: npt.NDArray[np.int64]) -> Prompt:
        return self._builder.recommend(history, self._catalog.segments)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens at the beginning of every prompt."""
        return len(self.prompt(np.empty(0, np.int64))) - len(self._builder.instruction)

    def useful_flops(self, shape: Any, history: npt.NDArray[np.int64]) -> int:
        """What h([REC]) needs beyond the static prefix, by the model's shape (see benchmarks/flops.py)."""
        return state_flops(shape, len(self.prompt(history)), self.num_prefix_tokens)


def gift_card_lengths() -> npt.NDArray[np.int64]:
    """One entry a test user of GIFT_CARDS."""
    return np.repeat(np.array(list(GIFT_CARDS), np.int64), list(GIFT_CARDS.values()))


def dataset_lengths(folder: Path, max_history: int) -> npt.NDArray[np.int64]:
    """Events before the last one of every user of a dataset that offline.ingest wrote, at most `max_history`."""
    users = pq.read_table(folder / "interactions.parquet", columns=["user_id"])["user_id"].to_pylist()
    lengths = np.array(list(Counter(users).values()), np.int64) - 1
    return np.clip(lengths, 1, max_history)
