"""Train a checkpoint: RISA + RERI in one pass a step, then (optionally) the projectors on cached states.

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
from accelerate.utils import get_int_from_env, set_seed
from safetensors.torch import save_file

from model.artifacts import building, fingerprint, is_up_to_date, read_manifest, write_json, write_manifest
from model.checkpoint import point_to_checkpoint
from model.config import SIGNALS, Config
from model.encoder import UserEncoder
from model.errors import InvalidInputError
from model.heads import NOTHING, Heads, ItemFeatures
from model.language_model import LanguageModel, choose_device, load_language_model
from model.prompt import PromptBuilder, build_segments
from model.store import Store
from offline.aligned import load_item_features
from offline.control import MAX_HISTORY, PooledStates, control_projectors, pad_histories
from offline.dataset import Dataset, dataset_hashes, load_dataset
from offline.encoders.source import identify
from offline.fit import CachedStates, Examples, fit_projectors, validation_ndcg
from offline.jobs import configured, job_parser, run_job
from offline.losses import RERI
from offline.onepass import OnePass, train_steps
from offline.plots import plot_training
from offline.states import cached_examples, measure_states

VERSION = 1
"""Raise when the same inputs would give another checkpoint."""
PROCESS_COUNTS = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]
"""Where launchers (torchrun, accelerate, MPI) say how many processes they started."""
NUM_CANARIES = 8
CONTROL_EPOCHS = 100
"""Most epochs of the control; it stops by itself."""


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
        write_checkpoint(new, run, records, store, {"inputs": inputs, "train_seconds": round(seconds, 1)})
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
        "features": {s: read_manifest(store.features(config.name, s), verify=False)["inputs"] for s in SIGNALS},
        "language_model": identify(model.source, model.revision, store.models, weights=not model.random_init),
        "version": VERSION,
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

    @property
    def language_model(self) -> LanguageModel:
        return self.encoder.language_model


def load_run(config: Config, store: Store) -> Run:
    """Load dataset, features and language model, and make fresh heads. Raises ArtifactError when they do not fit."""
    dataset = load_dataset(store.dataset(config.dataset))
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
    return Run(config, dataset, features, encoders, heads, encoder)


def fit(run: Run, work: Path) -> dict[str, Any]:
    """Train heads in place; returns the records of both stages and the control's projectors under `control`."""
    config = run.config
    reri = RERI(run.dataset, run.features, config.heads, config.train)
    validation_users = sample_users(len(run.dataset.users), config.train.max_validation_users, config.seed)
    if config.train.steps:
        measure_states(run.encoder, run.dataset, config)
    step_records = train_steps(
        OnePass(run.encoder, run.dataset, reri, config),
        run.dataset,
        config,
        work,
        validate=lambda: validate(run, validation_users),
    )
    records: dict[str, Any] = {"steps": step_records, "heads": []}
    if config.train.head_epochs:
        train_states, validation_states = cached_examples(
            run.encoder, run.dataset, config, validation_users, work / "states"
        )
        seen = [run.dataset.train_events(user) for user in validation_states.users]
        records["heads"] = fit_projectors(
            run.heads,
            run.features,
            train_states,
            validation_states,
            seen,
            reri,
            config.train,
            config.seed,
            "projectors",
        )
        records["validation_ndcg@10"] = max(record["validation_ndcg@10"] for record in records["heads"])
    else:
        records["validation_ndcg@10"] = validate(run, validation_users)
    records["control"] = fit_control(run, reri, validation_users)
    return records


def sample_users(num_users: int, most: int, seed: int) -> np.ndarray:
    """A fixed sample of users, sorted."""
    return np.sort(np.random.default_rng([seed, 3]).permutation(num_users)[:most])


def validate(run: Run, users: np.ndarray) -> float:
    """Full-ranking NDCG@10 of the validation targets, with histories as serving would show them."""
    histories = [run.dataset.train_events(user) for user in users]
    prompts = [
        run.encoder.builder.recommend(
            run.encoder.builder.keep_newest(history, run.encoder.segments), run.encoder.segments
        )
        for history in histories
    ]
    states = CachedStates(run.encoder.encode_states(prompts))
    targets = np.array([run.dataset.validation_target(user) for user in users])
    return validation_ndcg(run.heads, run.features, Examples(states, users, targets), histories)


def fit_control(run: Run, reri: RERI, validation_users: np.ndarray) -> dict[str, Any]:
    """Train the control without a language model on every training event; its projectors are in `projectors`."""
    dataset, config = run.dataset, run.config
    users, histories, targets = [], [], []
    for user in range(len(dataset.users)):
        events = dataset.train_events(user)
        for end in range(1, len(events)):
            users.append(user)
            histories.append(events[max(0, end - MAX_HISTORY) : end])
            targets.append(events[end])
    train_states = PooledStates(run.features, pad_histories(histories))
    seen = [dataset.train_events(user) for user in validation_users]
    validation_states = PooledStates(run.features, pad_histories(seen))
    validation_targets = np.array([dataset.validation_target(user) for user in validation_users])
    set_seed(config.seed)
    projectors = control_projectors(config, run.features)
    projectors.measure_features(run.features)
    projectors.to(run.language_model.device)
    records = fit_projectors(
        projectors,
        run.features,
        Examples(train_states, np.array(users), np.array(targets)),
        Examples(validation_states, validation_users, validation_targets),
        seen,
        reri,
        config.train.model_copy(update={"head_epochs": max(config.train.head_epochs, CONTROL_EPOCHS)}),
        config.seed,
        "control",
    )
    return {"records": records, "projectors": projectors}


def write_checkpoint(folder: Path, run: Run, records: dict[str, Any], store: Store, facts: dict[str, Any]) -> None:
    """Write every file of model/checkpoint.py's list, the manifest last."""
    config, dataset = run.config, run.dataset
    control = records.pop("control")
    write_json(folder / "config.json", served_config(run).model_dump(mode="json"))
    save_file(run.heads.state_dict(), folder / "heads.safetensors")
    save_file(control["projectors"].state_dict(), folder / "control.safetensors")
    shutil.copytree(store.features(config.name, "cf"), folder / "sasrec", ignore=shutil.ignore_patterns("*.npy"))
    has_cf = run.features.origin["cf"] != NOTHING
    np.save(folder / "cf.npy", np.asarray(run.features.vectors["cf"]), allow_pickle=False)
    table = {"item_id": dataset.item_ids, "num_events": dataset.num_train_events, "has_cf": has_cf}
    pq.write_table(pa.table(table), folder / "train_items.parquet")
    write_json(folder / "canaries.json", canaries(dataset))
    metrics = {**records, "control": control["records"]}
    write_json(folder / "metrics.json", metrics)
    plot_training(metrics, folder / "curve.png")
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
