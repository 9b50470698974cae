"""The ordinary way to take the same optimiser step, to be measured beside ours: two passes over one history.

This is how the paper's released code trains, rebuilt here: one pass of the language model reads the history and a
question with its answer (RISA), another reads the same history and the instruction that ends in [REC] (RERI); texts are
tokenised anew at every step and for every pass; features lie in one file an item and are read one by one; both batches
are padded to their longest prompt. With `whole_head` each pass also computes the vocabulary's logits of every token, as
a causal language model of Hugging Face does when it is called. Without, it is what a careful engineer makes of it.

Losses, wordings and random draws are ours, so that both ways can be held against each other number by number. Where it
costs the rival nothing in speed it is spared work: it needs no attention mask, for its prompts are padded on the right.

# B windows, T tokens, D language-model width
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.config import SIGNALS, Config
from model.encoder import UserEncoder
from model.heads import ItemFeatures
from model.prompt import Prompt, PromptBatch, PromptBuilder, Tail, build_segments, pad
from offline.dataset import Dataset
from offline.losses import RERI
from offline.risa import RisaTails, risa_loss
from offline.windows import Window, cut_window

IGNORED = -100
"""The label that Hugging Face's loss leaves out."""


class FileRows:
    """One signal's features, a file an item; indexed by rows as the memory-mapped array is."""

    def __init__(self, folder: Path, width: int) -> None:
        self._folder = folder
        self.shape = (len(list(folder.glob("*.npy"))), width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([np.load(self._folder / f"{row}.npy", allow_pickle=False) for row in rows])


def write_files(features: ItemFeatures, folder: Path) -> ItemFeatures:
    """Write every feature of every item into a file of its own; returns the features as read from there."""
    vectors: dict[Any, Any] = {}
    for signal in SIGNALS:
        (folder / signal).mkdir(parents=True)
        for row, vector in enumerate(features.vectors[signal]):
            np.save(folder / signal / f"{row}.npy", np.asarray(vector), allow_pickle=False)
        vectors[signal] = FileRows(folder / signal, features.vectors[signal].shape[1])
    return ItemFeatures(vectors, features.origin)


@dataclass(frozen=True)
class TwoBatches:
    """What one step sees: a batch for each pass, and the features of the items that both show."""

    risa: PromptBatch
    reri: PromptBatch
    shown: ItemFeatures
    users: np.ndarray
    targets: np.ndarray
    generator: np.random.Generator


class TwoPass(nn.Module):
    """Both losses of a batch from two forward passes, one target a window. Trains the heads of `encoder`."""

    def __init__(
        self, encoder: UserEncoder, files: ItemFeatures, dataset: Dataset, config: Config, *, whole_head: bool
    ) -> None:
        super().__init__()
        self.heads = encoder.heads
        self._encoder = encoder
        self._files = files
        self._items = dataset.items
        self._config = config
        self.whole_head = whole_head
        self._reri = RERI(dataset, files, config.heads, config.train)
        self._risa = RisaTails(encoder.language_model.tokenizer, dataset.items, config.train.max_answer_tokens)

    def batch(self, windows: list[Window], generator: np.random.Generator) -> TwoBatches:
        """Prompts of some windows, tokenised here, and the features of their items, read here."""
        windows = [cut_window(window, self._encoder) for window in windows]
        prompts, device = self.prompts(windows, generator), self._encoder.language_model.device
        return TwoBatches(
            risa=pad(prompts[: len(windows)], device),
            reri=pad(prompts[len(windows) :], device),
            shown=self._read(np.concatenate([window.history for window in windows])),
            users=np.array([window.user for window in windows]),
            targets=np.array([window.targets[-1] for window in windows]),
            generator=generator,
        )

    def prompts(self, windows: list[Window], generator: np.random.Generator) -> list[Prompt]:
        """One RISA prompt a window, then one RERI prompt a window; items are numbered through the whole batch."""
        questions = [self._risa.draw(int(w.targets[-1]), len(w.history), generator) for w in windows]
        first = np.cumsum([0, *(len(window.history) for window in windows)])
        risa = [self._prompt(*parts) for parts in zip(windows, first, questions, strict=False)]
        return risa + [self._prompt(window, at) for window, at in zip(windows, first, strict=False)]

    def forward(self, batch: TwoBatches) -> dict[str, Tensor]:
        """{"risa", "reri_image", "reri_cf", "reri_text", "loss"}, as OnePass gives them."""
        train = self._config.train
        risa = self._risa_loss(batch)
        parts = self._reri.loss(self.heads, self._rec_states(batch), batch.users, batch.targets, batch.generator)
        loss = train.risa_weight * risa + train.reri_weight * torch.stack(list(parts.values())).sum()
        return {"risa": risa} | {f"reri_{signal}": part for signal, part in parts.items()} | {"loss": loss}

    def _risa_loss(self, batch: TwoBatches) -> Tensor:
        language_model, embed_BTD = self._encoder.language_model, self._embed(batch.risa, batch.shown)
        if not self.whole_head:
            return risa_loss(language_model, language_model.states(embed_BTD), batch.risa)
        labels_BT = batch.risa.token_BT.masked_fill(~batch.risa.answer_BT, IGNORED)
        loss: Tensor = language_model.decoder(inputs_embeds=embed_BTD, labels=labels_BT, use_cache=False).loss
        return loss

    def _rec_states(self, batch: TwoBatches) -> Tensor:
        language_model, embed_BTD = self._encoder.language_model, self._embed(batch.reri, batch.shown)
        if not self.whole_head:
            return language_model.states(embed_BTD)[batch.reri.rec_positions].float()
        output = language_model.decoder(inputs_embeds=embed_BTD, output_hidden_states=True, use_cache=False)
        state_BTD: Tensor = output.hidden_states[-1]
        return state_BTD[batch.reri.rec_positions].float()

    def _prompt(self, window: Window, first: int, question: Tail | None = None) -> Prompt:
        """Prefix, history and `question` (or the instruction) from their texts; its items are `first` and following."""
        tokenizer = self._encoder.language_model.tokenizer
        builder = PromptBuilder(tokenizer, self._config.prompt)
        segments = build_segments(tokenizer, self._items.take(window.history), self._config.prompt)
        places = np.arange(len(window.history))
        prompt = builder.build(places, segments, [question or Tail(builder.instruction, len(places))])
        return replace(prompt, item=np.where(prompt.item >= 0, prompt.item + first, -1))

    def _read(self, rows: np.ndarray) -> ItemFeatures:
        shown = [signal for signal in SIGNALS if signal in self._config.prompt.fields]
        return ItemFeatures(
            {signal: self._files.vectors[signal][rows] for signal in shown},
            {signal: self._files.origin[signal][rows] for signal in shown},
        )

    def _embed(self, batch: PromptBatch, shown: ItemFeatures) -> Tensor:
        ours = self._encoder
        return UserEncoder(ours.language_model, self.heads, ours.builder, ours.segments, shown).embed(batch)
