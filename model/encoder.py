"""Histories to states to user vectors: embeds prompts, runs the language model, reads h([REC]).

Serving, training and evaluation all go through here, so that what is measured is what is served.

# B prompts, T tokens, K [REC] tokens, D language-model width, P shared width, V visual width
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.config import SIGNALS
from model.heads import Heads, ItemFeatures, float_tensor, gather
from model.language_model import LanguageModel
from model.prompt import CF, ITEM, REC, VISUAL, Prompt, PromptBatch, PromptBuilder, Segments, pad

BATCH_TOKENS = defaultdict(lambda: 65_536, cpu=2048)
"""Tokens of one forward pass by device. On two cores 2,048 took 6.4 s where 8,192 took 7.5 and 512 took 6.7."""


class UserEncoder:
    """The language model with learned vectors put in by position, over one catalog's segments and features."""

    def __init__(
        self,
        language_model: LanguageModel,
        heads: Heads,
        builder: PromptBuilder,
        segments: Segments,
        features: ItemFeatures,
    ) -> None:
        self.language_model = language_model
        self.heads = heads
        self.builder = builder
        self.segments = segments
        self.features = features

    def embed(self, batch: PromptBatch) -> Tensor:
        """Embeddings [B, T, D] in the language model's dtype; gradients flow to adaptors and [REC] only."""
        return self.embed_tokens(batch.token_BT, batch.item_BT)

    def embed_tokens(self, token_BT: Tensor, item_BT: Tensor) -> Tensor:
        """The same of token ids and the rows of the items that placeholders show."""
        embed_BTD = self.language_model.embed(token_BT)
        for placeholder, signals, adapt in (
            (VISUAL, ("image",), self.heads.image_tokens),
            (CF, ("cf",), self.heads.cf_tokens),
            (ITEM, SIGNALS, self.heads.item_tokens),
        ):
            mask = token_BT == placeholder
            if mask.any():
                rows, place = torch.unique(item_BT[mask], return_inverse=True)
                found = gather(self.features, rows.cpu().numpy(), embed_BTD.device, signals)
                token_nD = adapt(*found).to(embed_BTD.dtype)
                embed_BTD = embed_BTD.masked_scatter(mask[..., None], token_nD[place])
        rec_mask = (token_BT == REC)[..., None]
        return torch.where(rec_mask, self.heads.rec.to(embed_BTD.dtype), embed_BTD)

    def states(self, batch: PromptBatch) -> Tensor:
        """Last-layer states [B, T, D]."""
        return self.language_model.states(self.embed(batch), batch.position_BT, batch.mask_BTT)

    def rec_states(self, batch: PromptBatch) -> Tensor:
        """h([REC]) as float32 [K, D], row by row and tail by tail."""
        return self.states(batch)[batch.rec_positions].float()

    @torch.inference_mode()
    def encode_states(
        self, prompts: Sequence[Prompt], max_batch_tokens: int | None = None, progress: str | None = None
    ) -> np.ndarray:
        """h([REC]) of many prompts, float32 [K, D] in the prompts' order; alike lengths share a batch.

        `max_batch_tokens`: padded tokens of a forward pass; unset: BATCH_TOKENS of the device. `progress`: label of a
        progress bar, for long jobs.
        """
        num_recs = [int((prompt.token == REC).sum()) for prompt in prompts]
        first = np.concatenate([[0], np.cumsum(num_recs)])
        states = np.empty((int(first[-1]), self.language_model.width), np.float32)
        max_batch_tokens = max_batch_tokens or BATCH_TOKENS[self.language_model.device.type]
        batches = length_batches([len(prompt) for prompt in prompts], max_batch_tokens)
        for batch in tqdm(batches, desc=progress, unit="batch", disable=None if progress else True):
            found = self.rec_states(pad([prompts[at] for at in batch], self.language_model.device)).cpu().numpy()
            states[np.concatenate([np.arange(first[at], first[at + 1]) for at in batch])] = found
        return states

    @torch.inference_mode()
    def encode(self, histories: Sequence[np.ndarray], progress: str | None = None) -> np.ndarray:
        """User vectors float32 [B, 3P] of non-empty histories (item rows, oldest first); too long ones are cut."""
        prompts = [
            self.builder.recommend(self.builder.keep_newest(history, self.segments), self.segments)
            for history in histories
        ]
        state_BD = float_tensor(self.encode_states(prompts, progress=progress)).to(self.language_model.device)
        return self.heads.project_users(state_BD).cpu().numpy()


def length_batches(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Positions grouped by similar length, longest first, so that a padded group holds at most `max_batch_tokens`."""
    batches: list[list[int]] = []
    longest = 0
    for at in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        if not batches or (len(batches[-1]) + 1) * longest > max_batch_tokens:
            batches.append([])
            longest = lengths[at]
        batches[-1].append(at)
    return batches
