"""`python -m service.openapi`: write `openapi.json`, the committed description of the HTTP surface."""

from __future__ import annotations

import json
from pathlib import Path

from service.app import create_app
from service.settings import Settings

OPENAPI_FILE = Path(__file__).resolve().parent.parent / "openapi.json"


def openapi_text() -> str:
    """The description as it is committed; the same on every machine."""
    return json.dumps(create_app(Settings()).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    OPENAPI_FILE.write_text(openapi_text())
    print(f"wrote {OPENAPI_FILE.name}")
