"""Tests are marked by the folder they lie in, and share one tiny world."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from worlds import World

KINDS = ("unit", "integration", "e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        kind = Path(item.path).parent.name
        if kind in KINDS:
            item.add_marker(getattr(pytest.mark, kind))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model, SigLIP, CLIP and sentence encoder, by folder name."""
    from worlds import build_models

    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_world(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A store in which every job has run; only for reading (`copy` makes one to change)."""
    from worlds import build_world

    return build_world(tmp_path_factory.mktemp("world"), tiny_models)
