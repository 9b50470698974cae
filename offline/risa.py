"""RISA: questions about the next item, and their answers (paper, Eq. 3).

The wordings are ours: four properties, five questions each, one answer form each. Knows text and token ids only.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch.nn.functional as F
from torch import Tensor

from model.language_model import LanguageModel
from model.prompt import PromptBatch, Tail

Property = Literal["title", "brand", "category", "description"]
PROPERTIES: tuple[Property, ...] = ("title", "brand", "category", "description")

QUESTIONS: dict[Property, tuple[str, ...]] = {
    "title": (
        "What is the title of the item chosen next?",
        "Which product will this shopper pick next? Name it.",
        "Give the name of the next item.",
        "How is the item that comes next called?",
        "The next purchase has which title?",
    ),
    "brand": (
        "Which brand makes the item chosen next?",
        "From what brand will this shopper buy next?",
        "Name the maker of the next item.",
        "Whose product comes next?",
        "The next purchase carries which brand?",
    ),
    "category": (
        "What kind of item is chosen next?",
        "In which category will this shopper look next?",
        "Name the category of the next item.",
        "To what group of products does the next item belong?",
        "The next purchase falls into which category?",
    ),
    "description": (
        "Describe the item chosen next.",
        "What can be said of the product that this shopper picks next?",
        "Give a description of the next item.",
        "What is the next item like?",
        "How would a shop describe the next purchase?",
    ),
}
ANSWERS: dict[Property, str] = {
    "title": "It is called {}.",
    "brand": "It is made by {}.",
    "category": "It belongs to {}.",
    "description": "It is described so: {}",
}


class RisaTails:
    """Draws the question and answer on one item."""

    def __init__(self, tokenizer: Any, items: pa.Table, max_answer_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._columns = {name: items[name] for name in PROPERTIES}
        self._max_answer_tokens = max_answer_tokens
        self._end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]

    def draw(self, row: int, num_items: int, generator: np.random.Generator) -> Tail:
        """A tail after `num_items` history items asking for one property, among those that item `row` has."""
        values = {name: column[row].as_py() for name, column in self._columns.items()}
        known = [name for name in PROPERTIES if values[name]]
        name = known[int(generator.integers(len(known)))]
        question = QUESTIONS[name][int(generator.integers(len(QUESTIONS[name])))]
        return self.tail(question, ANSWERS[name].format(values[name]), num_items)

    def tail(self, question: str, answer: str, num_items: int) -> Tail:
        """Token ids of `question` and `answer`, closed by the end-of-text token unless the answer was cut."""
        question_ids = self._ids(question)
        answer_ids = (self._ids(" " + answer) + self._end)[: self._max_answer_tokens]
        return Tail(np.array(question_ids + answer_ids, np.int32), num_items, num_answer=len(answer_ids))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids


def risa_loss(language_model: LanguageModel, state_BTD: Tensor, batch: PromptBatch) -> Tensor:
    """Mean cross-entropy of the answer tokens, each predicted from the state one token before it."""
    row, column = batch.answer_BT.nonzero(as_tuple=True)
    logits = language_model.head(state_BTD[row, column - 1])
    return F.cross_entropy(logits.float(), batch.token_BT[row, column])
