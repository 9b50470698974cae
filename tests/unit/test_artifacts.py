"""Large files, of which only samples are read when a folder is too large to read whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from model.artifacts import NUM_SAMPLES, SAMPLE_BYTES, verify_files, write_manifest
from model.errors import ArtifactError

LARGE = NUM_SAMPLES * SAMPLE_BYTES + 5_000_000
SAMPLE_STARTS = [(LARGE - SAMPLE_BYTES) * number // (NUM_SAMPLES - 1) for number in range(NUM_SAMPLES)]


@pytest.fixture
def vouched(tmp_path: Path) -> dict[str, Any]:
    """A small file and a large, sparse one."""
    (tmp_path / "small.npy").write_bytes(bytes(1000))
    (tmp_path / "large.npy").touch()
    os.truncate(tmp_path / "large.npy", LARGE)
    return write_manifest(tmp_path, {})["files"]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\x01")


def test_only_large_files_have_a_sample(vouched: dict[str, Any]) -> None:
    assert {name for name, facts in vouched.items() if "sample_sha256" in facts} == {"large.npy"}


@pytest.mark.parametrize("at", [0, SAMPLE_STARTS[32], LARGE - 1])
def test_a_change_in_the_sample_of_a_large_file_is_refused(tmp_path: Path, vouched: dict[str, Any], at: int) -> None:
    verify_files(tmp_path, vouched, max_hashed_bytes=1000)
    flip(tmp_path / "large.npy", at)
    with pytest.raises(ArtifactError, match=r"large\.npy differs"):
        verify_files(tmp_path, vouched, max_hashed_bytes=1000)


def test_a_change_beside_the_samples_is_refused_where_the_whole_file_is_read(
    tmp_path: Path, vouched: dict[str, Any]
) -> None:
    flip(tmp_path / "large.npy", SAMPLE_STARTS[32] - 1)
    verify_files(tmp_path, vouched, max_hashed_bytes=1000)
    with pytest.raises(ArtifactError, match=r"large\.npy differs"):
        verify_files(tmp_path, vouched, max_hashed_bytes=1000 + LARGE)
    with pytest.raises(ArtifactError, match=r"large\.npy differs"):
        verify_files(tmp_path, vouched)


def test_the_smallest_files_are_read_whole_first(tmp_path: Path, vouched: dict[str, Any]) -> None:
    flip(tmp_path / "small.npy", 500)
    with pytest.raises(ArtifactError, match=r"small\.npy differs"):
        verify_files(tmp_path, vouched, max_hashed_bytes=1000)


def test_a_truncated_large_file_is_refused(tmp_path: Path, vouched: dict[str, Any]) -> None:
    os.truncate(tmp_path / "large.npy", LARGE - 1)
    with pytest.raises(ArtifactError, match=r"large\.npy has \d+ bytes"):
        verify_files(tmp_path, vouched, max_hashed_bytes=1000)
