"""Finding, listing and showing items of one catalog."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from fastapi import Response
from fastapi.responses import FileResponse

from model.errors import InvalidInputError
from service.errors import ItemNotFoundError, StaleCursorError
from service.protocols import Catalog, CatalogItem
from service.schemas import Item, ItemsQuery, ItemsResponse

_MEDIA_TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"GIF8": "image/gif"}


def find_item(catalog: Catalog, item_id: str) -> CatalogItem:
    """Raises ItemNotFoundError."""
    row = catalog.row(item_id)
    if row is None:
        raise ItemNotFoundError(f"catalog {catalog.version} has no item {_shown(item_id)}")
    return catalog.item(row)


def list_items(catalog: Catalog, query: ItemsQuery) -> ItemsResponse:
    """The items of `query.ids`, or else the page at `query.cursor`.

    Raises InvalidInputError on a cursor that is none, StaleCursorError on one of another catalog version.
    """
    if query.ids:
        return _look_up(catalog, query)
    start = 0 if query.cursor is None else _row_at(catalog, query.cursor)
    end = min(start + query.limit, catalog.num_items)
    return ItemsResponse(
        items=[Item.of(catalog.item(row)) for row in range(start, end)],
        next_cursor=_cursor(catalog, end) if end < catalog.num_items else None,
        unknown_items=[],
        catalog_version=catalog.version,
    )


def picture(item: CatalogItem, images: Path, known_tag: str | None) -> Response:
    """The item's picture, or 304 when the caller has it already. Raises ItemNotFoundError when there is none.

    The tag is the name of the file, which is its content's hash. The address is the item's, whose picture the next
    catalog may change: so it is kept for minutes and then asked for by its tag, not kept for ever.
    """
    path = _picture_file(item, images)
    headers = {
        "ETag": f'"{path.stem}"',
        "Cache-Control": "public, max-age=300",
        "X-Content-Type-Options": "nosniff",
    }
    if known_tag is not None and headers["ETag"] in known_tag:
        return Response(status_code=304, headers=headers)
    return FileResponse(path, headers=headers, media_type=_media_type(path))


def _look_up(catalog: Catalog, query: ItemsQuery) -> ItemsResponse:
    if query.cursor is not None:
        raise InvalidInputError("give ids or a cursor, not both", "cursor")
    rows = {item_id: catalog.row(item_id) for item_id in query.ids}
    return ItemsResponse(
        items=[Item.of(catalog.item(row)) for row in rows.values() if row is not None],
        next_cursor=None,
        unknown_items=[item_id for item_id, row in rows.items() if row is None],
        catalog_version=catalog.version,
    )


def _cursor(catalog: Catalog, row: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([catalog.version, row]).encode()).decode().rstrip("=")


def _row_at(catalog: Catalog, cursor: str) -> int:
    malformed = InvalidInputError("this cursor is not one that /items gave: leave it out to start", "cursor")
    try:
        version, row = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, TypeError, RecursionError):
        raise malformed from None
    if not isinstance(version, str) or type(row) is not int:
        raise malformed
    if version != catalog.version:
        raise StaleCursorError(f"catalog {catalog.version} has taken the place of the cursor's: start again without it")
    if not 0 <= row < catalog.num_items:
        raise malformed
    return row


def _picture_file(item: CatalogItem, images: Path) -> Path:
    missing = ItemNotFoundError(f"item {_shown(item.item_id)} has no picture here")
    if item.image_file is None:
        raise missing
    path = (images / item.image_file).resolve()
    if not path.is_relative_to(images.resolve()) or not path.is_file():
        raise missing
    return path


def _media_type(path: Path) -> str:
    """By the first bytes: names lie."""
    with path.open("rb") as file:
        start = file.read(12)
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MEDIA_TYPES.items() if start.startswith(magic)), "application/octet-stream")


def _shown(item_id: str) -> str:
    return repr(item_id if len(item_id) <= 100 else item_id[:100] + "...")
