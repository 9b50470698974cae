"""Features of one encoder by content hash, kept between runs. Knows neither pictures nor texts.

A shard is one safetensors file of keys and vectors, named by the SHA-256 of its bytes and put in place by a rename: it
is whole or absent, nothing ever changes it, and processes that write at the same time write different files or the
same bytes.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from model.artifacts import replace_file, sha256_file

logger = logging.getLogger(__name__)
SUFFIX = ".safetensors"


class FeatureCache:
    """The shards in one folder. Keys are SHA-256 in hex; vectors are float32 of one width.

    A shard that is truncated or altered is named in `damaged` and in the log, deleted, and what it held is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.width: int | None = None
        """Width of the vectors; None while there are none."""
        self.damaged: list[str] = []
        self._place: dict[str, tuple[str, int]] = {}
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            if sha256_file(path) == path.stem:
                self._note(path)
            else:
                self._discard(path)

    def __contains__(self, key: object) -> bool:
        return key in self._place

    def __len__(self) -> int:
        return len(self._place)

    def append(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        """Keep vectors [len(keys), width] as one new shard."""
        key_rows = np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), 32)
        content = save({"keys": key_rows, "vectors": np.ascontiguousarray(vectors, np.float32)})
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}{SUFFIX}"
        replace_file(path, content)
        self._note(path)

    def read(self, keys: Sequence[str | None], width: int) -> np.ndarray:
        """float32 [len(keys), width]: the vector of every key, zeros for None. KeyError for an unknown key."""
        vectors = np.zeros((len(keys), width), np.float32)
        wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for row, key in enumerate(keys):
            if key is not None:
                shard, place = self._place[key]
                wanted[shard].append((row, place))
        for shard, pairs in wanted.items():
            rows, places = np.array(pairs).T
            vectors[rows] = load_file(self.folder / shard)["vectors"][places]
        return vectors

    def _note(self, path: Path) -> None:
        tensors = load_file(path)
        self.width = tensors["vectors"].shape[1]
        for place, key in enumerate(tensors["keys"]):
            self._place.setdefault(key.tobytes().hex(), (path.name, place))

    def _discard(self, path: Path) -> None:
        logger.warning("%s is truncated or altered: its features are encoded again", path)
        self.damaged.append(path.name)
        path.unlink(missing_ok=True)
