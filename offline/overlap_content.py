"""What is wrong with a catalog's pictures and texts, item by item. Knows no encoder.

# N items, V visual width
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from offline.encoders.picture import open_picture
from offline.ingest.records import UNTITLED
from offline.ingest.text import MAX_RAW_CHARACTERS, strip_html
from offline.overlap_likeness import unit_rows

BLANK_SPREAD = 5.0
"""Of 255: standard deviation of the most varied colour channel at 64 x 64. One-coloured JPEGs with noise have 1.2 at
most; the flattest picture of the demo has 17.9, of movielens-small 20.5."""
NEAR_IDENTICAL = 0.95
"""Cosine of two pictures' features, measured on EfficientNet-Lite0 only. Saved again as JPEG of quality 75, a picture
stays as near to itself in 95 of 100 cases (demo) and in all (movielens-small); two different ones come that near for
one in a hundred pictures of the demo, and for no posters (.88 at most). A picture at half its size is not recognised.
"""
MIN_TITLE_LETTERS = 3
"""Letters and digits; a title with fewer tells a reader next to nothing ("9", "Up")."""
_THUMBNAIL_PX = 64
_ROWS_AT_ONCE = 1024

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pictures:
    """What the pictures of N items look like."""

    keys: list[str | None]
    """SHA-256 of the picture's bytes; None: no usable picture."""
    blank_N: Mask
    near_identical_N: Mask
    """Another item has a picture of other bytes that an encoder hardly tells apart."""

    @property
    def telling_N(self) -> Mask:
        """A picture that shows something, and the first item that has it: what likenesses can be measured on."""
        first_row = {key: row for row, key in reversed(list(enumerate(self.keys))) if key is not None}
        first_N = np.zeros(len(self.keys), np.bool_)
        first_N[list(first_row.values())] = True
        return first_N & ~self.blank_N


def look_at(names: Sequence[str | None], folder: Path, usable_N: Mask, vector_NV: npt.NDArray[np.float32]) -> Pictures:
    """Read the pictures of the items that are `usable_N`: `names` are paths below `folder`."""
    keys: list[str | None] = [None] * len(names)
    blank_N = np.zeros(len(names), np.bool_)
    rows = np.flatnonzero(usable_N)
    with ThreadPoolExecutor() as pool:
        found = pool.map(_key_and_spread, [folder / str(names[int(row)]) for row in rows])
        for row, (key, spread) in zip(rows, tqdm(found, "pictures", len(rows), unit="item", disable=None), strict=True):
            keys[row], blank_N[row] = key, spread < BLANK_SPREAD
    return Pictures(keys, blank_N, near_identical(keys, vector_NV))


def near_identical(keys: Sequence[str | None], vector_NV: npt.NDArray[np.float32]) -> Mask:
    """Items whose picture is at least NEAR_IDENTICAL to one of another key."""
    codes = {key: code for code, key in enumerate(dict.fromkeys(keys))}
    code_N = np.array([codes[key] for key in keys])
    known = np.flatnonzero([key is not None for key in keys])
    unit_KV, code_K = unit_rows(vector_NV[known]), code_N[known]
    near_N = np.zeros(len(keys), np.bool_)
    for start in range(0, len(known), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        alike = (unit_KV[part] @ unit_KV.T >= NEAR_IDENTICAL) & (code_K[part, None] != code_K[None])
        near_N[known[part]] = alike.any(1)
    return near_N


def picture_faults(names: Sequence[str | None], pictures: Pictures) -> dict[str, Mask]:
    """Which items have which fault, by the words of the report."""
    named_N = np.array([name is not None for name in names], np.bool_)
    read_N = np.array([key is not None for key in pictures.keys], np.bool_)
    return {
        "no picture": ~named_N,
        "picture that cannot be read": named_N & ~read_N,
        "blank picture": pictures.blank_N,
        "picture that another item has": _repeated(pictures.keys),
        "picture nearly that of another item": pictures.near_identical_N,
    }


def text_faults(items: pa.Table) -> dict[str, Mask]:
    """Which items (ITEM_SCHEMA) have which fault, by the words of the report."""
    titles = [None if (title or "").strip() in ("", UNTITLED) else title for title in items["title"].to_pylist()]
    descriptions = [text if (text or "").strip() else None for text in items["description"].to_pylist()]
    pairs = zip(titles, descriptions, strict=True)
    return {
        "no title": _which(title is None for title in titles),
        f"title of under {MIN_TITLE_LETTERS} letters": _which(
            title is not None and len(_letters(title)) < MIN_TITLE_LETTERS for title in titles
        ),
        "title with markup": _which(_has_markup(title) for title in titles),
        "title that another item has": _repeated([title and _letters(title) for title in titles]),
        "no description": _which(text is None for text in descriptions),
        "description no longer than the title": _which(
            text is not None and len(_letters(text)) <= len(_letters(title or "")) for title, text in pairs
        ),
        "description with markup": _which(_has_markup(text) for text in descriptions),
        "description that another item has": _repeated([text and _letters(text) for text in descriptions]),
    }


def _key_and_spread(path: Path) -> tuple[str, float]:
    content = path.read_bytes()
    thumbnail = open_picture(content).resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BILINEAR)
    return hashlib.sha256(content).hexdigest(), float(np.asarray(thumbnail).std((0, 1)).max())


def _has_markup(text: str | None) -> bool:
    """Whether a browser would show other letters than stand there: tags, entities, scripts."""
    raw = (text or "")[:MAX_RAW_CHARACTERS]
    return _letters(raw) != _letters(strip_html(raw))


def _letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _repeated(values: Sequence[str | None]) -> Mask:
    counts = Counter(value for value in values if value)
    return _which(value is not None and counts[value] > 1 for value in values)


def _which(answers: Iterable[bool]) -> Mask:
    return np.fromiter(answers, np.bool_)
