"""Tests are marked by the folder they lie in."""

from __future__ import annotations

from pathlib import Path

import pytest

KINDS = ("unit", "integration", "e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        kind = Path(item.path).parent.name
        if kind in KINDS:
            item.add_marker(getattr(pytest.mark, kind))
