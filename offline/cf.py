"""The CF signal: train SASRec on the training events, write its item embeddings.

`python -m offline.cf --config demo [--set cf.loss=softmax] [--store store]`

Validation and test events never enter a training batch; the validation event is only the target of the NDCG@10 (full
ranking, history left out) that decides when to stop and which weights to keep.
"""

# S windows, B of them in a batch, L positions, M positions of a batch that have a target, G negatives, U users,
# W width, K items of the vocabulary, N items

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from model.artifacts import building, fingerprint, is_up_to_date, is_whole, write_json, write_manifest
from model.config import CFConfig, Config
from model.errors import InvalidInputError
from model.sasrec import SASRec, save_sasrec
from model.store import Store
from offline.ablation import open_dataset
from offline.dataset import Dataset
from offline.jobs import configured, job_parser, run_job
from offline.metrics import ndcg_at, rank_of_target

VALIDATION_BATCH = 1024  # users ranked at once: bounds the memory to 1024 x N scores


@dataclass(frozen=True)
class Windows:
    """What is trained on: pieces of training histories as tokens of the vocabulary, right-aligned."""

    input_SL: Tensor
    target_SL: Tensor
    """The token that follows each input; the padding where there is none."""
    user_S: Tensor


@dataclass(frozen=True)
class Validation:
    """One look at the validation targets, and what training cost until then."""

    epoch: int
    loss: float
    """Mean over the last epoch's batches, in nats a position."""
    ndcg: float
    seconds: float

    def as_json(self) -> dict[str, float]:
        return {"epoch": self.epoch, "loss": self.loss, "ndcg@10": self.ndcg, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Fit:
    """A trained model and the course of its training; `best` is the validation whose weights were kept."""

    model: SASRec
    validations: list[Validation]
    best: Validation


def main(argv: list[str] | None = None) -> None:
    config, store = configured(job_parser("Train SASRec and write the CF features.").parse_args(argv))
    make_cf(config, store)


def make_cf(config: Config, store: Store) -> Path:
    """Train and write `features/<config>/cf`, unless it is up to date; returns the folder."""
    folder = store.features(config.name, "cf")
    dataset = open_dataset(config, store)
    inputs = {"dataset": dataset.training_hash, "cf": config.cf.model_dump(), "seed": config.seed}
    if is_up_to_date(folder, inputs):
        print(f"cf: {folder} is up to date")
        return folder
    if (same := _made_before(store, inputs)) is not None:
        with building(folder) as temporary:
            shutil.copytree(same, temporary, dirs_exist_ok=True)
        print(f"cf: {folder} is that of {same}")
        return folder
    fit = train_sasrec(dataset, config.cf, config.seed)
    with building(folder) as temporary:
        counts = _write(temporary, fit, dataset, inputs)
    best, last = fit.best, fit.validations[-1]
    print(
        f"cf: {counts['with_cf']} of {counts['items']} items have a vector; validation NDCG@10 {best.ndcg:.4f} "
        f"after epoch {best.epoch} of {last.epoch}, {last.seconds:.1f} s; written to {folder}"
    )
    return folder


def _made_before(store: Store, inputs: dict[str, Any]) -> Path | None:
    """The CF features of another configuration that were made from the same, if there are any."""
    return next((path for path in sorted((store.root / "features").glob("*/cf")) if is_whole(path, inputs)), None)


def train_sasrec(dataset: Dataset, config: CFConfig, seed: int) -> Fit:
    """Train with early stopping on validation NDCG@10; the model returned has the best weights, on the CPU.

    Equal arguments give bit-equal weights on a CPU. Leaves the global random state as it was. Raises InvalidInputError
    when there is nothing to learn from.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout knows only the global state; everything else draws from `generator`
        model = SASRec(config, _vocabulary(dataset, config), dataset.num_items)
        model.initialise(generator)
        run_epoch = _epochs(model.to(device), dataset, generator)
        return _stop_early(model, dataset, run_epoch)


def _vocabulary(dataset: Dataset, config: CFConfig) -> np.ndarray:
    return np.flatnonzero(dataset.num_train_events >= config.min_events)


def _epochs(model: SASRec, dataset: Dataset, generator: torch.Generator) -> Callable[[], float]:
    """A function that trains for one epoch and returns its mean loss."""
    config, device = model.config, model.items.weight.device
    windows = training_windows(dataset, model)
    negatives = Negatives(dataset, model) if config.loss == "bce" else None
    betas = (0.9, 0.98)  # as published
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay, fused=True
    )

    def run_epoch() -> float:
        model.train()
        losses = []
        order_S = torch.randperm(len(windows.user_S), generator=generator)
        for batch_B in torch.split(order_S, config.batch_size):
            input_BL, target_BL = windows.input_SL[batch_B].to(device), windows.target_SL[batch_B].to(device)
            has_target_BL = target_BL != model.padding
            state_MW, target_M = model(input_BL)[has_target_BL], target_BL[has_target_BL]
            if negatives is None:
                loss = softmax_loss(model, state_MW, target_M)
            else:
                user_M = windows.user_S[batch_B].repeat_interleave(has_target_BL.sum(1).cpu())
                negative_MG = negatives.sample(user_M, config.num_negatives, generator).to(device)
                loss = bce_loss(model, state_MW, target_M, negative_MG)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    return run_epoch


def _stop_early(model: SASRec, dataset: Dataset, run_epoch: Callable[[], float]) -> Fit:
    """Train until `patience` validations in a row bring nothing better, or `max_epochs`; keep the best weights."""
    config, started = model.config, time.perf_counter()
    validations: list[Validation] = []
    best: tuple[Validation, dict[str, Tensor]] | None = None
    without_gain = 0
    with tqdm(total=config.max_epochs, desc="cf", unit="epoch", disable=None) as progress:
        for epoch in range(1, config.max_epochs + 1):
            loss = run_epoch()
            progress.update()
            if epoch % config.validate_every and epoch != config.max_epochs:
                continue
            ndcg = validation_ndcg(model, dataset)
            validations.append(Validation(epoch, loss, ndcg, time.perf_counter() - started))
            progress.set_postfix(loss=f"{loss:.3f}", ndcg=f"{ndcg:.4f}")
            if best is None or ndcg > best[0].ndcg:
                best, without_gain = (validations[-1], copy.deepcopy(model.state_dict())), 0
            elif (without_gain := without_gain + 1) >= config.patience:
                break
    if best is None:
        raise AssertionError("the last epoch is always validated")
    model.load_state_dict(best[1])
    return Fit(model.cpu().eval(), validations, best[0])


def validation_ndcg(model: SASRec, dataset: Dataset) -> float:
    """NDCG@10 of every user's validation event among all items but the training history that it is predicted from."""
    ranks = []
    for start in range(0, len(dataset.users), VALIDATION_BATCH):
        users = range(start, min(start + VALIDATION_BATCH, len(dataset.users)))
        cases = dataset.validation_cases(users)
        ranks.append(rank_of_target(model.score(cases.histories), cases.targets, cases.histories))
    return ndcg_at(np.concatenate(ranks), 10)


def softmax_loss(model: SASRec, state_MW: Tensor, target_M: Tensor) -> Tensor:
    """Cross-entropy of the next item over the whole vocabulary, nats."""
    return F.cross_entropy(state_MW @ model.vectors_KW.T, target_M)


def bce_loss(model: SASRec, state_MW: Tensor, target_M: Tensor, negative_MG: Tensor) -> Tensor:
    """Binary cross-entropy as published (Eq. 10): the next item is 1, sampled negatives, averaged, are 0."""
    positive_M = (state_MW * model.items(target_M)).sum(-1)
    negative_score_MG = torch.einsum("mw,mgw->mg", state_MW, model.items(negative_MG))
    # The padding stands where a user has no negative; it says nothing.
    is_real_MG = negative_MG != model.padding
    negative = (F.softplus(negative_score_MG) * is_real_MG).sum() / is_real_MG.sum().clamp(min=1)
    return F.softplus(-positive_M).mean() + negative


def training_windows(dataset: Dataset, model: SASRec) -> Windows:
    """Every pair of neighbours in every training history, in windows of `max_history` counted from the newest event.

    A history longer than one window is cut into several, so that old events teach too. Raises InvalidInputError when no
    user has two training events of known items.
    """
    length = model.config.max_history
    inputs, targets, users = [], [], []
    for user in range(len(dataset.users)):
        tokens = model.known_tokens(dataset.train_events(user))
        for end in range(len(tokens) - 1, 0, -length):
            start = max(end - length, 0)
            inputs.append(tokens[start:end])
            targets.append(tokens[start + 1 : end + 1])
            users.append(user)
    if not users:
        raise InvalidInputError(
            f"no user of {dataset.folder} has two training events of items with at least {model.config.min_events}: "
            "lower cf.min_events or ingest more events",
            "cf.min_events",
        )
    return Windows(model.pad(inputs), model.pad(targets), torch.tensor(users))


class Negatives:
    """Draws tokens that a user has not met in training, each equally likely, without a trial and a rejection.

    Of a user's sorted tokens t_0 < t_1 < ..., exactly those with t_j - j <= r lie below the r-th unseen token. The
    values t_j - j of all users stand in one sorted array, so one binary search answers a whole batch.
    """

    def __init__(self, dataset: Dataset, model: SASRec) -> None:
        seen = [np.unique(model.known_tokens(dataset.train_events(user))) for user in range(len(dataset.users))]
        num_seen_U = np.array([len(tokens) for tokens in seen])
        gaps = [user * (model.padding + 1) + tokens - np.arange(len(tokens)) for user, tokens in enumerate(seen)]
        self.padding = model.padding
        self._gaps = torch.from_numpy(np.concatenate(gaps))
        self._num_unseen_U = torch.from_numpy(model.padding - num_seen_U)
        self._start_U = torch.from_numpy(np.cumsum(num_seen_U) - num_seen_U)

    def sample(self, user_M: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """int64[M, num]; the padding for a user who has met everything."""
        num_unseen_M1 = self._num_unseen_U[user_M][:, None]
        uniform_MG = torch.rand(len(user_M), num, generator=generator, dtype=torch.float64)
        order_MG = (uniform_MG * num_unseen_M1).long()
        keys_MG = user_M[:, None] * (self.padding + 1) + order_MG
        num_below_MG = torch.searchsorted(self._gaps, keys_MG, right=True) - self._start_U[user_M][:, None]
        return torch.where(num_unseen_M1 > 0, order_MG + num_below_MG, self.padding)


def _write(folder: Path, fit: Fit, dataset: Dataset, inputs: dict[str, Any]) -> dict[str, int]:
    known_N = fit.model.known()
    np.save(folder / "vectors.npy", fit.model.item_vectors())
    np.save(folder / "origin.npy", known_N.astype(np.uint8))
    save_sasrec(fit.model, folder)
    write_json(folder / "metrics.json", [validation.as_json() for validation in fit.validations])
    with_cf = int(known_N.sum())
    counts = {"items": dataset.num_items, "with_cf": with_cf, "too_young": dataset.num_items - with_cf}
    write_manifest(
        folder,
        {
            "kind": "features",
            "signal": "cf",
            "width": fit.model.config.width,
            "encoder": fingerprint(inputs),
            "counts": counts,
            "inputs": inputs,
            "validation": fit.best.as_json(),
        },
    )
    return counts


if __name__ == "__main__":
    run_job(main)
