"""What the libraries are given of a dataset: training sequences, events as columns, and settings in their words.

Knows numpy only, so that it is tested without the libraries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.config import CFConfig
from model.errors import InvalidInputError
from offline.dataset import Dataset


def training_sequences(dataset: Dataset, config: CFConfig) -> list[np.ndarray]:
    """Training histories cut into pieces of `max_history` + 1 events from the newest on; neighbours share one event.

    The pairs of an event and the next are those that our SASRec trains on, each once. RecTools keeps the newest piece
    of a user only, so each piece is given to it as a user.
    """
    known_N = dataset.num_train_events >= config.min_events
    sequences = []
    for user in range(len(dataset.users)):
        rows = dataset.train_events(user)
        rows = rows[known_N[rows]]
        for end in range(len(rows), 1, -config.max_history):
            sequences.append(rows[max(end - config.max_history - 1, 0) : end])
    return sequences


def event_columns(sequences: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """All events of all sequences, in order: which sequence, which item row, and its place in the sequence."""
    lengths = [len(rows) for rows in sequences]
    return {
        "user_id": np.repeat(np.arange(len(sequences)), lengths),
        "item_id": np.concatenate(sequences).astype(np.int64),
        "datetime": np.concatenate([np.arange(length) for length in lengths]),
    }


def transformer_settings(config: CFConfig) -> dict[str, Any]:
    """Our SASRec as RecTools names its settings; AdamW's betas are .9 and .98 there too, but without weight decay.

    Two of them are not RecTools' defaults: as published, item embeddings are scaled by sqrt(width) before positions are
    added; as in ours, padding is not attended to.
    """
    if config.weight_decay:
        raise InvalidInputError(
            f"cf.weight_decay is {config.weight_decay}, which RecTools cannot do: set it to 0 to compare",
            "cf.weight_decay",
        )
    return default_settings(config) | {"pos_encoding_kwargs": {"use_scale_factor": True}, "use_key_padding_mask": True}


def default_settings(config: CFConfig) -> dict[str, Any]:
    """Sizes, loss and learning rate of our SASRec; all else as RecTools has it."""
    return {
        "n_blocks": config.num_blocks,
        "n_heads": config.num_heads,
        "n_factors": config.width,
        "dropout_rate": config.dropout,
        "session_max_len": config.max_history,
        "loss": {"softmax": "softmax", "bce": "BCE"}[config.loss],
        "n_negatives": config.num_negatives,
        "lr": config.learning_rate,
        "batch_size": config.batch_size,
    }
