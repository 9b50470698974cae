"""`python -m offline.demo.picture`: draw what the recommender makes of a few shoppers of the synthetic shop.

Shoppers are drawn by lot, whether the answers suit them or not. For each: the newest items of the history, the item
bought next, its rank, and the best answers with a bar of the three addends of each score.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.catalog import Catalog
from model.checkpoint import load_checkpoint
from model.config import SIGNALS, Signal
from model.errors import InvalidInputError
from model.ranking import Query, RankedItem, Signals
from model.recommender import Recommender
from model.store import Store
from offline.dataset import Dataset, load_dataset
from offline.jobs import add_store, run_job

DATASET = "demo"
NUM_SHOPPERS, NUM_HISTORY, NUM_ANSWERS = 3, 5, 6

# Told apart also by readers who see red and green alike.
COLOURS: dict[Signal, str] = {"image": "#e08214", "cf": "#2166ac", "text": "#5aae61"}
PAPER, INK, FAINT, HIT = "#ffffff", "#0f172a", "#64748b", "#d6006c"

# Pixels
MARGIN, GAP, WIDE_GAP = 24, 10, 30
HISTORY_SIDE, SIDE = 96, 124
HEADER, FOOTER, LABEL, TITLE, BAR, SCORE = 60, 44, 26, 44, 14, 22
ROW = LABEL + SIDE + TITLE + BAR + SCORE + 22
WIDTH = 2 * MARGIN + NUM_HISTORY * (HISTORY_SIDE + GAP) + SIDE + 2 * WIDE_GAP + NUM_ANSWERS * (SIDE + GAP) - 2 * GAP


@dataclass(frozen=True)
class Tile:
    """An item to be shown."""

    title: str
    picture: Path | None


@dataclass(frozen=True)
class Answer:
    """A recommended item, and what its score is the sum of (None: a popular item)."""

    tile: Tile
    signals: Signals | None
    was_bought_next: bool


@dataclass(frozen=True)
class Shopper:
    """One row of the picture."""

    history: list[Tile]
    """The newest items, oldest first."""
    history_length: int
    target: Tile
    rank: int | None
    """Place of the target in the full ranking, from 1; None: the catalog does not have it."""
    num_ranked: int
    answers: list[Answer]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw what the recommender makes of a few synthetic shoppers.")
    add_store(parser)
    parser.add_argument("--out", type=Path, default=Path("docs/demo.jpg"), help="picture (default: docs/demo.jpg)")
    parser.add_argument("--seed", type=int, default=0, help="draws the shoppers (default: 0)")
    arguments = parser.parse_args(argv)
    store = Store(arguments.store)
    recommender = Recommender.load(store)
    name = load_checkpoint(store.checkpoints / recommender.checkpoint_id).dataset_folder
    if name != DATASET:
        raise InvalidInputError(
            f"the catalog served is of dataset {name!r}: this picture calls its data synthetic, so it draws only "
            f"{DATASET!r} (`make demo`)",
            "store",
        )
    shoppers = look(recommender, load_dataset(store.dataset(name)), store.images, arguments.seed)
    draw(shoppers, recommender.checkpoint_id).save(arguments.out, quality=88, optimize=True)
    print(arguments.out)
    return 0


def look(recommender: Recommender, dataset: Dataset, images: Path, seed: int) -> list[Shopper]:
    """Rank the catalog for shoppers drawn by lot; their last event is the target."""
    users = np.random.default_rng([seed, 17]).permutation(len(dataset.users))[:NUM_SHOPPERS]
    catalog = recommender.catalog
    histories = [tuple(dataset.item_ids[row] for row in dataset.events[user]) for user in users]
    rankings = recommender.rank([Query(bought[:-1], k=catalog.num_items) for bought in histories])
    return [
        _shopper(bought, ranking.items, catalog, images) for bought, ranking in zip(histories, rankings, strict=True)
    ]


def draw(shoppers: Sequence[Shopper], source: str) -> Image.Image:
    """The picture; `source` is named in its footer."""
    picture = Image.new("RGB", (WIDTH, HEADER + len(shoppers) * ROW + FOOTER), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((MARGIN, 18), "Synthetic shoppers, drawn by lot", INK, _font(22, bold=True))
    _legend(pen)
    for number, shopper in enumerate(shoppers):
        _row(picture, pen, shopper, HEADER + number * ROW)
    note = f"Synthetic data: products and shoppers are simulated. Checkpoint {source}."
    pen.text((MARGIN, picture.height - FOOTER + 12), note, FAINT, _font(14))
    return picture


def _shopper(bought: tuple[str, ...], ranked: tuple[RankedItem, ...], catalog: Catalog, images: Path) -> Shopper:
    *history, target = bought
    places = {item.item_id: place for place, item in enumerate(ranked, start=1)}
    return Shopper(
        history=[_tile(item_id, catalog, images) for item_id in history[-NUM_HISTORY:]],
        history_length=len(history),
        target=_tile(target, catalog, images),
        rank=places.get(target),
        num_ranked=len(ranked),
        answers=[
            Answer(_tile(item.item_id, catalog, images), item.signals, item.item_id == target)
            for item in ranked[:NUM_ANSWERS]
        ],
    )


def _tile(item_id: str, catalog: Catalog, images: Path) -> Tile:
    row = catalog.row(item_id)
    if row is None:
        return Tile(item_id, None)
    item = catalog.item(row)
    return Tile(item.title, images / item.image_file if item.image_file else None)


def _row(picture: Image.Image, pen: ImageDraw.ImageDraw, shopper: Shopper, top: int) -> None:
    pen.line([(MARGIN, top), (WIDTH - MARGIN, top)], "#e2e8f0", 1)
    label_y, tile_y = top + 10, top + 10 + LABEL
    shown = f", the newest {len(shopper.history)}" if len(shopper.history) < shopper.history_length else ""
    x = MARGIN
    pen.text((x, label_y), f"bought {shopper.history_length}{shown}, oldest first", FAINT, _font(15))
    for tile in shopper.history:
        _draw_tile(picture, pen, tile, (x, tile_y), HISTORY_SIDE)
        x += HISTORY_SIDE + GAP
    x = MARGIN + NUM_HISTORY * (HISTORY_SIDE + GAP) - GAP + WIDE_GAP
    rank = f"rank {shopper.rank} of {shopper.num_ranked}" if shopper.rank else "not in the catalog"
    pen.text((x, label_y), "bought next", HIT, _font(15, bold=True))
    _draw_tile(picture, pen, shopper.target, (x, tile_y), SIDE, frame=HIT)
    pen.text((x, tile_y + SIDE + TITLE), rank, HIT, _font(15, bold=True))
    x += SIDE + WIDE_GAP
    pen.text((x, label_y), "recommended, best first", FAINT, _font(15))
    scale = bar_scale([answer.signals for answer in shopper.answers if answer.signals])
    for answer in shopper.answers:
        _draw_tile(picture, pen, answer.tile, (x, tile_y), SIDE, frame=HIT if answer.was_bought_next else None)
        if answer.signals:
            _draw_score(pen, answer.signals, scale, (x, tile_y + SIDE + TITLE))
        x += SIDE + GAP


def _draw_tile(
    picture: Image.Image,
    pen: ImageDraw.ImageDraw,
    tile: Tile,
    corner: tuple[int, int],
    side: int,
    frame: str | None = None,
) -> None:
    x, y = corner
    box = [(x, y), (x + side - 1, y + side - 1)]
    if tile.picture is None:
        pen.rectangle(box, "#f1f5f9")
        pen.text((x + side / 2, y + side / 2), "no picture", FAINT, _font(13), anchor="mm")
    else:
        with Image.open(tile.picture) as image:
            picture.paste(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), corner)
    pen.rectangle(box, outline=frame or "#cbd5e1", width=4 if frame else 1)
    font = _font(13)
    for line, words in enumerate(fit(tile.title, side, font)):
        pen.text((x, y + side + 4 + 17 * line), words, INK, font)


def fit(text: str, width: int, font: ImageFont.FreeTypeFont, num_lines: int = 2) -> list[str]:
    """`text` in at most `num_lines` lines no wider than `width` pixels, cut with an ellipsis where it is longer."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > num_lines:
        lines = [*lines[: num_lines - 1], f"{lines[num_lines - 1]}…"]
    return [_cut(line, width, font) for line in lines]


def _cut(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    while font.getlength(line) > width and len(line) > 1:
        line = line.rstrip("…")[:-1] + "…"
    return line


def bar_scale(all_signals: Sequence[Signals]) -> tuple[float, float]:
    """How far the longest bars reach to the left and to the right of zero, in units of score."""
    lows = [-sum(min(addend, 0.0) for addend in addends(signals)) for signals in all_signals]
    highs = [sum(max(addend, 0.0) for addend in addends(signals)) for signals in all_signals]
    return max(lows, default=0.0), max(highs, default=0.0)


def segments(signals: Signals, scale: tuple[float, float], width: float) -> list[tuple[Signal, float, float]]:
    """(signal, from, to) in pixels: positive addends end to end to the right of zero, negative ones to the left."""
    low, high = scale
    per_unit = width / max(low + high, math.ulp(1.0))
    right = left = low * per_unit
    placed: list[tuple[Signal, float, float]] = []
    for signal, addend in zip(SIGNALS, addends(signals), strict=True):
        if addend >= 0:
            placed.append((signal, right, right + addend * per_unit))
            right += addend * per_unit
        else:
            placed.append((signal, left + addend * per_unit, left))
            left += addend * per_unit
    return placed


def addends(signals: Signals) -> tuple[float, float, float]:
    """In the order of SIGNALS."""
    return signals.image, signals.cf, signals.text


def _draw_score(
    pen: ImageDraw.ImageDraw, signals: Signals, scale: tuple[float, float], corner: tuple[int, int]
) -> None:
    x, y = corner
    for signal, start, end in segments(signals, scale, SIDE):
        if end > start:
            pen.rectangle([(x + start, y), (x + end, y + BAR)], COLOURS[signal])
    if scale[0] > 0:
        zero = x + scale[0] * SIDE / (scale[0] + scale[1])
        pen.line([(zero, y - 3), (zero, y + BAR + 3)], INK, 1)
    pen.text((x, y + BAR + 4), f"{sum(addends(signals)):.2f}", FAINT, _font(14))


def _legend(pen: ImageDraw.ImageDraw) -> None:
    font = _font(15)
    words: list[tuple[str, str]] = [("score =", INK), *((signal, COLOURS[signal]) for signal in SIGNALS)]
    x = WIDTH - MARGIN - NUM_ANSWERS * (SIDE + GAP) + GAP
    for word, colour in words:
        if colour != INK:
            pen.rectangle([(x, 24), (x + 14, 38)], colour)
            x += 20
        pen.text((x, 21), word, INK, font)
        x += round(font.getlength(word)) + 22


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


if __name__ == "__main__":
    run_job(main)
