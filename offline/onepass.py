"""One optimiser step = one pass: RISA and RERI tails follow one shared history (DESIGN, "Training").

# B windows, T tokens, K [REC] tokens, D language-model width
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from model.artifacts import replace_file
from model.config import SIGNALS, Config, Signal, TrainConfig
from model.encoder import UserEncoder, length_batches
from model.prompt import Prompt, PromptBatch, Tail, pad
from offline.dataset import Dataset
from offline.losses import RERI
from offline.risa import RisaTails, risa_loss
from offline.windows import Window, WindowSampler, cut_window

GROUP_TOKENS = defaultdict(lambda: 4096, cpu=512)
"""Padded tokens of one forward pass by device. Padded to the longest prompt of a step, more than a third of the demo's
tokens were padding; in groups of 512, on two cores, a step took 0.67 to 0.83 of the time. On a GPU, 4,096 tokens should
keep a large model busy; no measurement stands behind that number."""


@dataclass(frozen=True)
class Batch:
    """What one step sees: prompts, and whose the K states at [REC] are and what followed them."""

    groups: list[PromptBatch]
    """Prompts of similar length share one."""
    order_K: Tensor
    """Where each state is among those of the groups, one group after the other."""
    users: np.ndarray
    targets: np.ndarray
    generator: np.random.Generator


class OnePass(nn.Module):
    """Both losses of a batch from one forward pass. Trains the heads; the language model stays as it is."""

    def __init__(self, encoder: UserEncoder, dataset: Dataset, reri: RERI, config: Config) -> None:
        super().__init__()
        self.heads = encoder.heads
        self.encoder = encoder
        self._reri = reri
        self._config = config.train
        tokenizer = encoder.language_model.tokenizer
        self._risa = RisaTails(tokenizer, dataset.items, config.train.max_answer_tokens)

    def batch(
        self, windows: list[Window], generator: np.random.Generator, max_group_tokens: int | None = None
    ) -> Batch:
        """Prompts of some windows with all the tails that the configuration asks for.

        `max_group_tokens`: padded tokens of a forward pass; unset: GROUP_TOKENS of the device.
        """
        windows = [cut_window(window, self.encoder) for window in windows]
        prompts = self.prompts(windows, generator)
        shown = [window.targets if self._config.tails == "all" else window.targets[-1:] for window in windows]
        num_states = [len(targets) for targets in shown]
        users = np.repeat([window.user for window in windows], num_states)
        device = self.encoder.language_model.device
        groups = length_batches([len(prompt) for prompt in prompts], max_group_tokens or GROUP_TOKENS[device.type])
        states_of = np.split(np.arange(len(users)), np.cumsum(num_states)[:-1])
        order_K = np.argsort(np.concatenate([states_of[at] for group in groups for at in group]))
        padded = [pad([prompts[at] for at in group], device) for group in groups]
        return Batch(padded, torch.from_numpy(order_K).to(device), users, np.concatenate(shown), generator)

    def prompts(self, windows: list[Window], generator: np.random.Generator) -> list[Prompt]:
        """One prompt a window, which must have been cut to fit."""
        return [self._prompt(window, generator) for window in windows]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"risa", "reri_image", "reri_cf", "reri_text", "loss"}; those with weight 0 are left out (Eq. 7)."""
        states = [self.encoder.states(group) for group in batch.groups]
        losses: dict[str, Tensor] = {}
        total: list[Tensor] = []
        if self._config.risa_weight:
            losses["risa"] = self._risa_loss(states, batch.groups)
            total.append(self._config.risa_weight * losses["risa"])
        if self.reri_weight:
            found = [state_BTD[group.rec_positions] for state_BTD, group in zip(states, batch.groups, strict=True)]
            state_KD = torch.cat(found)[batch.order_K].float()
            parts = self._reri.loss(self.heads, state_KD, batch.users, batch.targets, batch.generator)
            losses |= {f"reri_{signal}": loss for signal, loss in parts.items()}
            total += [self.reri_weight * loss for loss in parts.values()]
        return losses | {"loss": torch.stack(total).sum()}

    @property
    def reri_weight(self) -> float:
        """Two-stage training leaves retrieval to the second stage (paper, Table 7)."""
        return 0.0 if self._config.two_stage else self._config.reri_weight

    def _risa_loss(self, states: list[Tensor], groups: list[PromptBatch]) -> Tensor:
        """The mean over the answer tokens of all groups."""
        num_answer = torch.stack([group.answer_BT.sum() for group in groups])
        pairs = zip(states, groups, strict=True)
        means = torch.stack([risa_loss(self.encoder.language_model, state_BTD, group) for state_BTD, group in pairs])
        return (means * num_answer).sum() / num_answer.sum()

    def _prompt(self, window: Window, generator: np.random.Generator) -> Prompt:
        length = len(window.history)
        instruction = self.encoder.builder.instruction
        tails = []
        if self.reri_weight:
            lengths = range(1, length + 1) if self._config.tails == "all" else [length]
            tails = [Tail(instruction, prefix) for prefix in lengths]
        if self._config.risa_weight:
            tails.append(self._risa.draw(int(window.targets[-1]), length, generator))
        return self.encoder.builder.build(window.history, self.encoder.segments, tails)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def train_steps(
    one_pass: OnePass, dataset: Dataset, config: Config, work: Path, validate: Callable[[], float]
) -> list[dict[str, float]]:
    """Run (or resume) all optimiser steps; the heads end at their best validation. Returns one record a step."""
    train = config.train
    # The heads stay beside the language model: Accelerate might choose another device (Apple's, say) and move them.
    accelerator = Accelerator(device_placement=False)
    optimizer = torch.optim.AdamW(one_pass.heads.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay)
    progress = Progress(work / "resume.safetensors", one_pass.heads, optimizer)
    progress.load()
    module, optimizer = accelerator.prepare(one_pass, optimizer)
    sampler = WindowSampler(dataset, config.prompt.max_history, config.seed)
    bar = tqdm(range(progress.step, train.steps), initial=progress.step, total=train.steps, desc="train", disable=None)
    for step in bar:
        generator = sampler.generator(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, train)
        module.train()
        one_pass.heads.shown = shown_signals(step, train)
        losses = module(one_pass.batch(sampler.draw(train.batch_size, generator), generator))
        optimizer.zero_grad()
        accelerator.backward(losses["loss"])
        norm = accelerator.clip_grad_norm_(one_pass.heads.parameters(), train.max_grad_norm)
        optimizer.step()
        record = {name: float(loss.detach()) for name, loss in losses.items()}
        progress.records.append({"step": step + 1, "grad_norm": float(norm), **record})
        bar.set_postfix({name: f"{value:.3f}" for name, value in record.items()})
        progress.step = step + 1
        is_whole = one_pass.heads.shown == SIGNALS  # weights of a stage before would be other tokens afterwards
        if progress.step % train.validate_every == 0 and one_pass.reri_weight and is_whole:
            one_pass.heads.eval()
            progress.note_validation(validate())
        if progress.step % train.save_every == 0 or progress.step == train.steps:
            progress.save()
    one_pass.heads.shown = SIGNALS
    progress.restore_best()
    one_pass.heads.eval()
    return progress.records


def shown_signals(step: int, config: TrainConfig) -> tuple[Signal, ...]:
    """Signals that `item` tokens are made of at a step: all, or in turn text, picture and CF."""
    if not config.progressive:
        return SIGNALS
    order: tuple[Signal, ...] = ("text", "image", "cf")
    return order[: 1 + len(order) * step // config.steps]


class Progress:
    """All that a run needs to go on after an interruption, in one safetensors file.

    Torch's random states are part of it: dropout draws from them.
    """

    def __init__(self, path: Path, heads: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._path = path
        self._heads = heads
        self._optimizer = optimizer
        self._best: dict[str, Tensor] = {}
        self._best_score = -1.0
        self.step = 0
        self.records: list[dict[str, float]] = []

    def note_validation(self, score: float) -> None:
        """Add a validation to the last record, and keep the weights if none was better."""
        self.records[-1]["validation_ndcg@10"] = score
        if score > self._best_score:
            self._best_score = score
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in self._heads.state_dict().items()}

    def restore_best(self) -> None:
        """Put the best weights back; without any validation the last ones stay."""
        if self._best:
            self._heads.load_state_dict(self._best)

    def save(self) -> None:
        tensors = {f"heads.{name}": tensor for name, tensor in self._heads.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        for number, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors |= {f"random.{name}": state for name, state in self._random_states().items()}
        progress = {"step": self.step, "records": self.records, "best_score": self._best_score}
        contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        replace_file(self._path, save(contiguous, metadata={"progress": json.dumps(progress)}))

    def load(self) -> None:
        """Continue from the saved state, if there is one."""
        if not self._path.exists():
            return
        with safe_open(self._path, framework="pt") as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        self.step, self.records, self._best_score = progress["step"], progress["records"], progress["best_score"]
        self._heads.load_state_dict(_below("heads.", tensors))
        self._best = _below("best.", tensors)
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in _below("optimizer.", tensors).items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        random_states = _below("random.", tensors)
        torch.set_rng_state(random_states["cpu"])
        if "cuda" in random_states and self._device.type == "cuda":
            torch.cuda.set_rng_state(random_states["cuda"], self._device)

    @property
    def _device(self) -> torch.device:
        return next(self._heads.parameters()).device

    def _random_states(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        return states


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
