"""The synthetic shop: reproducible, dirty as stated, and with a taste that only its pictures tell."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.artifacts import read_manifest
from model.errors import InvalidInputError
from offline.demo.canvas import SIZE
from offline.demo.catalog import Product, make_catalog
from offline.demo.dirt import Row, broken_picture, event_rows, item_rows
from offline.demo.parameters import DemoParameters
from offline.demo.render import render
from offline.demo.shapes import SHAPES
from offline.demo.shoppers import SECONDS_A_DAY, Event, Shop, Shopper, make_shoppers, simulate
from offline.demo.traits import PALETTES, PATTERNS, TRAIT_WORDS
from offline.demo.wording import BRANDS, CATEGORIES
from offline.demo.write import make_demo_data
from offline.ingest.job import Arguments, run

SEED = 0
FULL = DemoParameters()
SMALL = DemoParameters(num_items=40, num_shoppers=60, missing_image_share=0.1)
"""With more pictures missing than at full size, so that some of the few items lack theirs."""
CHANCE = 1 / len(PALETTES)
"""Share of the catalog that has a given palette; patterns are as many."""


@pytest.fixture(scope="module")
def products() -> list[Product]:
    return make_catalog(FULL, SEED)


@pytest.fixture(scope="module")
def shoppers() -> list[Shopper]:
    return make_shoppers(FULL, SEED)


@pytest.fixture(scope="module")
def histories(products: list[Product], shoppers: list[Shopper]) -> list[list[Event]]:
    return histories_of(products, shoppers, FULL)


@pytest.fixture(scope="module")
def rows(products: list[Product]) -> list[Row]:
    return item_rows(products, FULL, SEED)


@pytest.fixture(scope="module")
def log(products: list[Product], histories: list[list[Event]]) -> list[tuple[str, str, int]]:
    return event_rows([event for history in histories for event in history], products, FULL, SEED)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw folder of a small shop, with pictures."""
    return make_demo_data(tmp_path_factory.mktemp("shop") / "raw", SEED, SMALL)


@pytest.fixture(scope="module")
def pictures(raw: Path) -> dict[str, Image.Image]:
    """Item id to decoded picture, for all but the broken one."""
    broken = raw / broken_picture(written_rows(raw), SEED)
    paths = [path for path in sorted((raw / "images").iterdir()) if path != broken]
    return {path.stem: Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in paths}


def histories_of(
    products: list[Product], shoppers: list[Shopper], parameters: DemoParameters, seed: int = SEED
) -> list[list[Event]]:
    """Events by shopper, in the order of `shoppers`, oldest first."""
    by_user: defaultdict[str, list[Event]] = defaultdict(list)
    for event in simulate(Shop(products, parameters), shoppers, parameters, seed):
        by_user[event.user_id].append(event)
    return [by_user[shopper.user_id] for shopper in shoppers]


def written_rows(raw: Path) -> list[Row]:
    return [json.loads(line) for line in (raw / "items.jsonl").read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def test_the_same_seed_gives_the_same_bytes_in_another_process(raw: Path, tmp_path: Path) -> None:
    given = f"num_items={SMALL.num_items}, num_shoppers={SMALL.num_shoppers}, missing_image_share=0.1"
    code = (
        "import sys; from pathlib import Path; from offline.demo.write import make_demo_data as make;"
        "from offline.demo.parameters import DemoParameters as P;"
        f"make(Path(sys.argv[1]), {SEED}, P({given}))"
    )
    root = Path(__file__).parents[2]
    # Another hash seed orders sets of strings differently, which must not show in a file.
    environment = os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, env=environment, cwd=tmp_path)
    assert digests(tmp_path / "again") == digests(raw)


def test_another_seed_gives_another_catalog_other_shoppers_and_other_events() -> None:
    first, second = (make_catalog(SMALL, seed) for seed in (0, 1))
    assert [p.title for p in first] != [p.title for p in second]
    shoppers = [make_shoppers(SMALL, seed) for seed in (0, 1)]
    assert not np.array_equal(shoppers[0][0].pattern_T, shoppers[1][0].pattern_T)
    assert histories_of(first, shoppers[0], SMALL, 0) != histories_of(first, shoppers[0], SMALL, 1)


def test_another_seed_draws_the_same_product_differently(products: list[Product]) -> None:
    assert render(products[0], 0) != render(products[0], 1)


def test_a_folder_that_is_up_to_date_is_left_alone(raw: Path) -> None:
    before = (raw / "items.jsonl").stat().st_ino
    make_demo_data(raw, SEED, SMALL)
    assert (raw / "items.jsonl").stat().st_ino == before


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(InvalidInputError, match="is not synthetic demo data"):
        make_demo_data(tmp_path, SEED, SMALL)
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_the_folder_says_that_it_is_synthetic_and_what_made_it(raw: Path) -> None:
    manifest = read_manifest(raw)
    assert manifest["kind"] == "synthetic demo data"
    assert manifest["inputs"]["seed"] == SEED
    assert manifest["inputs"]["parameters"]["num_items"] == SMALL.num_items
    assert "SYNTHETIC" in (raw / "README.txt").read_text()


def test_the_shop_has_240_products_in_many_categories_and_1500_shoppers(
    products: list[Product], histories: list[list[Event]]
) -> None:
    assert len({product.item_id for product in products}) == 240
    assert len({product.category for product in products}) >= 12
    assert len({history[0].user_id for history in histories}) == 1500
    assert min(map(len, histories)) >= FULL.min_events
    assert max(map(len, histories)) <= FULL.max_events


def test_every_category_has_a_shape_and_every_complement_is_sold() -> None:
    assert {category.shape for category in CATEGORIES} == set(SHAPES)
    assert {shape for category in CATEGORIES for shape in category.complements} <= set(SHAPES)


def test_titles_differ_between_products(products: list[Product]) -> None:
    assert len({product.title for product in products}) == len(products)


def test_no_text_of_the_catalog_names_a_visual_trait(rows: list[Row]) -> None:
    named = {
        (row["item_id"], field): found
        for row in rows
        for field in ("title", "description", "brand", "category")
        if (found := words(row[field] or "") & TRAIT_WORDS)
    }
    assert named == {}


def test_no_text_the_shop_could_ever_use_names_a_visual_trait() -> None:
    texts = [*BRANDS]
    for kind in CATEGORIES:
        texts += [kind.name, *kind.nouns, *kind.materials, *kind.uses, *kind.cares, *kind.sizes]
    assert words(" ".join(texts)) & TRAIT_WORDS == set()


def test_the_names_of_the_traits_are_among_the_forbidden_words() -> None:
    assert {"warm", "cool", "earth", "pastel", "neon", "mono", *PATTERNS} <= TRAIT_WORDS
    assert {*PALETTES} <= TRAIT_WORDS


def wording_of(product: Product) -> int:
    """A number for what the title says beside brand and running number: material and noun."""
    said = product.title.removeprefix(BRANDS[product.brand]).rpartition(" No. ")[0]
    return int.from_bytes(sha256(said.encode()).digest()[:4])


@pytest.mark.parametrize("trait", ["palette", "pattern"])
@pytest.mark.parametrize(
    "stated",
    [lambda p: p.category, lambda p: p.brand, wording_of, lambda p: p.young],
    ids=["category", "brand", "title", "young"],
)
def test_a_visual_trait_is_independent_of_what_is_stated(
    products: list[Product], trait: str, stated: Callable[[Product], int]
) -> None:
    v, bound = cramers_v([getattr(p, trait) for p in products], [stated(p) for p in products])
    assert v < bound


def test_palette_and_pattern_are_independent_of_each_other(products: list[Product]) -> None:
    v, bound = cramers_v([p.palette for p in products], [p.pattern for p in products])
    assert v < bound


def cramers_v(first: Sequence[int], second: Sequence[int]) -> tuple[float, float]:
    """Cramér's V of two traits, and the value that independent ones stay under (chi-square's mean + 3 deviations)."""
    (_, row_N), (_, column_N) = (np.unique(trait, return_inverse=True) for trait in (first, second))
    table = np.zeros((row_N.max() + 1, column_N.max() + 1))
    np.add.at(table, (row_N, column_N), 1)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    scale = table.sum() * (min(table.shape) - 1)
    chi_square = ((table - expected) ** 2 / expected).sum()
    return float(np.sqrt(chi_square / scale)), float(np.sqrt((freedom + 3 * np.sqrt(2 * freedom)) / scale))


def agreement(products: list[Product], shoppers: list[Shopper], histories: list[list[Event]]) -> tuple[float, float]:
    """Share of first purchases in the shopper's favourite palette, and of all purchases in the favourite pattern."""
    palette = [
        products[history[0].item].palette == shopper.palette_start_S.argmax()
        for shopper, history in zip(shoppers, histories, strict=True)
    ]
    pattern = [
        products[event.item].pattern == shopper.pattern_T.argmax()
        for shopper, history in zip(shoppers, histories, strict=True)
        for event in history
    ]
    return float(np.mean(palette)), float(np.mean(pattern))


def test_shoppers_choose_their_palette_and_pattern_at_least_twice_as_often_as_chance(
    products: list[Product], shoppers: list[Shopper], histories: list[list[Event]]
) -> None:
    palette, pattern = agreement(products, shoppers, histories)
    assert palette > 2 * CHANCE  # measured: 0.64
    assert pattern > 2 * CHANCE  # measured: 0.44


def test_without_visual_weights_shoppers_choose_palettes_and_patterns_by_chance(
    products: list[Product], shoppers: list[Shopper]
) -> None:
    blind = replace(FULL, palette_weight=0.0, pattern_weight=0.0)
    palette, pattern = agreement(products, shoppers, histories_of(products, shoppers, blind))
    assert palette == pytest.approx(CHANCE, abs=0.04)  # 4 standard deviations of 1,500 choices
    assert pattern == pytest.approx(CHANCE, abs=0.04)


def test_the_last_purchases_of_drifting_shoppers_follow_their_second_palette(
    products: list[Product], shoppers: list[Shopper], histories: list[list[Event]]
) -> None:
    drifting = [
        (shopper, products[history[0].item].palette, products[history[-1].item].palette)
        for shopper, history in zip(shoppers, histories, strict=True)
        if shopper.palette_start_S.argmax() != shopper.palette_end_S.argmax()
    ]
    assert len(drifting) > 0.1 * len(shoppers)  # a quarter drift, five of six of them to another favourite
    last_in_second = np.mean([last == shopper.palette_end_S.argmax() for shopper, _, last in drifting])
    first_in_second = np.mean([first == shopper.palette_end_S.argmax() for shopper, first, _ in drifting])
    assert last_in_second > 2 * CHANCE > first_in_second


def test_shoppers_favour_their_categories_and_brands_too(
    products: list[Product], shoppers: list[Shopper], histories: list[list[Event]]
) -> None:
    chosen = [
        (shopper, products[event.item])
        for shopper, history in zip(shoppers, histories, strict=True)
        for event in history
    ]
    for trait in ("category", "brand"):
        bought = np.mean([getattr(shopper, trait)[getattr(product, trait)] for shopper, product in chosen])
        chance = np.mean([getattr(shopper, trait).mean() for shopper in shoppers])
        assert bought > 1.5 * chance, trait


def test_young_items_are_often_the_last_purchase_and_hardly_ever_one_before_the_last_two(
    products: list[Product], histories: list[list[Event]]
) -> None:
    young = [[products[event.item].young for event in history] for history in histories]
    assert np.mean([history[-1] for history in young]) > 0.1  # measured: 0.225, so over 300 targets
    assert np.mean([flag for history in young for flag in history[:-2]]) < 0.001


def test_the_stated_share_of_items_is_young(products: list[Product]) -> None:
    assert sum(product.young for product in products) == round(FULL.young_share * FULL.num_items)


@pytest.mark.parametrize("num_items", [30, 240], ids=["smallest", "full"])
def test_nobody_buys_an_item_twice_or_before_its_launch(num_items: int) -> None:
    parameters = DemoParameters(num_items=num_items, num_shoppers=300)
    products = make_catalog(parameters, SEED)
    for history in histories_of(products, make_shoppers(parameters, SEED), parameters):
        assert len({event.item for event in history}) == len(history)
        for event in history:
            day = (event.timestamp - parameters.start_s) / SECONDS_A_DAY
            assert products[event.item].launch_day <= day < parameters.num_days


@pytest.mark.parametrize(
    "change", [{"num_items": 29}, {"num_shoppers": 0}, {"min_events": 1}, {"max_events": 4}], ids=str
)
def test_parameters_that_no_shop_can_have_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=str(*change.values())):
        replace(FULL, **change)


@pytest.mark.parametrize(
    ("stated", "is_dirty"),
    [
        (FULL.missing_image_share, lambda row: row["image"] is None),
        (FULL.missing_brand_share, lambda row: row["brand"] is None),
        (FULL.empty_description_share, lambda row: row["description"] == ""),
        (FULL.html_share * (1 - FULL.empty_description_share), lambda row: "<p>" in row["description"]),
    ],
    ids=["no picture", "no brand", "no description", "markup"],
)
def test_items_are_dirty_in_the_stated_shares(rows: list[Row], stated: float, is_dirty: Callable[[Row], bool]) -> None:
    deviation = np.sqrt(stated * (1 - stated) / len(rows))
    share = np.mean([is_dirty(row) for row in rows])
    assert share > 0
    assert share == pytest.approx(stated, abs=3 * deviation)


def test_markup_changes_no_word_of_a_description(products: list[Product], rows: list[Row]) -> None:
    class Text(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.text = ""

        def handle_data(self, data: str) -> None:
            self.text += f" {data} "

    said = {product.item_id: product.description for product in products}
    marked = [row for row in rows if "<p>" in row["description"]]
    assert marked
    for row in marked:
        parser = Text()
        parser.feed(row["description"])
        assert parser.text.split() == said[row["item_id"]].split()


def test_one_item_has_two_rows(rows: list[Row]) -> None:
    counts = Counter(row["item_id"] for row in rows)
    assert sorted(counts.values())[-2:] == [1, 2]


def test_the_stated_share_of_events_comes_twice(histories: list[list[Event]], log: list[tuple[str, str, int]]) -> None:
    pairs = Counter((user_id, item_id) for user_id, item_id, _ in log)
    repeated = sum(count == 2 for count in pairs.values())
    assert repeated == round(FULL.duplicate_event_share * sum(map(len, histories)))


def test_the_stated_share_of_events_is_of_items_that_the_catalog_does_not_have(
    histories: list[list[Event]], rows: list[Row], log: list[tuple[str, str, int]]
) -> None:
    known = {row["item_id"] for row in rows}
    unknown = sum(item_id not in known for _, item_id, _ in log)
    assert unknown == round(FULL.unknown_item_share * sum(map(len, histories)))


def test_events_of_one_shopper_tie_in_time_within_baskets_and_on_days_without_a_clock(
    histories: list[list[Event]],
) -> None:
    dated = [all(event.timestamp % SECONDS_A_DAY == 0 for event in history) for history in histories]
    tied = [len({event.timestamp for event in history}) < len(history) for history in histories]
    assert np.mean(dated) == pytest.approx(FULL.date_only_share, abs=0.02)
    assert sum(tie for tie, no_clock in zip(tied, dated, strict=True) if not no_clock) > 0.1 * len(histories)


def test_the_log_is_in_order_of_time(raw: Path) -> None:
    with (raw / "interactions.csv").open(newline="") as file:
        times = [int(row["timestamp"]) for row in csv.DictReader(file)]
    assert len(times) > 5 * SMALL.num_shoppers
    assert times == sorted(times)


def test_one_picture_is_cut_off_and_every_other_one_decodes_at_the_stated_size(
    raw: Path, pictures: dict[str, Image.Image]
) -> None:
    named = {row["image"] for row in written_rows(raw) if row["image"]}
    assert {f"images/{path.name}" for path in (raw / "images").iterdir()} == named
    assert {picture.size for picture in pictures.values()} == {(SIZE, SIZE)}
    assert len(pictures) == len(named) - 1 < SMALL.num_items - 1
    broken = (raw / broken_picture(written_rows(raw), SEED)).read_bytes()
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(broken)).load()


def test_no_two_pictures_look_alike(pictures: dict[str, Image.Image]) -> None:
    small_ND = np.stack([np.asarray(p.resize((16, 16)), np.float32).ravel() for p in pictures.values()])
    distance_NN = np.abs(small_ND[:, None] - small_ND[None]).mean(axis=2)
    np.fill_diagonal(distance_NN, np.inf)
    assert distance_NN.min() > 2  # of 255 levels, on average over a picture; noise of compression stays below 1


def test_a_picture_tells_its_palette(pictures: dict[str, Image.Image]) -> None:
    """Of the other pictures, the one nearest in its colours has the same palette far more often than chance."""
    palette = {product.item_id: product.palette for product in make_catalog(SMALL, SEED)}
    palette_N = np.array([palette[item_id] for item_id in pictures])
    histogram_NB = np.sqrt(np.stack([colours_of(picture) for picture in pictures.values()]))
    likeness_NN = histogram_NB @ histogram_NB.T
    np.fill_diagonal(likeness_NN, -1)
    assert np.mean(palette_N == palette_N[likeness_NN.argmax(axis=1)]) > 2 * CHANCE


def colours_of(picture: Image.Image) -> np.ndarray:
    """Share of each of 4 x 4 x 4 colours in the middle of a picture."""
    levels = np.asarray(picture.crop((64, 64, 192, 192)), np.int64).reshape(-1, 3) // 64
    counts = np.bincount(levels @ np.array([16, 4, 1]), minlength=64)
    return np.asarray(counts / counts.sum())


def test_a_picture_shows_palette_and_pattern_and_nothing_of_the_brand(products: list[Product]) -> None:
    product = next(p for p in products if PATTERNS[p.pattern] == "plain")
    other = (product.palette + 1) % len(PALETTES)
    picture = render(product, SEED)
    assert render(replace(product, palette=other), SEED) != picture
    assert render(replace(product, pattern=PATTERNS.index("dots")), SEED) != picture
    assert render(replace(product, brand=(product.brand + 1) % len(BRANDS), title="", popularity=9.0), SEED) == picture


def test_the_raw_folder_is_ingested_and_the_report_names_what_is_dirty(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    # With a core of 1 every item bought stays, the one with the broken picture too.
    events, items = raw / "interactions.csv", raw / "items.jsonl"
    run(Arguments(format="generic", events=events, items=items, out=out, k_core=1, download=False))
    report = json.loads((out / "report.json").read_text())
    broken = Path(broken_picture(written_rows(raw), SEED)).stem
    failures = [example for entry in report["picture_failures"] for example in entry["examples"]]
    assert [example.split(":")[0] for example in failures] == [broken]
    remarks = {entry["reason"] for entry in report["item_remarks"]}
    assert {"id comes twice", "not in the items file"} <= remarks
    assert report["pictures"]["none named"] > 0
    assert sum(file["bad_rows"] for file in report["files"]) == 0
    assert report["splits"]["test"] == SMALL.num_shoppers
    manifest = read_manifest(out)
    assert manifest["counts"]["pictures"] == len(list((out / "images").iterdir())) > 0.7 * SMALL.num_items
