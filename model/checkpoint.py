"""What training made, as one folder: the parts of a score, configuration, and what it knew of the items.

config.json            the run's configuration
heads.safetensors      adaptor, six projectors, [REC], stand-ins, normalisation constants
pooled.safetensors     projectors of the pooled part (without it, the control of the tables)
weights.json           how much each part counts, by part and signal; and the same without the language model
train_items.parquet    item_id, num_events (training events), has_cf
cf.npy                 float32 [rows of train_items, width]: SASRec's item embeddings
sasrec/                SASRec itself
canaries.json          a few training histories, replayed before a catalog is published
metrics.json, curve.png
manifest.json          written last
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from model.artifacts import MANIFEST, read_manifest, replace_file
from model.config import Config, Signal, parse_config
from model.errors import ArtifactError, InvalidInputError
from model.heads import Heads, Projectors
from model.joined import Joined, Weights
from model.pooled import pooled_projectors
from model.sasrec import load_sasrec
from model.store import Store

WEIGHTS_FILE = "weights.json"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint."""

    id: str
    folder: Path
    config: Config
    joined: Joined
    """The parts that make a score, on the processor."""
    num_events: dict[str, int]
    """Training events by item id."""
    cf_rows: dict[str, int]
    """Row of `cf_vectors` by item id, for the items that have a CF feature."""
    cf_vectors: np.ndarray
    canaries: tuple[tuple[str, ...], ...]
    encoders: dict[str, str]
    """Fingerprints of the encoders whose features the heads were trained on, by signal."""
    dataset_folder: str
    """Name of the dataset it was trained on."""

    @property
    def heads(self) -> Heads:
        return self.joined.heads


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load and verify a checkpoint. Raises ArtifactError naming the file that is missing, damaged or does not fit."""
    manifest = read_manifest(folder)
    try:
        config = parse_config(json.loads((folder / "config.json").read_text()), Config)
        heads = Heads(config.heads, manifest["state_width"], manifest["widths"], embedding_rms=1.0)
        weights = read_weights(folder)["joined"]
        canaries = read_canaries(folder)
    except OSError as error:
        raise ArtifactError(f"{error.filename} is missing; train again") from None
    except (KeyError, ValueError, InvalidInputError) as error:
        raise ArtifactError(f"{folder} does not fit this program version: {error}; train again") from error
    load_weights(heads, folder / "heads.safetensors")
    table = pq.read_table(folder / "train_items.parquet").to_pydict()
    return Checkpoint(
        id=folder.name,
        folder=folder,
        config=config,
        joined=Joined(
            heads=heads.eval().requires_grad_(False),
            pooled=load_pooled(folder, config, manifest["widths"]) if "pooled" in weights else None,
            sasrec=load_sasrec(folder / "sasrec").requires_grad_(False) if "sasrec" in weights else None,
            weights=weights,
        ),
        num_events=dict(zip(table["item_id"], table["num_events"], strict=True)),
        cf_rows={i: row for row, (i, has) in enumerate(zip(table["item_id"], table["has_cf"], strict=True)) if has},
        cf_vectors=np.load(folder / "cf.npy", mmap_mode="r", allow_pickle=False),
        canaries=canaries,
        encoders=manifest["encoders"],
        dataset_folder=config.dataset,
    )


def load_pooled(folder: Path, config: Config, widths: Mapping[Signal, int]) -> Projectors:
    """The pooled part of a checkpoint, in evaluation mode on the processor."""
    projectors = pooled_projectors(config, widths)
    load_weights(projectors, folder / "pooled.safetensors")
    return projectors.eval().requires_grad_(False)


def read_weights(folder: Path) -> dict[str, Weights]:
    """Weights by part and signal: `joined` of what is served, `without language model` of the other parts, if any."""
    weights: dict[str, Weights] = json.loads((folder / WEIGHTS_FILE).read_text())
    return weights


def read_canaries(folder: Path) -> tuple[tuple[str, ...], ...]:
    """A few training histories of a checkpoint, as item ids, oldest first."""
    return tuple(tuple(history) for history in json.loads((folder / "canaries.json").read_text()))


def load_weights(module: nn.Module, path: Path) -> None:
    """Load safetensors into a module of exactly the same shape."""
    try:
        module.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing; train again") from None
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(f"{path} does not fit its configuration: {error}") from error


def point_to_checkpoint(store: Store, config_name: str, checkpoint_id: str) -> None:
    """Make a checkpoint the one that `latest_checkpoint` finds."""
    pointer = _pointer(store, config_name)
    if not pointer.is_file() or pointer.read_text().strip() != checkpoint_id:
        replace_file(pointer, f"{checkpoint_id}\n".encode())


def _pointer(store: Store, config_name: str) -> Path:
    return store.checkpoints / f"{config_name}.latest"


def latest_checkpoint(store: Store, config_name: str) -> Path:
    """Folder of the checkpoint that training named last for a configuration of this name.

    Where that one is gone, the newest that is left. Raises ArtifactError when there is none.
    """
    pointer = _pointer(store, config_name)
    if pointer.is_file():
        folder = store.checkpoints / pointer.read_text().strip()
        if folder != store.checkpoints and (folder / MANIFEST).is_file():
            return folder
    found = []
    for path in store.checkpoints.glob(f"[!.]*/{MANIFEST}"):  # a dot begins what a killed job left half-made
        manifest = read_manifest(path.parent, verify=False)
        if manifest.get("config_name") == config_name:
            found.append((str(manifest["created"]), path.parent))
    if not found:
        raise ArtifactError(
            f"no checkpoint of configuration {config_name!r} in {store.checkpoints}: run `python -m offline.train`"
        )
    return max(found)[1]
