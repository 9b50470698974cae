"""Folders of files that are either whole or not there.

A folder is built under a temporary name, its manifest (sizes and SHA-256 of every file, and the facts of the job that
made it) is written last, and only then is it renamed into place. Knows nothing of what the files mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.errors import ArtifactError

MANIFEST = "manifest.json"
# A sample is 64 MiB of a file, spread evenly over it: enough to notice another file of the same size, or a copy that
# stopped half-way, in a tenth of a second.
NUM_SAMPLES, SAMPLE_BYTES = 64, 2**20


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_sample(path: Path) -> str:
    """Hex SHA-256 of evenly spread parts of a file, its beginning and its end among them."""
    digest = hashlib.sha256()
    last = path.stat().st_size - SAMPLE_BYTES
    with path.open("rb") as file:
        for number in range(NUM_SAMPLES):
            file.seek(last * number // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """16 hex digits that are equal exactly when the JSON forms of two values are equal."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    replace_file(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def replace_file(path: Path, content: bytes) -> None:
    """Replace one file atomically and durably."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


@contextmanager
def building(final: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `final`; at a clean exit it takes the place of `final`.

    The body must end with `write_manifest`. After an exception nothing of the new folder remains.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if not (temporary / MANIFEST).is_file():
            raise ArtifactError(f"{final}: the job ended without a manifest, so nothing was published")
        if final.exists():
            retired = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
            final.rename(retired)
            temporary.rename(final)
            shutil.rmtree(retired)
        else:
            temporary.rename(final)
        _sync_folder(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write `manifest.json`: `facts`, and size and hash of every file below `folder`. Returns the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest = {**facts, "files": {path.relative_to(folder).as_posix(): _identity(path) for path in paths}}
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path, *, verify: bool = True) -> dict[str, Any]:
    """The manifest of `folder`; with `verify`, after checking size and hash of every file it names.

    Raises ArtifactError that names the file when one is missing, truncated or altered.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        files = manifest["files"]
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: the job that makes {folder.name} has not finished; run it") from None
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{path} is damaged: it is not a manifest; make {folder.name} again") from None
    if verify:
        verify_files(folder, files)
    return manifest


def verify_files(folder: Path, files: dict[str, Any], max_hashed_bytes: int | None = None) -> None:
    """Check size and hash of every file that a manifest names, the smallest first.

    Large files that do not fit in `max_hashed_bytes` (None: no limit) are hashed in samples, so that a changed bit may
    go unseen. Raises ArtifactError that names the file when one is missing, truncated or altered.
    """
    hashed_bytes = 0
    for name, expected in sorted(files.items(), key=lambda entry: entry[1]["bytes"]):
        hashed_bytes += expected["bytes"]
        is_whole = max_hashed_bytes is None or hashed_bytes <= max_hashed_bytes
        _verify_file(folder / name, expected, is_whole)


def is_whole(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether a folder was made from these inputs and every file is as it was written: what may be copied."""
    if not is_up_to_date(folder, inputs):
        return False
    try:
        read_manifest(folder)
    except ArtifactError:
        return False
    return True


def is_up_to_date(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether `folder` holds a whole result of a job with exactly these `inputs` (compared as JSON)."""
    try:
        manifest = read_manifest(folder, verify=False)
        sizes_hold = all((folder / n).stat().st_size == f["bytes"] for n, f in manifest["files"].items())
    except (ArtifactError, OSError):
        return False
    return sizes_hold and fingerprint(manifest.get("inputs")) == fingerprint(inputs)


def _identity(path: Path) -> dict[str, Any]:
    identity: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if identity["bytes"] > NUM_SAMPLES * SAMPLE_BYTES:
        identity["sample_sha256"] = sha256_sample(path)
    return identity


def _verify_file(path: Path, expected: dict[str, Any], is_whole: bool) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing, though the manifest names it; make the folder again")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise ArtifactError(
            f"{path} has {size} bytes where its manifest says {expected['bytes']}: truncated or altered"
        )
    if is_whole or "sample_sha256" not in expected:
        is_same = sha256_file(path) == expected["sha256"]
    else:
        is_same = sha256_sample(path) == expected["sample_sha256"]
    if not is_same:
        raise ArtifactError(f"{path} differs from the hash in its manifest: altered or damaged; make it again")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
