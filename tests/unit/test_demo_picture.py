"""The picture of the demo's result says what the scores say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from model.ranking import Signals
from offline.demo.picture import COLOURS, HIT, Answer, Shopper, Tile, _font, bar_scale, draw, fit, segments


def tile(folder: Path, colour: str = "#123456") -> Tile:
    path = folder / f"{colour[1:]}.png"
    Image.new("RGB", (32, 32), colour).save(path)
    return Tile("Item", path)


def shopper(folder: Path, *answers: Answer, rank: int | None = 4) -> Shopper:
    return Shopper([tile(folder)], 1, tile(folder), rank, 20, list(answers))


def share(picture: Image.Image, colour: str) -> int:
    """Pixels of exactly this colour."""
    return int((np.asarray(picture) == ImageColor.getrgb(colour)).all(axis=2).sum())


def test_positive_addends_lie_end_to_end_and_are_as_long_as_they_count() -> None:
    signals = Signals(image=2.0, cf=1.0, text=1.0)
    assert segments(signals, bar_scale([signals]), 100) == [("image", 0, 50), ("cf", 50, 75), ("text", 75, 100)]


def test_a_negative_addend_lies_left_of_zero() -> None:
    signals = Signals(image=3.0, cf=-1.0, text=0.0)
    assert segments(signals, bar_scale([signals]), 100) == [("image", 25, 100), ("cf", 0, 25), ("text", 100, 100)]


def test_bars_of_one_shopper_share_a_scale() -> None:
    weak, strong = Signals(1.0, 0.0, 0.0), Signals(2.0, 2.0, 0.0)
    assert segments(weak, bar_scale([weak, strong]), 100)[0] == ("image", 0, 25)


def test_scores_of_zero_have_no_bar() -> None:
    nothing = Signals(0.0, 0.0, 0.0)
    assert segments(nothing, bar_scale([nothing]), 100) == [("image", 0, 0), ("cf", 0, 0), ("text", 0, 0)]


@pytest.mark.parametrize("text", ["Mug", "A very long title that goes on and on and on", "Unbreakable" * 9, ""])
def test_a_title_fits_its_tile(text: str) -> None:
    font = _font(13)
    lines = fit(text, 96, font)
    assert 1 <= len(lines) <= 2
    assert all(font.getlength(line) <= 96 for line in lines)


def test_a_short_title_is_shown_whole() -> None:
    assert " ".join(fit("Striped mug by Kiln", 96, _font(13))) == "Striped mug by Kiln"


def test_every_addend_is_drawn_in_its_colour(tmp_path: Path) -> None:
    answer = Answer(tile(tmp_path), Signals(3.0, 2.0, 1.0), was_bought_next=False)
    with_bar, without = draw([shopper(tmp_path, answer)], "c"), draw([shopper(tmp_path)], "c")
    grown = [share(with_bar, colour) - share(without, colour) for colour in COLOURS.values()]
    assert grown[0] > grown[1] > grown[2] > 0


def test_an_answer_that_was_bought_next_is_framed(tmp_path: Path) -> None:
    hit, miss = (Answer(tile(tmp_path), None, was_bought_next=was) for was in (True, False))
    assert share(draw([shopper(tmp_path, hit)], "c"), HIT) > share(draw([shopper(tmp_path, miss)], "c"), HIT)


def test_pictures_of_the_items_are_shown(tmp_path: Path) -> None:
    answer = Answer(tile(tmp_path, "#00ff7f"), None, was_bought_next=False)
    assert share(draw([shopper(tmp_path, answer)], "c"), "#00ff7f") > 100 * 100


def test_an_item_without_a_picture_and_a_target_without_a_rank_are_drawn_too(tmp_path: Path) -> None:
    answer = Answer(Tile("Lost", None), None, was_bought_next=False)
    assert draw([shopper(tmp_path, answer, rank=None)] * 3, "c").height > draw([shopper(tmp_path)], "c").height
