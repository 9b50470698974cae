"""A language model that reads histories as words and says which word comes next. Knows no trie and no ranking.

What is learned: the vectors of the prompt's beginning, and, where a system has words of its own, their embeddings for
reading and for writing. With a LoRA rank above 0 also a low-rank change of every linear map.

# B histories, T tokens, P tokens of the prefix, L live beams, K tokens seen so far, V words, D language-model width
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.generative_words import Words
from model.config import TrainConfig
from model.heads import Normaliser
from model.language_model import LanguageModel
from offline.dataset import Dataset
from offline.onepass import learning_rate

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Maps of a layer that LoRA changes: all. After 24 steps of `titles` the loss of a validation word is 4.2 nats, with
those of queries and values alone 4.9, with none 7.0 (6 layers of SmolLM2-135M, rank 8)."""
MEASURED_WINDOWS = 64


@dataclass(frozen=True)
class Reading:
    """What is left of a batch of histories, for going on from."""

    cache: Any
    """Keys and values of the prompts; grows with every word."""
    log_probability_BLV: np.ndarray
    """float32 [B, 1, V]: of the first word of the next item"""
    visible_BLK: np.ndarray
    """bool [B, 1, T]: tokens that are not padding"""


class LowRank(nn.Module):
    """A frozen linear map and a learned change of low rank, zero at the start."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Parameter(torch.randn(rank, frozen.in_features) / frozen.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.frozen(x)
        return mapped + F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


def add_low_rank(language_model: LanguageModel, rank: int) -> list[nn.Parameter]:
    """Change the linear maps of all layers in place; returns what is to be learned."""
    learned: list[nn.Parameter] = []
    for module in list(language_model.decoder.modules()):
        for name in ADAPTED:
            if isinstance(frozen := getattr(module, name, None), nn.Linear):
                adapted = LowRank(frozen, rank).to(language_model.device)
                setattr(module, name, adapted)
                learned += [adapted.down, adapted.up]
    return learned


class Reader(nn.Module):
    """Words in, log-probabilities of the next word out."""

    def __init__(
        self, language_model: LanguageModel, words: Words, prefix: np.ndarray, max_history: int, lora_rank: int = 0
    ) -> None:
        super().__init__()
        self._language_model = language_model
        self.words = words
        self.max_history = max_history
        device = language_model.device
        tokens = torch.from_numpy(prefix.astype(np.int64)).to(device)
        self.prefix_PD = nn.Parameter(language_model.embed(tokens).detach().float().clone())
        embedding_VD = words.embedding_VD.detach().to(device)
        self.input_VD = nn.Parameter(embedding_VD.clone(), requires_grad=words.learned)
        self.output_VD = nn.Parameter(self._output(words, embedding_VD), requires_grad=words.learned)
        self.bias_V = nn.Parameter(torch.zeros(len(embedding_VD), device=device), requires_grad=words.learned)
        self.state_norm = Normaliser(language_model.width).to(device)
        self.low_rank = nn.ParameterList(add_low_rank(language_model, lora_rank) if lora_rank else [])

    def _output(self, words: Words, embedding_VD: Tensor) -> Tensor:
        if words.token_V is None:
            return torch.zeros_like(embedding_VD)
        head: Tensor = self._language_model.decoder.get_output_embeddings().weight
        return head[torch.from_numpy(words.token_V)].detach().float().clone()

    def learned(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def logits(self, state: Tensor) -> Tensor:
        """float32 [..., V] of last-layer states."""
        dtype = self._language_model.dtype
        normalised = self.state_norm(state.float()).to(dtype)
        return F.linear(normalised, self.output_VD.to(dtype)).float() + self.bias_V

    def embed(self, word_BT: Tensor) -> Tensor:
        """[B, T, D] of words."""
        return F.embedding(word_BT, self.input_VD).to(self._language_model.dtype)

    def spell(self, rows: np.ndarray) -> np.ndarray:
        """The words of some items, one after the other."""
        return np.concatenate([np.empty(0, np.int64), *(self.words.spellings[row] for row in rows)])

    def prompts(self, spelled: Sequence[np.ndarray]) -> Tensor:
        """[B, P + T, D]: the prefix and the words of each history, padded on the right."""
        T = max(len(words) for words in spelled)
        word_BT = np.stack([np.pad(words, (0, T - len(words))) for words in spelled])
        prefix_BPD = self.prefix_PD.to(self._language_model.dtype).expand(len(spelled), -1, -1)
        return torch.cat([prefix_BPD, self.embed(torch.from_numpy(word_BT).to(prefix_BPD.device))], dim=1)

    def loss(self, windows: Sequence[np.ndarray]) -> Tensor:
        """Mean cross-entropy of every word of every item (row of a window) that follows another."""
        spelled = [self.spell(window) for window in windows]
        embed_BTD = self.prompts([words[:-1] for words in spelled])
        P = len(self.prefix_PD)
        state_BTD = self._language_model.states(embed_BTD)
        asked = np.zeros(embed_BTD.shape[:2], bool)
        wanted = []
        for row, (window, words) in enumerate(zip(windows, spelled, strict=True)):
            num_first = len(self.words.spellings[window[0]])
            asked[row, P + num_first - 1 : P + len(words) - 1] = True
            wanted.append(words[num_first:])
        state_KD = state_BTD[torch.from_numpy(asked)]
        return F.cross_entropy(self.logits(state_KD), torch.from_numpy(np.concatenate(wanted)).to(state_KD.device))

    @torch.inference_mode()
    def read(self, histories: Sequence[np.ndarray]) -> Reading:
        """Read the newest items of some histories; what comes next is the first word of the next item."""
        spelled = [self.spell(rows[-self.max_history :]) for rows in histories]
        embed_BTD = self.prompts(spelled)
        output = self._language_model.decoder.base_model(inputs_embeds=embed_BTD, use_cache=True)
        length_B = torch.tensor([len(self.prefix_PD) + len(words) for words in spelled])
        last_BD = output.last_hidden_state[torch.arange(len(spelled)), length_B - 1]
        visible_BT = np.arange(embed_BTD.shape[1]) < length_B[:, None].numpy()
        return Reading(output.past_key_values, self._log_probability(last_BD[:, None]), visible_BT[:, None])

    @torch.inference_mode()
    def go_on(self, cache: Any, word_BL: np.ndarray, visible_BLK: np.ndarray) -> np.ndarray:
        """float32 [B, L, V] after one more word on each of L beams. A token's position is what it sees before it."""
        device = self._language_model.device
        output = self._language_model.decoder.base_model(
            inputs_embeds=self.embed(torch.from_numpy(word_BL).to(device)),
            attention_mask=torch.from_numpy(visible_BLK)[:, None].to(device),
            position_ids=torch.from_numpy(visible_BLK.sum(axis=2) - 1).to(device),
            past_key_values=cache,
            use_cache=True,
        )
        return self._log_probability(output.last_hidden_state)

    def _log_probability(self, state_BLD: Tensor) -> np.ndarray:
        array: np.ndarray = F.log_softmax(self.logits(state_BLD), dim=-1).cpu().numpy()
        return array

    @torch.no_grad()
    def count_words(self, num_events_N: np.ndarray) -> None:
        """Begin with every learned word as likely as it is frequent in the training events."""
        word = np.concatenate(self.words.spellings)
        events = np.repeat(num_events_N, [len(words) for words in self.words.spellings])
        counts_V = np.bincount(word, weights=events, minlength=len(self.bias_V))
        self.bias_V.copy_(torch.from_numpy(np.log1p(counts_V)))

    @torch.inference_mode()
    def measure_states(self, windows: Sequence[np.ndarray]) -> None:
        """Fix the norm of the states for learned words; words of the frozen model are written by its own states."""
        states = []
        for window in windows:
            embed_BTD = self.prompts([self.spell(window[:-1])])
            states.append(self._language_model.states(embed_BTD)[0, len(self.prefix_PD) :].float())
        self.state_norm.measure(torch.cat(states))


@dataclass(frozen=True)
class Training:
    """What a training cost and came to."""

    seconds: float
    first_loss: float
    last_loss: float
    """Means over the first and last tenth of the steps."""


def train_reader(reader: Reader, dataset: Dataset, settings: TrainConfig, seed: int) -> Training:
    """Learn from random windows of training events; every item of a window but the first is foreseen."""
    start = time.perf_counter()
    generator = np.random.default_rng(seed)
    if reader.words.learned:
        reader.count_words(dataset.num_train_events)
        reader.measure_states(draw_windows(dataset, MEASURED_WINDOWS, reader.max_history + 1, generator))
    optimizer = torch.optim.AdamW(
        reader.learned(), lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True
    )
    losses = []
    for step in tqdm(range(settings.steps), desc="train", disable=None):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        loss = reader.loss(draw_windows(dataset, settings.batch_size, reader.max_history + 1, generator))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.learned(), settings.max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    tenth = max(1, len(losses) // 10)
    return Training(time.perf_counter() - start, float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:])))


def draw_windows(dataset: Dataset, num: int, length: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Stretches of training events, `length` items long where there are so many; users by chance."""
    users = np.array([user for user in range(len(dataset.users)) if len(dataset.train_events(user)) >= 2])
    windows = []
    for user in generator.choice(users, num):
        events = dataset.train_events(int(user))
        start = int(generator.integers(0, max(1, len(events) - length + 1)))
        windows.append(events[start : start + length])
    return windows
