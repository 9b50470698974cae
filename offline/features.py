"""Image and text features of a dataset's items: `python -m offline.features --config demo`.

Encodes only what no earlier run encoded, keeps every finished shard when it is killed, and does not read an encoder's
weights when nothing is left to encode. `reindex` embeds its items through the same functions.

# N items, V visual width, T text width
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from model.artifacts import building, is_up_to_date, read_manifest, write_manifest
from model.config import Config
from model.errors import ArtifactError, InvalidInputError
from model.store import Store
from offline.dataset import items_fingerprint, load_dataset
from offline.encoders import ImageEncoder, load_image_encoder, load_text_encoder
from offline.encoders.picture import BrokenPictureError, open_picture
from offline.feature_cache import FeatureCache
from offline.jobs import configured, job_parser, run_job

FeatureSignal = Literal["image", "text"]
NOTHING, OWN, TEXT_TOWER = 0, 1, 2
"""Origins of a feature: none, the item's own picture or text, the aligned text tower in place of a picture."""

_CODE_VERSION = 1
"""Raise when the same items and encoders would give other files."""
SHARD_ROWS = 256
"""Features encoded between two writes: what a killed run loses at most."""
MAX_PRINTED = 20
"""Problems shown on the terminal; the manifest has them all."""

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class SignalFeatures:
    """What one encoder says of N items, by their row."""

    vectors: np.ndarray
    """float32 [N, V or T], not normalised; zeros where `origin` is 0."""
    origin: np.ndarray
    """uint8 [N]: 0 nothing, 1 the item's own content, 2 the encoder's text tower in place of a missing picture."""
    encoder_fingerprint: str
    num_encoded: int
    """Contents that went through the encoder in this run; the others came from the cache."""
    problems: tuple[str, ...] = ()
    """One sentence for every broken picture and damaged cache shard."""


def item_text(item: Mapping[str, Any]) -> str:
    """Title, brand, category and description, one a line; what is missing is left out."""
    return _joined(item, "\n", ("title", "brand", "category", "description"))


def stand_in_text(item: Mapping[str, Any]) -> str:
    """What the text tower reads in place of a picture: short, as the captions it was trained on."""
    return _joined(item, ", ", ("title", "brand", "category"))


def embed_items(
    items: pa.Table, image_folder: Path, config: Config, store: Store, device: str | None = None
) -> dict[FeatureSignal, SignalFeatures]:
    """Image and text features of `items` (ITEM_SCHEMA), whose `image` paths lie below `image_folder`.

    `device` unset: CUDA when there is one. A picture that cannot be used counts as missing and is named in `problems`.
    """
    return {signal: embed(items, image_folder, config, store, device) for signal, embed in _EMBED.items()}


def embed_images(
    items: pa.Table, image_folder: Path, config: Config, store: Store, device: str | None = None
) -> SignalFeatures:
    """float32 [N, V]: the picture, else the text tower on title, brand and category where the encoder has one."""
    encoder = load_image_encoder(config.vision, store.models, device or default_device())
    cache = FeatureCache(store.feature_cache / encoder.fingerprint)
    rows = items.select(["item_id", "title", "brand", "category", "image"]).to_pylist()
    pictures = _Pictures.of(rows, image_folder)
    num_encoded = _fill(
        cache, pictures.path_of, pictures.open, encoder.encode_images, config.vision.batch_size, "image"
    )
    keys = [key if key in cache else None for key in pictures.keys]
    origin = np.array([NOTHING if key is None else OWN for key in keys], np.uint8)
    if encoder.has_text_tower:
        num_encoded += _stand_in(encoder, cache, rows, keys, origin, config.vision.batch_size)
    problems = (*_damage(cache), *pictures.problems())
    vectors = cache.read(keys, cache.width or encoder.width)
    return SignalFeatures(vectors, origin, encoder.fingerprint, num_encoded, problems)


def embed_texts(
    items: pa.Table, image_folder: Path, config: Config, store: Store, device: str | None = None
) -> SignalFeatures:
    """float32 [N, T] of `item_text`. Takes no notice of `image_folder`."""
    del image_folder
    encoder = load_text_encoder(config.text, store.models, device or default_device())
    cache = FeatureCache(store.feature_cache / encoder.fingerprint)
    texts = [item_text(row) for row in items.select(["title", "brand", "category", "description"]).to_pylist()]
    keys = [_text_key(text) if text else None for text in texts]
    text_of = {key: text for key, text in zip(keys, texts, strict=True) if key}
    num_encoded = _fill(cache, text_of, text_of.__getitem__, encoder.encode_texts, config.text.batch_size, "text")
    origin = np.array([OWN if text else NOTHING for text in texts], np.uint8)
    vectors = cache.read(keys, cache.width or encoder.width)
    return SignalFeatures(vectors, origin, encoder.fingerprint, num_encoded, _damage(cache))


_EMBED: dict[FeatureSignal, Callable[..., SignalFeatures]] = {"image": embed_images, "text": embed_texts}


def load_features(folder: Path, *, verify: bool = True) -> SignalFeatures:
    """What this job wrote, vectors memory-mapped. Raises ArtifactError when it is missing or damaged."""
    manifest = read_manifest(folder, verify=verify)
    try:
        vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        origin = np.load(folder / "origin.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} cannot be read ({error}): run `python -m offline.features` again") from None
    counts = manifest["counts"]
    if vectors.shape != (counts["items"], manifest["width"]) or origin.shape != (counts["items"],):
        raise ArtifactError(f"{folder} has other shapes than its manifest: run `python -m offline.features` again")
    return SignalFeatures(vectors, origin, manifest["encoder"], counts["encoded"], tuple(manifest["problems"]))


def write_features(config: Config, store: Store, device: str | None = None) -> list[FeatureSignal]:
    """Bring both feature folders up to date with the dataset; returns the signals that were not."""
    inputs = _inputs(config, store, device or default_device())
    stale = [signal for signal in _EMBED if not is_up_to_date(store.features(config.name, signal), inputs[signal])]
    if stale:
        dataset = load_dataset(store.dataset(config.dataset))
        for signal in stale:
            features = _EMBED[signal](dataset.items, dataset.folder, config, store, device)
            _save(features, signal, inputs[signal], store.features(config.name, signal))
    return stale


def default_device() -> str:
    """`cuda` when there is one. Asks torch only where a driver is present: importing it takes over a second."""
    if any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu"


class _Pictures:
    """The picture files of some items by content hash, and what is wrong with some of them."""

    def __init__(self) -> None:
        self.keys: list[str | None] = []
        """By item row; None: no picture, or one that cannot be read."""
        self.path_of: dict[str, Path] = {}
        self._items_of: dict[str, list[str]] = {}
        self._unread: list[str] = []
        self._broken: dict[str, str] = {}

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], folder: Path) -> _Pictures:
        pictures = cls()
        for row in tqdm(rows, desc="reading pictures", unit="item", disable=None):
            pictures.keys.append(pictures._add(row["item_id"], row["image"], folder))
        return pictures

    def open(self, key: str) -> Any:
        """The picture, or None after noting that it is broken."""
        content = self.path_of[key].read_bytes()
        if hashlib.sha256(content).hexdigest() != key:
            raise ArtifactError(f"{self.path_of[key]} changed while the job ran: run it again")
        try:
            return open_picture(content)
        except BrokenPictureError as error:
            self._broken[key] = str(error)
            return None

    def problems(self) -> list[str]:
        broken = [
            f"item {item_id}: picture {self.path_of[key].name} {reason}"
            for key, reason in self._broken.items()
            for item_id in self._items_of[key]
        ]
        return sorted(self._unread + broken)

    def _add(self, item_id: str, name: str | None, folder: Path) -> str | None:
        if name is None:
            return None
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            self._unread.append(f"item {item_id}: picture {name} lies outside the folder of pictures")
            return None
        path = folder / name
        try:
            key = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            self._unread.append(f"item {item_id}: picture {name} cannot be read ({error.strerror})")
            return None
        self.path_of.setdefault(key, path)
        self._items_of.setdefault(key, []).append(item_id)
        return key


def _stand_in(
    encoder: ImageEncoder,
    cache: FeatureCache,
    rows: Sequence[Mapping[str, Any]],
    keys: list[str | None],
    origin: np.ndarray,
    batch_size: int,
) -> int:
    """Give rows without a picture the text tower's vector, in `keys` and `origin`; returns how many were encoded."""
    text_of: dict[str, str] = {}
    for row, key in enumerate(keys):
        text = stand_in_text(rows[row])
        if key is None and text:
            keys[row] = _text_key(text)
            text_of[_text_key(text)] = text
            origin[row] = TEXT_TOWER
    return _fill(cache, text_of, text_of.__getitem__, encoder.encode_texts, batch_size, "stand-in")


def _fill(
    cache: FeatureCache,
    keys: Iterable[str],
    prepare: Callable[[str], Prepared | None],
    encode: Callable[[list[Prepared]], np.ndarray],
    batch_size: int,
    label: str,
) -> int:
    """Encode what the cache lacks, a shard at a time; returns how many. What `prepare` gives None for is left out."""
    missing = [key for key in keys if key not in cache]
    num_encoded = 0
    shard_keys: list[str] = []
    shard: list[np.ndarray] = []
    with tqdm(total=len(missing), desc=f"{label} features", unit="item", disable=None) as progress:
        for batch in _prepared(missing, prepare, batch_size):
            usable = [(key, content) for key, content in batch if content is not None]
            if usable:
                shard.append(_finite(encode([content for _, content in usable]), label))
                shard_keys += [key for key, _ in usable]
                num_encoded += len(usable)
            if len(shard_keys) >= SHARD_ROWS:
                cache.append(shard_keys, np.concatenate(shard))
                shard_keys, shard = [], []
            progress.update(len(batch))
    if shard_keys:
        cache.append(shard_keys, np.concatenate(shard))
    return num_encoded


def _prepared(
    keys: Sequence[str], prepare: Callable[[str], Prepared | None], batch_size: int
) -> Iterator[list[tuple[str, Prepared | None]]]:
    """Batches of prepared contents, the next one being prepared in threads while the last one is encoded."""
    remaining = iter(keys)
    with ThreadPoolExecutor() as pool:

        def start() -> tuple[list[str], Iterator[Prepared | None]]:
            batch = list(islice(remaining, batch_size))
            return batch, pool.map(prepare, batch)

        batch, results = start()
        while batch:
            contents = list(results)
            following = start()
            yield list(zip(batch, contents, strict=True))
            batch, results = following


def _finite(vectors: np.ndarray, label: str) -> np.ndarray:
    if not np.isfinite(vectors).all():
        raise InvalidInputError(
            f"the {label} encoder gave NaN or infinity: its weights are unusable or overflow; "
            "try --set vision.dtype=float32 or --set text.dtype=float32",
            "dtype",
        )
    return vectors


def _inputs(config: Config, store: Store, device: str) -> dict[FeatureSignal, dict[str, Any]]:
    """What the features of each signal depend on; needs no weights and no dataset in memory."""
    items = items_fingerprint(store.dataset(config.dataset))
    encoders: dict[FeatureSignal, str] = {
        "image": load_image_encoder(config.vision, store.models, device).fingerprint,
        "text": load_text_encoder(config.text, store.models, device).fingerprint,
    }
    return {signal: {"items": items, "encoder": encoder, "code": _CODE_VERSION} for signal, encoder in encoders.items()}


def _save(features: SignalFeatures, signal: FeatureSignal, inputs: dict[str, Any], folder: Path) -> None:
    counts = {
        "items": len(features.origin),
        "own": int((features.origin == OWN).sum()),
        "text_tower": int((features.origin == TEXT_TOWER).sum()),
        "nothing": int((features.origin == NOTHING).sum()),
        "encoded": features.num_encoded,
    }
    with building(folder) as temporary:
        np.save(temporary / "vectors.npy", features.vectors, allow_pickle=False)
        np.save(temporary / "origin.npy", features.origin, allow_pickle=False)
        facts = {
            "kind": "features",
            "signal": signal,
            "encoder": features.encoder_fingerprint,
            "width": features.vectors.shape[1],
            "counts": counts,
            "problems": list(features.problems),
            "inputs": inputs,
        }
        write_manifest(temporary, facts)
    print(f"{signal}: {counts['items']} items, {counts['encoded']} encoded, {counts['nothing']} without -> {folder}")
    for problem in features.problems[:MAX_PRINTED]:
        print(f"  {problem}")
    if len(features.problems) > MAX_PRINTED:
        print(f"  and {len(features.problems) - MAX_PRINTED} more in the manifest")


def _joined(item: Mapping[str, Any], separator: str, fields: Sequence[str]) -> str:
    parts = [(item.get(field) or "").strip() for field in fields]
    return separator.join(part for part in parts if part)


def _text_key(text: str) -> str:
    # The mark keeps a text apart from a picture file of the same bytes in an encoder's cache.
    return hashlib.sha256(f"text\n{text}".encode()).hexdigest()


def _damage(cache: FeatureCache) -> tuple[str, ...]:
    return tuple(
        f"cache shard {name} was truncated or altered; its features were encoded again" for name in cache.damaged
    )


def main() -> None:
    config, store = configured(job_parser("Encode pictures and texts of the items of a dataset.").parse_args())
    if not write_features(config, store):
        print(f"features of {config.name} are up to date")


if __name__ == "__main__":
    run_job(main)
