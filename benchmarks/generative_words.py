"""Three ways to write an item for a generator: its title, semantic codes, or one token of its own.

`titles`        the words of the language model, frozen (TALLRec, TRSR)
`semantic-ids`  codes of residual k-means over the item's features; new words, learned (LC-Rec)
`item-tokens`   one new word an item, learned (UniMP)

# N items, V words, D language-model width
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import torch
from torch import Tensor

from model.heads import ItemFeatures
from model.language_model import LanguageModel

SYSTEMS = ("titles", "semantic-ids", "item-tokens")
NUM_CODES = 64
"""Codes of a level, LC-Rec has 256 for catalogs about seven times as large."""
NUM_CLUSTERED_LEVELS = 3
"""Levels that k-means makes; one more tells apart the items that share them."""
END = "\n"


@dataclass(frozen=True)
class Words:
    """How items are written, and what the language model sees for a word."""

    spellings: list[np.ndarray]
    """Of every item: its words, int64."""
    embedding_VD: Tensor
    """float32: word embeddings; where learned, those at the start"""
    learned: bool
    """Whether words have embeddings of their own, for reading and for writing, or are the frozen model's."""
    token_V: np.ndarray | None = None
    """The frozen model's token of every word, where words are not learned."""


def make_words(
    system: str, language_model: LanguageModel, titles: list[str], max_tokens: int, features: ItemFeatures, seed: int
) -> Words:
    """Items as one of SYSTEMS writes them."""
    tokens = title_tokens(language_model, titles, max_tokens)
    if system == "titles":
        return title_words(language_model, tokens)
    spellings = item_spellings(len(titles)) if system == "item-tokens" else semantic_ids(features, seed)
    return Words(spellings, embeddings_from_titles(language_model, tokens, spellings), learned=True)


def title_tokens(language_model: LanguageModel, titles: list[str], max_tokens: int) -> list[list[int]]:
    """Every title as the prompt would show it, cut at `max_tokens`, with an end that no title contains."""
    tokenizer = language_model.tokenizer
    (end,) = tokenizer([END], add_special_tokens=False).input_ids
    ids = tokenizer([f" {title}" for title in titles], add_special_tokens=False).input_ids
    return [[*words[:max_tokens], *end] for words in ids]


def title_words(language_model: LanguageModel, tokens: list[list[int]]) -> Words:
    """The tokens that occur in titles are all the words there are: no other could be written."""
    token_V, word = np.unique(np.concatenate(tokens), return_inverse=True)
    spellings = np.split(word, np.cumsum([len(ids) for ids in tokens])[:-1])
    embedding_VD = language_model.embed(torch.from_numpy(token_V).to(language_model.device)).float()
    return Words(spellings, embedding_VD, learned=False, token_V=token_V)


def item_spellings(num_items: int) -> list[np.ndarray]:
    """Item i is word i."""
    return list(np.arange(num_items)[:, None])


def semantic_ids(features: ItemFeatures, seed: int, num_codes: int = NUM_CODES) -> list[np.ndarray]:
    """Codes by residual k-means over text and image, coarse to fine; the last code tells equal ones apart."""
    residual = np.concatenate([_standardised(features.vectors[signal]) for signal in ("text", "image")], axis=1)
    levels = []
    for level in range(NUM_CLUSTERED_LEVELS):
        k_means = faiss.Kmeans(
            residual.shape[1], min(num_codes, len(residual)), seed=seed + level, min_points_per_centroid=1
        )
        k_means.train(residual)
        code = k_means.index.search(residual, 1)[1][:, 0]
        residual = residual - k_means.centroids[code]
        levels.append(code)
    cells = np.unique(np.column_stack(levels), axis=0, return_inverse=True)[1].reshape(-1)
    codes = np.column_stack([*levels, _number_within(cells)])
    starts = np.cumsum(codes.max(axis=0) + 1) - (codes.max(axis=0) + 1)
    return list(codes.astype(np.int64) + starts)


def embeddings_from_titles(
    language_model: LanguageModel, tokens: list[list[int]], spellings: list[np.ndarray]
) -> Tensor:
    """float32 [V, D]: the mean title of the items that have a word, centred, and as large as the model's own words."""
    mean_ND = torch.stack([_mean_embedding(language_model, ids) for ids in tokens])
    item = torch.from_numpy(np.repeat(np.arange(len(spellings)), [len(words) for words in spellings]))
    word = torch.from_numpy(np.concatenate(spellings))
    num_V = torch.bincount(word)
    sum_VD = torch.zeros(len(num_V), language_model.width).index_add_(0, word, mean_ND[item])
    mean_VD = sum_VD / num_V[:, None]
    centred_VD = mean_VD - mean_VD.mean(0)
    return centred_VD * (language_model.embedding_rms / centred_VD.pow(2).mean().sqrt())


def _mean_embedding(language_model: LanguageModel, ids: list[int]) -> Tensor:
    return language_model.embed(torch.tensor(ids, device=language_model.device)).float().mean(0).cpu()


def _standardised(vectors: np.ndarray) -> np.ndarray:
    """Centred, and one in length on average, so that wide signals do not outweigh narrow ones."""
    centred = np.asarray(vectors, np.float32) - np.mean(vectors, axis=0, dtype=np.float32)
    return centred / np.maximum(np.linalg.norm(centred, axis=1).mean(), 1e-6)


def _number_within(cells: np.ndarray) -> np.ndarray:
    """0, 1, 2 ... for the members of every cell, in order."""
    order = np.argsort(cells, kind="stable")
    start_of_cell = np.searchsorted(cells[order], cells[order])
    numbers = np.empty(len(cells), np.int64)
    numbers[order] = np.arange(len(cells)) - start_of_cell
    return numbers
