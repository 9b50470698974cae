"""The prompt: `static prefix | segment_1 ... segment_L | tail`, as token ids with placeholders.

[VISUAL], [CF], [ITEM] and [REC] are not words: they are the negative ids below, replaced by vectors when a prompt is
embedded. A tail is what follows the history: the instruction ending in [REC] (RERI), or a question and its answer
(RISA, see offline/risa.py). Several tails may follow one history in one pass; each sees the prefix, the segments up to
its own branch point, and itself.

# T tokens of a prompt or batch, L items of a history, N catalog items, B prompts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.config import PromptConfig
from model.errors import InvalidInputError
from model.summaries import summarise

VISUAL, CF, REC, ITEM = -1, -2, -3, -4
TRUNK = -1
"""Branch number of the prefix and the segments."""

PREFIX = "A shopper chose, from the oldest to the newest:\n"
INSTRUCTION = "The next choice:"
LABELS = {"title": "Title:", "brand": "Brand:", "category": "Category:", "description": "About:", "summary": "About:"}
PLACEHOLDERS = {"image": ("Picture:", VISUAL), "cf": ("Shoppers:", CF), "item": ("Item:", ITEM)}
OF_ITEMS = (VISUAL, CF, ITEM)
"""Placeholders that show an item."""


@dataclass(frozen=True)
class Segments:
    """Token ids of every item's part of the prompt: item i owns tokens[offsets[i]:offsets[i+1]]."""

    tokens: np.ndarray
    """int32 [sum of lengths]"""
    offsets: np.ndarray
    """int64 [N+1]"""

    def of(self, row: int) -> np.ndarray:
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        lengths: np.ndarray = self.offsets[rows + 1] - self.offsets[rows]
        return lengths


def build_segments(tokenizer: Any, items: pa.Table, config: PromptConfig) -> Segments:
    """Tokenise the segments of all items. `items` has the text columns of offline/dataset.py's ITEM_SCHEMA."""
    limits = {
        "title": config.max_title_tokens,
        "description": config.max_description_tokens,
        "summary": config.max_description_tokens,
    }
    segments: list[list[int]] = [[] for _ in range(items.num_rows)]
    for number, field in enumerate(config.fields):
        separator = "" if number == 0 else "; "
        if field in PLACEHOLDERS:
            label, placeholder = PLACEHOLDERS[field]
            tail = [*_ids(tokenizer, [separator + label])[0], placeholder]
            for segment in segments:
                segment.extend(tail)
            continue
        label_ids = _ids(tokenizer, [separator + LABELS[field]])[0]
        values = _texts(items, field, config)
        known = {row: " " + value for row, value in enumerate(values) if value}
        for row, ids in zip(known, _ids(tokenizer, list(known.values())), strict=True):
            segments[row].extend(label_ids + ids[: limits.get(field, config.max_title_tokens)])
    end = _ids(tokenizer, ["\n"])[0]
    for segment in segments:
        segment.extend(end)
    lengths = np.array([len(segment) for segment in segments], np.int64)
    return Segments(
        np.concatenate([np.array(segment, np.int32) for segment in segments]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def _texts(items: pa.Table, field: str, config: PromptConfig) -> list[str | None]:
    """What a field of words shows of every item."""
    if field != "summary":
        return list(items[field].to_pylist())
    return [text and summarise(text, config.max_summary_characters) for text in items["description"].to_pylist()]


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False).input_ids
    return ids


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready to be padded into a batch. All arrays have length T."""

    token: np.ndarray
    """Token ids; negative: a placeholder."""
    item: np.ndarray
    """Row of the item that a placeholder of OF_ITEMS shows; -1 elsewhere."""
    position: np.ndarray
    """Position as the language model counts it; a tail continues where it branches off."""
    branch: np.ndarray
    """TRUNK, or the number of the tail."""
    limit: np.ndarray
    """How many trunk tokens a token may see."""
    answer: np.ndarray
    """True where the token belongs to an answer that RISA teaches."""

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class Tail:
    """Tokens that follow the first `num_items` segments of a history."""

    tokens: np.ndarray
    num_items: int
    num_answer: int = 0
    """How many of the last tokens are a RISA answer."""


class PromptBuilder:
    """Assembles prompts from segments that were tokenised once."""

    def __init__(self, tokenizer: Any, config: PromptConfig) -> None:
        self._config = config
        self.prefix = np.array(_with_bos(tokenizer, PREFIX), np.int32)
        self.instruction = np.array([*_ids(tokenizer, [INSTRUCTION])[0], REC], np.int32)

    def keep_newest(self, history: np.ndarray, segments: Segments) -> np.ndarray:
        """The newest items (rows, oldest first) that fit `max_history`, then `max_tokens`; whole items only.

        Beyond `max_history` the oldest leave in strides of `history_stride`, counted from the history's beginning: as
        long as the window stays where it is, a longer history goes on where a shorter one ended.
        """
        stride = self._config.history_stride
        num_beyond = max(0, len(history) - self._config.max_history)
        history = history[-(-num_beyond // stride) * stride :]
        room = self._config.max_tokens - len(self.prefix) - len(self.instruction)
        newest_first = np.cumsum(segments.lengths(history)[::-1])
        return history[len(history) - int(np.searchsorted(newest_first, room, side="right")) :]

    def check_room(self, segments: Segments) -> None:
        """Raises InvalidInputError when some item alone is too long for a prompt; its histories could not be read."""
        needed = len(self.prefix) + len(self.instruction) + int(np.diff(segments.offsets).max(initial=0))
        if needed > self._config.max_tokens:
            raise InvalidInputError(
                f"prompt.max_tokens is {self._config.max_tokens}, but a history of one item takes up to {needed} "
                "tokens: raise it, or lower prompt.max_title_tokens or prompt.max_description_tokens",
                "prompt.max_tokens",
            )

    def recommend(self, history: np.ndarray, segments: Segments) -> Prompt:
        """Prefix, all segments of `history` (already cut), instruction, [REC] as the last token."""
        return self.build(history, segments, [Tail(self.instruction, len(history))])

    def build(self, history: np.ndarray, segments: Segments, tails: Sequence[Tail]) -> Prompt:
        """One trunk and any number of tails that do not see each other."""
        parts = [segments.of(row) for row in history]
        ends = np.cumsum([len(self.prefix), *(len(part) for part in parts)])
        num_trunk = int(ends[-1])
        token = np.concatenate([self.prefix, *parts, *(tail.tokens for tail in tails)])
        item = np.full(len(token), -1, np.int64)
        owner = np.repeat(np.asarray(history, np.int64), [len(part) for part in parts])
        in_segments = slice(len(self.prefix), num_trunk)
        item[in_segments] = np.where(np.isin(token[in_segments], OF_ITEMS), owner, -1)
        trunk = np.arange(num_trunk)
        position, branch, limit = [trunk], [np.full(num_trunk, TRUNK)], [trunk + 1]
        answer = [np.zeros(num_trunk, bool)]
        for number, tail in enumerate(tails):
            start = int(ends[tail.num_items])
            position.append(start + np.arange(len(tail.tokens)))
            branch.append(np.full(len(tail.tokens), number))
            limit.append(np.full(len(tail.tokens), start))
            answer.append(np.arange(len(tail.tokens)) >= len(tail.tokens) - tail.num_answer)
        return Prompt(token, item, *(np.concatenate(parts) for parts in (position, branch, limit, answer)))


def _with_bos(tokenizer: Any, text: str) -> list[int]:
    """Ids of the prompt's beginning, with the special tokens that this tokenizer puts in front of a text."""
    plain = _ids(tokenizer, [text])[0]
    special: list[int] = tokenizer(text).input_ids
    starts = [at for at in range(len(special) - len(plain) + 1) if special[at : at + len(plain)] == plain]
    return special[: starts[0]] + plain if starts else plain


@dataclass(frozen=True)
class PromptBatch:
    """Prompts padded on the right. `mask_BTT` is None when plain causal attention is right."""

    token_BT: Tensor
    item_BT: Tensor
    position_BT: Tensor
    mask_BTT: Tensor | None
    answer_BT: Tensor

    @property
    def rec_positions(self) -> tuple[Tensor, Tensor]:
        """(row, column) of every [REC], row by row, tail by tail."""
        found = (self.token_BT == REC).nonzero(as_tuple=True)
        return found[0], found[1]


def pad(prompts: Sequence[Prompt], device: torch.device, *, branched: bool | None = None) -> PromptBatch:
    """Pad prompts on the right and lay out who sees whom.

    A prompt with at most one tail, at the end of its trunk, needs no mask: causal attention never looks at the padding
    on its right. `branched` forces the mask on or off; by default it is built when a prompt needs it.
    """
    lengths = [len(prompt) for prompt in prompts]
    shape = (len(prompts), max(lengths))
    token, item = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    # Padding goes on counting: positions that fell back to zero would look like another packed sequence.
    position = np.tile(np.arange(shape[1]), (shape[0], 1))
    branch, limit = np.full(shape, -2, np.int64), np.zeros(shape, np.int64)
    answer = np.zeros(shape, bool)
    for row, prompt in enumerate(prompts):
        end = len(prompt)
        token[row, :end], item[row, :end] = prompt.token, prompt.item
        position[row, :end], branch[row, :end], limit[row, :end] = prompt.position, prompt.branch, prompt.limit
        answer[row, :end] = prompt.answer
    if branched is None:
        branched = any(not np.array_equal(prompt.position, np.arange(len(prompt))) for prompt in prompts)
    mask = _visible(torch.from_numpy(branch), torch.from_numpy(limit)) if branched else None
    return PromptBatch(
        token_BT=torch.from_numpy(token).to(device),
        item_BT=torch.from_numpy(item).to(device),
        position_BT=torch.from_numpy(position).to(device),
        mask_BTT=None if mask is None else mask.to(device),
        answer_BT=torch.from_numpy(answer).to(device),
    )


def _visible(branch_BT: Tensor, limit_BT: Tensor) -> Tensor:
    """bool [B, T, T]: True where the row's token sees the column's."""
    T = branch_BT.shape[1]
    column = torch.arange(T)
    trunk = (branch_BT == TRUNK)[:, None, :] & (column[None, None, :] < limit_BT[:, :, None])
    same_tail = (branch_BT[:, :, None] == branch_BT[:, None, :]) & (column[None, :] <= column[:, None])
    return trunk | same_tail
