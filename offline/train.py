"""Train a checkpoint: RISA + RERI in one pass a step, the projectors on cached states, the other parts, their weights.

    python -m offline.train --config demo

Interrupted runs resume from the last saved step and end with the same result. Training is one process on one device.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import get_int_from_env, set_seed
from safetensors.torch import save_file

from model.artifacts import building, fingerprint, is_up_to_date, write_json, write_manifest
from model.checkpoint import WEIGHTS_FILE, point_to_checkpoint
from model.config import PARTS, Config
from model.encoder import UserEncoder
from model.errors import InvalidInputError
from model.heads import NOTHING, Heads, ItemFeatures, Projectors
from model.joined import Joined, equal_weights
from model.language_model import LanguageModel, choose_device, load_language_model
from model.prompt import PromptBuilder, build_segments
from model.sasrec import load_sasrec
from model.store import Store
from offline import pooled
from offline.ablation import open_dataset
from offline.aligned import feature_inputs, load_item_features
from offline.dataset import Dataset, dataset_hashes
from offline.encoders.source import identify
from offline.fit import CachedStates, Examples, fit_projectors, validation_ndcg
from offline.fusion import validation_choices
from offline.jobs import configured, job_parser, run_job
from offline.losses import RERI
from offline.onepass import OnePass, train_steps
from offline.plots import plot_training
from offline.pooled import make_pooled, sample_users
from offline.states import cached_examples, measure_states

VERSION = 3
"""Raise when the same inputs would give another checkpoint."""
PROCESS_COUNTS = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]
"""Where launchers (torchrun, accelerate, MPI) say how many processes they started."""
NUM_CANARIES = 8


def main() -> int:
    arguments = job_parser(__doc__.splitlines()[0]).parse_args()
    config, store = configured(arguments)
    folder = train(config, store)
    print(f"checkpoint {folder.name}")
    return 0


def train(config: Config, store: Store) -> Path:
    """Make the checkpoint of this configuration, or find it up to date. Returns its folder.

    Either way it becomes the one that `latest_checkpoint` finds.
    """
    refuse_several_processes()
    inputs = training_inputs(config, store)
    folder = store.checkpoints / f"{config.name}-{fingerprint(inputs)[:8]}"
    if is_up_to_date(folder, inputs):
        print(f"train: {folder.name} is up to date")
    else:
        make_checkpoint(folder, config, store, inputs)
    point_to_checkpoint(store, config.name, folder.name)
    return folder


def make_checkpoint(folder: Path, config: Config, store: Store, inputs: dict[str, Any]) -> None:
    """Train, or go on with an interrupted training, and write the checkpoint."""
    work = store.checkpoints / f".work-{folder.name}"
    work.mkdir(parents=True, exist_ok=True)
    run = load_run(config, store)
    start = time.perf_counter()
    records = fit(run, work)
    seconds = time.perf_counter() - start
    with building(folder) as new:
        write_checkpoint(new, run, records, {"inputs": inputs, "train_seconds": round(seconds, 1)})
    shutil.rmtree(work)


def refuse_several_processes() -> None:
    """Raises InvalidInputError under a launcher of several processes, which would each write the same checkpoint."""
    num = get_int_from_env(PROCESS_COUNTS, 1)
    if num > 1:
        raise InvalidInputError(
            f"training was launched in {num} processes, and works in one on one device: use "
            "`accelerate launch --num_processes 1` or no launcher",
            "num_processes",
        )


def training_inputs(config: Config, store: Store) -> dict[str, Any]:
    """Everything that the result depends on; finds out which weights the language model has without loading them."""
    model = config.language_model
    return {
        "config": config.model_dump(mode="json", exclude={"evaluate"}),
        "dataset": dataset_hashes(store.dataset(config.dataset)),
        "features": feature_inputs(config, store),
        "language_model": identify(model.source, model.revision, store.models, weights=not model.random_init),
        "version": [VERSION, pooled.VERSION],
    }


@dataclass(frozen=True)
class Run:
    """One run's parts, loaded."""

    config: Config
    dataset: Dataset
    features: ItemFeatures
    encoders: dict[str, str]
    heads: Heads
    encoder: UserEncoder
    store: Store

    @property
    def cf_folder(self) -> Path:
        """Where SASRec lies."""
        return self.store.features(self.config.name, "cf")

    @property
    def language_model(self) -> LanguageModel:
        return self.encoder.language_model


def load_run(config: Config, store: Store) -> Run:
    """Load dataset, features and language model, and make fresh heads. Raises ArtifactError when they do not fit."""
    dataset = open_dataset(config, store)
    features, encoders = load_item_features(config, store, dataset)
    language_model = load_language_model(config.language_model, store.models, choose_device())
    set_seed(config.seed)
    heads = Heads(config.heads, language_model.width, features.widths(), language_model.embedding_rms)
    heads.measure_features(features)
    tokenizer = language_model.tokenizer
    builder = PromptBuilder(tokenizer, config.prompt)
    segments = build_segments(tokenizer, dataset.items, config.prompt)
    builder.check_room(segments)
    encoder = UserEncoder(language_model, heads.to(language_model.device), builder, segments, features)
    return Run(config, dataset, features, encoders, heads, encoder, store)


def fit(run: Run, work: Path) -> dict[str, Any]:
    """Train heads in place; returns the records of both stages, the pooled part and the weights of all parts."""
    config = run.config
    reri = RERI(run.dataset, run.features, config.heads, config.train)
    validation_users = sample_users(run.dataset, config.train.max_validation_users, config.seed)
    if config.train.steps:
        measure_states(run.encoder, run.dataset, config)
    records: dict[str, Any] = {"heads": []}
    records["steps"] = train_steps(
        OnePass(run.encoder, run.dataset, reri, config),
        run.dataset,
        config,
        work,
        validate=lambda: validate(run, validation_users),
    )
    if config.train.head_epochs:
        train_states, validation = cached_examples(run.encoder, run.dataset, config, validation_users, work / "states")
        records["heads"] = fit_projectors(
            run.heads,
            run.features,
            train_states,
            validation,
            run.dataset.validation_cases(validation.users).histories,
            reri,
            config.train,
            config.seed,
            "projectors",
        )
    else:
        validation = validation_examples(run, validation_users)
    device = run.language_model.device
    records["pooled"], pooled_part = make_pooled(config, run.store, run.dataset, run.features, device)
    records |= fuse(run, pooled_part, validation)
    return records | {"projectors": pooled_part}


def fuse(run: Run, pooled: Projectors, validation: Examples) -> dict[str, Any]:
    """Fit the weights of the parts; returns them under `weights`, and the NDCG@10 of the same events by system.

    Of a catalog above `train.max_softmax_items`, among a sample of its items.
    """
    sasrec = load_sasrec(run.cf_folder).to(run.language_model.device)
    joined = Joined(run.heads, pooled, sasrec, equal_weights(PARTS))
    state_UD = validation.states.take(np.arange(len(validation.states))).to(run.heads.device)
    with torch.inference_mode():
        language_model = run.heads.project_users(state_UD).cpu().numpy()
    most = run.config.train.max_softmax_items
    choices = validation_choices(joined, language_model, validation.users, run.dataset, run.features, most)
    parts = run.config.heads.parts
    systems = {"joined": parts, "without language model": [part for part in parts if part != "language_model"]}
    weights = {name: choices.weights(own) for name, own in systems.items() if own}
    scores = {name: choices.ndcg(own) for name, own in weights.items()}
    return {"weights": weights, "validation": scores, "validation_ndcg@10": scores["joined"]}


def validate(run: Run, users: np.ndarray) -> float:
    """Full-ranking NDCG@10 of the validation targets by the language model's part alone."""
    seen = run.dataset.validation_cases(users).histories
    return validation_ndcg(run.heads, run.features, validation_examples(run, users), seen)


def validation_examples(run: Run, users: np.ndarray) -> Examples:
    """States of histories as serving would show them, and the validation targets."""
    builder, segments = run.encoder.builder, run.encoder.segments
    cases = run.dataset.validation_cases(users)
    prompts = [builder.recommend(builder.keep_newest(history, segments), segments) for history in cases.histories]
    return Examples(CachedStates(run.encoder.encode_states(prompts)), users, cases.targets)


def write_checkpoint(folder: Path, run: Run, records: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write every file of model/checkpoint.py's list, the manifest last."""
    config, dataset = run.config, run.dataset
    pooled: Projectors = records.pop("projectors")
    write_json(folder / "config.json", served_config(run).model_dump(mode="json"))
    save_file(run.heads.state_dict(), folder / "heads.safetensors")
    save_file(pooled.state_dict(), folder / "pooled.safetensors")
    write_json(folder / WEIGHTS_FILE, records["weights"])
    shutil.copytree(run.cf_folder, folder / "sasrec", ignore=shutil.ignore_patterns("*.npy"))
    has_cf = run.features.origin["cf"] != NOTHING
    np.save(folder / "cf.npy", np.asarray(run.features.vectors["cf"]), allow_pickle=False)
    table = {"item_id": dataset.item_ids, "num_events": dataset.num_train_events, "has_cf": has_cf}
    pq.write_table(pa.table(table), folder / "train_items.parquet")
    write_json(folder / "canaries.json", canaries(dataset))
    write_json(folder / "metrics.json", records)
    plot_training(records, folder / "curve.png")
    write_manifest(
        folder,
        {
            "kind": "checkpoint",
            "config_name": config.name,
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
            "encoders": run.encoders,
            "widths": run.features.widths(),
            "state_width": run.language_model.width,
            "validation_ndcg@10": records["validation_ndcg@10"],
            **facts,
        },
    )


def served_config(run: Run) -> Config:
    """The configuration with `auto` resolved: rankings depend on the dtype, so serving takes the one trained with."""
    dtype = str(run.language_model.dtype).removeprefix("torch.")
    return run.config.model_copy(
        update={"language_model": run.config.language_model.model_copy(update={"dtype": dtype})}
    )


def canaries(dataset: Dataset) -> list[list[str]]:
    """Training histories of a few users spread over the dataset, as item ids."""
    users = np.unique(np.linspace(0, len(dataset.users) - 1, NUM_CANARIES).astype(int))
    return [[dataset.item_ids[row] for row in dataset.train_events(user)[-10:]] for user in users]


if __name__ == "__main__":
    run_job(main)
