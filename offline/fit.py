"""Projector training on states that are already known: cached h([REC]), or the pooled part's features.

# M training states, K states of a batch, D state width, U validation users, N items
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.config import TrainConfig
from model.heads import ItemFeatures, Normaliser, Projectors, float_tensor, products
from offline.losses import RERI
from offline.metrics import ndcg_at, rank_of_target


class States(Protocol):
    """M states, given in batches."""

    def __len__(self) -> int: ...

    def take(self, index: np.ndarray) -> Tensor:
        """float32 [len(index), D]"""
        ...


@dataclass(frozen=True)
class CachedStates:
    """States held in an array, which may be memory-mapped."""

    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    def take(self, index: np.ndarray) -> Tensor:
        return float_tensor(self.array[index])


@dataclass(frozen=True)
class Examples:
    """States, whose they are, and the item that followed."""

    states: States
    users: np.ndarray
    targets: np.ndarray


def fit_projectors(
    heads: Projectors,
    features: ItemFeatures,
    train: Examples,
    validation: Examples,
    seen: list[np.ndarray],
    reri: RERI,
    config: TrainConfig,
    seed: int,
    label: str,
) -> list[dict[str, float]]:
    """Train user and item projectors until validation NDCG@10 stops rising; `heads` ends at its best.

    `seen`: item rows that validation never ranks, per validation example. Returns one record an epoch.
    """
    if isinstance(heads.state_norm, Normaliser):
        sample = np.linspace(0, len(train.states) - 1, min(len(train.states), 20_000)).astype(int)
        heads.state_norm.measure(train.states.take(sample).to(heads.device))
    parameters = [*heads.user_projectors.parameters(), *heads.item_projectors.parameters(), *heads.stand_ins.values()]
    optimizer = torch.optim.AdamW(parameters, lr=config.head_learning_rate, weight_decay=config.head_weight_decay)
    best_score, best_state, since_best = -1.0, copy.deepcopy(heads.state_dict()), 0
    history = []
    for epoch in (bar := tqdm(range(config.head_epochs), desc=label, unit="epoch", disable=None)):
        loss = _epoch(heads, train, reri, optimizer, config, np.random.default_rng([seed, 7, epoch]))
        score = validation_ndcg(heads, features, validation, seen)
        history.append({"epoch": epoch + 1, "loss": loss, "validation_ndcg@10": score})
        bar.set_postfix(loss=f"{loss:.3f}", ndcg=f"{score:.4f}")
        since_best += 1
        if score > best_score:
            best_score, best_state, since_best = score, copy.deepcopy(heads.state_dict()), 0
        if since_best >= config.head_patience:
            break
    heads.load_state_dict(best_state)
    return history


def _epoch(
    heads: Projectors,
    train: Examples,
    reri: RERI,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    generator: np.random.Generator,
) -> float:
    order = generator.permutation(len(train.states))
    losses = []
    heads.train()
    for start in range(0, len(order), config.head_batch_size):
        index = order[start : start + config.head_batch_size]
        parts = reri.loss(
            heads, train.states.take(index).to(heads.device), train.users[index], train.targets[index], generator
        )
        loss = torch.stack(list(parts.values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], config.max_grad_norm)
        optimizer.step()
        losses.append(loss.detach())
    heads.eval()
    return float(torch.stack(losses).mean())


@torch.inference_mode()
def validation_ndcg(heads: Projectors, features: ItemFeatures, validation: Examples, seen: list[np.ndarray]) -> float:
    """Full-ranking NDCG@10 of the validation targets."""
    item_NQ = heads.item_vectors(features)
    state_UD = validation.states.take(np.arange(len(validation.states))).to(heads.device)
    user_UQ = heads.project_users(state_UD).cpu().numpy()
    return ndcg_at(rank_of_target(products(user_UQ, item_NQ), validation.targets, seen), 10)
