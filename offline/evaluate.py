"""Measure a checkpoint on the test events: full ranking and against 100 fixed unseen items.

    python -m offline.evaluate --config demo

User vectors come from the encoder that serves, rankings from the index that serves. Beside the joined score stand its
parts, each signal alone, the same without the language model, and popularity. Ties never favour the target.

# U users, C test events, N items, P shared width
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from model.artifacts import fingerprint, is_up_to_date, read_manifest
from model.bounded_cache import CacheSizes
from model.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, load_pooled, read_weights
from model.config import PARTS, Config, Signal
from model.encoder import UserEncoder
from model.engine import Engine
from model.errors import ArtifactError
from model.heads import ItemFeatures
from model.index import Index, build_index
from model.joined import Blocks, Joined, Weights, equal_weights, join
from model.language_model import choose_device, load_language_model
from model.prompt import PromptBuilder, build_segments
from model.sasrec import load_sasrec
from model.store import Store
from offline.ablation import open_dataset
from offline.aligned import load_item_features
from offline.dataset import Cases, Dataset, dataset_hashes
from offline.fusion import of_weights
from offline.jobs import configured, job_parser, run_job
from offline.metrics import popularity_scores
from offline.rankings import Scores, System, ranks_of, write_evaluation

VERSION = 3
DEPTH = 10
"""Ranks beyond the deepest cut-off all count alike."""
SCORED_USERS = 1024
"""Users whose candidates' vectors are in memory at once: 1.3 GB of them at P 512."""
NUM_USERS_AT_ONCE = 256
"""Between two steps of the progress bar."""


def main() -> int:
    parser = job_parser(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="checkpoint id (default: the newest of the configuration)")
    arguments = parser.parse_args()
    config, store = configured(arguments)
    checkpoint = store.checkpoints / arguments.checkpoint if arguments.checkpoint else None
    folder = evaluate(config, store, checkpoint)
    print((folder / "table.txt").read_text(), end="")
    return 0


def evaluate(config: Config, store: Store, checkpoint_folder: Path | None = None) -> Path:
    """Write metrics.json, ranks.parquet, table.txt and metrics.png to store/evaluations/<checkpoint>/; returns it."""
    checkpoint_folder = checkpoint_folder or latest_checkpoint(store, config.name)
    checkpoint = load_checkpoint(checkpoint_folder)
    manifest = read_manifest(checkpoint_folder, verify=False)
    inputs = {
        "checkpoint": fingerprint(manifest["files"]),
        "dataset": dataset_hashes(store.dataset(checkpoint.config.dataset)),
        "evaluate": config.evaluate.model_dump(),
        "seed": config.seed,
        "version": VERSION,
    }
    folder = store.evaluations / checkpoint.id
    if is_up_to_date(folder, inputs):
        print(f"evaluate: {folder.name} is up to date")
        return folder
    if inputs["dataset"] != manifest["inputs"]["dataset"]:
        raise ArtifactError(
            f"{store.dataset(checkpoint.config.dataset)} is not the dataset that checkpoint {checkpoint.id} was "
            "trained on, so its test events may have been seen in training: run `python -m offline.train` and evaluate "
            "the checkpoint that it makes, or restore the dataset"
        )
    start = time.perf_counter()
    test = load_test(checkpoint, store)
    ranks = {
        system: ranks_of(run, test.dataset, test.cases, config.evaluate.num_candidates, config.seed)
        for system, run in systems(checkpoint, test, store)
    }
    title = f"{checkpoint.id}: {len(test.cases)} test events, {test.dataset.num_items} items"
    seconds = round(time.perf_counter() - start, 1)
    write_evaluation(folder, title, test.dataset, test.cases, ranks, test.groups(), {"seconds": seconds}, inputs)
    return folder


@dataclass(frozen=True)
class Test:
    """The test events of a dataset, and what the checkpoint knows of its items."""

    dataset: Dataset
    features: ItemFeatures
    has_cf: np.ndarray
    """bool [N]: items that the checkpoint has a CF feature for"""

    @cached_property
    def cases(self) -> Cases:
        return self.dataset.test_cases()

    def groups(self) -> dict[str, np.ndarray]:
        """bool [C] by group of cases: all, and by whether CF knows the target."""
        known = self.has_cf[self.cases.targets]
        return {"all": np.ones(len(known), bool), "target known to CF": known, "target too young for CF": ~known}


@dataclass(frozen=True)
class Vectors:
    """A system whose scores are inner products, ranked by the index that serves."""

    user_UQ: np.ndarray
    index: Index

    def full_ranks(self, targets: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Exact ranks down to DEPTH, DEPTH + 1 below; items that tie with the target count as above it."""
        scores_UK, rows_UK = self.index.search(self.user_UQ, DEPTH + 1, histories)
        ranks = np.full(len(targets), DEPTH + 1)
        users, places = np.nonzero(rows_UK == targets[:, None])
        target_scores = scores_UK[users, places]
        ranks[users] = (scores_UK[users] >= target_scores[:, None]).sum(1)
        return ranks

    def scores(self, rows_UC: np.ndarray) -> np.ndarray:
        scores_UC = np.empty(rows_UC.shape, np.float32)
        for start in range(0, len(rows_UC), SCORED_USERS):
            part = slice(start, start + SCORED_USERS)
            scores_UC[part] = np.einsum("uq,ucq->uc", self.user_UQ[part], self.index.vectors_NQ[rows_UC[part]])
        return scores_UC


def load_test(checkpoint: Checkpoint, store: Store) -> Test:
    """The dataset and features that the checkpoint was trained on. Raises ArtifactError when they were made anew."""
    config = checkpoint.config
    dataset = open_dataset(config, store)
    features, encoders = load_item_features(config, store, dataset)
    for signal, found in encoders.items():
        if found != checkpoint.encoders[signal]:
            raise ArtifactError(
                f"{store.features(config.name, signal)} is not what checkpoint {checkpoint.id} was trained on: run "
                f"`python -m offline.{'cf' if signal == 'cf' else 'features'}` with that checkpoint's settings (its "
                "config.json) first, or evaluate a newer checkpoint"
            )
    return Test(dataset, features, np.array([item_id in checkpoint.cf_rows for item_id in dataset.item_ids]))


def systems(checkpoint: Checkpoint, test: Test, store: Store) -> Iterator[tuple[str, System]]:
    """Every row of the table: its name, and what ranks."""
    dataset, config = test.dataset, checkpoint.config
    yield "popularity", Scores(np.broadcast_to(popularity_scores(dataset), (len(test.cases), dataset.num_items)))
    yield "SASRec", Scores(load_sasrec(checkpoint.folder / "sasrec").score(test.cases.histories))
    language_model = encode_users(checkpoint, test, test.cases.histories, store)
    blocks = blocks_of(all_parts(checkpoint, test), language_model, test)
    yield "control (no language model)", blocks.vectors(equal_weights(["pooled"]))
    weights = read_weights(checkpoint.folder)
    if "without language model" in weights:
        yield "ours without language model", blocks.vectors(weights["without language model"])
        yield "language model alone", blocks.vectors(equal_weights(["language_model"]))
    yield "ours", blocks.vectors(weights["joined"])
    for signal in config.heads.signals:
        yield f"ours, {signal} alone", blocks.vectors(only(signal, weights["joined"]))


@dataclass(frozen=True)
class PartBlocks:
    """What every part makes of the test histories and of all items."""

    users: Blocks
    items: Blocks

    def vectors(self, weights: Weights) -> Vectors:
        """The system that joins the parts of `weights`."""
        users, items = of_weights(self.users, weights), of_weights(self.items, weights)
        return Vectors(join(users, None), build_index(join(items, weights)))


def all_parts(checkpoint: Checkpoint, test: Test) -> Joined:
    """Every part that the checkpoint keeps, whether it is served or not."""
    folder = checkpoint.folder
    pooled = load_pooled(folder, checkpoint.config, test.features.widths())
    joined = Joined(checkpoint.heads, pooled, load_sasrec(folder / "sasrec"), equal_weights(PARTS))
    joined.to(choose_device())
    return joined


def blocks_of(joined: Joined, language_model_C3P: np.ndarray, test: Test) -> PartBlocks:
    """By the code that serves."""
    return PartBlocks(
        joined.user_blocks(language_model_C3P, test.cases.histories, test.features),
        joined.item_blocks(test.features, np.arange(test.dataset.num_items)),
    )


def encode_users(checkpoint: Checkpoint, test: Test, histories: list[np.ndarray], store: Store) -> np.ndarray:
    """The language model's share of user vectors, float32 [len(histories), 3P]."""
    config = checkpoint.config
    language_model = load_language_model(config.language_model, store.models, choose_device())
    builder = PromptBuilder(language_model.tokenizer, config.prompt)
    segments = build_segments(language_model.tokenizer, test.dataset.items, config.prompt)
    heads = checkpoint.heads.to(language_model.device)
    encoder = UserEncoder(language_model, heads, builder, segments, test.features)
    engine = Engine(encoder, language_model.pack(), CacheSizes(user_vector_bytes=0, prefix_bytes=0))
    used = [builder.keep_newest(history, segments) for history in histories]
    turns = [used[start : start + NUM_USERS_AT_ONCE] for start in range(0, len(used), NUM_USERS_AT_ONCE)]
    return np.concatenate([engine.encode(turn) for turn in tqdm(turns, desc="histories", disable=None)])


def only(signal: Signal, weights: Weights) -> Weights:
    """The weights of one signal."""
    return {part: {signal: own[signal]} for part, own in weights.items() if signal in own}


if __name__ == "__main__":
    run_job(main)
