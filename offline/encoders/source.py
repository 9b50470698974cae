"""Where an encoder's weights are and which weights they are, found out without loading them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from model.artifacts import MANIFEST, fingerprint, sha256_file, write_json
from model.config import Dtype
from model.errors import InvalidInputError
from model.packages import resolve_source

_IDENTIFYING = (".safetensors", ".json", ".txt", ".model")
"""Weights, configuration and tokenizer; a README may change without a feature changing."""
_SLOW_TO_HASH_BYTES = 64 * 1024 * 1024
"""Hashes of larger files (over some 50 ms each) are remembered by path, size and time of change."""


@dataclass(frozen=True)
class Source:
    """A folder, or a hub id at one commit."""

    location: str
    revision: str | None
    identity: str
    """Equal for equal files: a hash of the folder's content, or hub id and commit."""
    config_file: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """What `config_file` says."""
        try:
            config = json.loads(self.config_file.read_text())
        except ValueError:
            config = None
        if not isinstance(config, dict):
            raise InvalidInputError(f"{self.config_file} is not a JSON object; fetch the model again", "source")
        return config


def identify(source: str, revision: str | None, models: Path, *, weights: bool = True) -> str:
    """Equal for equal models: a hash of a folder's content, or hub id and commit. Errors as `locate`.

    Without `weights` a folder need not hold any: for models of random weights.
    """
    location = resolve_source(source, models)
    if weights or not Path(location).is_dir():
        return locate(source, revision, models).identity
    return _content(Path(location), models)


def locate(source: str, revision: str | None, models: Path, config_file: str = "config.json") -> Source:
    """Resolve a configured source to its exact weights.

    A hub id is pinned to the commit that `revision` names now (from the local hub cache when it is there and the hub
    is not). Raises InvalidInputError when there is no such model, or none with safetensors weights.
    """
    location = resolve_source(source, models)
    if Path(location).is_dir():
        return _folder(source, Path(location), models, config_file)
    return _hub(location, revision, config_file)


def choose_dtype(dtype: Dtype, device: str) -> str:
    """`auto` is bfloat16 on CUDA and float32 elsewhere.

    Not measured, unlike the language model's: the dtype is part of the fingerprint, a timing that tips over would
    encode a whole catalog again, and an item is encoded only once.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.startswith("cuda") else "float32"


def _folder(source: str, folder: Path, models: Path, config_file: str) -> Source:
    if not any(path.suffix == ".safetensors" for path in _identifying_files(folder)):
        raise InvalidInputError(
            f"{source}: no .safetensors file in {folder}; weights in other formats can run code when they are loaded "
            "and are refused, so convert them first",
            "source",
        )
    if not (folder / config_file).is_file():
        raise InvalidInputError(f"{source}: {folder} has no {config_file}, so it is not a model of this kind", "source")
    return Source(str(folder), None, _content(folder, models), folder / config_file)


def _identifying_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in _IDENTIFYING and p.is_file() and p.name != MANIFEST)


def _content(folder: Path, models: Path) -> str:
    hashes = {path.relative_to(folder).as_posix(): _sha256(path, models) for path in _identifying_files(folder)}
    return f"sha256:{fingerprint(hashes)}"


def _hub(hub_id: str, revision: str | None, config_file: str) -> Source:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        path = Path(hf_hub_download(hub_id, config_file, revision=revision))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidInputError(
            f"{hub_id!r} cannot be had from the model hub ({reason}); give an existing folder, "
            "or a hub id that this machine can reach or has in its hub cache",
            "source",
        ) from None
    commit = path.parent.name  # the hub cache keeps files in snapshots/<commit>/
    return Source(hub_id, commit, f"hub:{hub_id}@{commit}", path)


def _sha256(path: Path, models: Path) -> str:
    state = path.stat()
    if state.st_size < _SLOW_TO_HASH_BYTES:
        return sha256_file(path)
    memory = models / "file-hashes.json"
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    key = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    if key not in known:
        known[key] = sha256_file(path)
        models.mkdir(parents=True, exist_ok=True)
        write_json(memory, known)
    return str(known[key])
