"""One row of each raw format into one event or item."""

from typing import Any

import pytest

from offline.ingest.amazon import AMAZON_2018, AMAZON_2023
from offline.ingest.generic import GENERIC
from offline.ingest.records import RawEvent, RawFormat, RawItem

HIGH, LOW = "https://pictures.example/high.jpg", "https://pictures.example/low.jpg"


@pytest.mark.parametrize(
    ("raw_format", "row"),
    [
        (GENERIC, {"user_id": "u", "item_id": 7, "timestamp": "2018-06-17", "rating": 4.5}),
        (AMAZON_2018, {"reviewerID": "u", "asin": "7", "unixReviewTime": 1_529_193_600, "overall": 5.0}),
        (AMAZON_2023, {"user_id": "u", "parent_asin": "7", "timestamp": 1_529_193_600_123, "asin": "other"}),
    ],
    ids=lambda value: value.name if isinstance(value, RawFormat) else "",
)
def test_the_same_event_is_read_from_every_format(raw_format: RawFormat, row: dict[str, Any]) -> None:
    assert raw_format.event(row) == RawEvent("u", "7", 1_529_193_600)


def test_a_generic_item_takes_genres_for_its_category() -> None:
    item = GENERIC.item({"item_id": 1, "title": "Film", "genres": ["Comedy", "Drama"], "image": "images/1.jpg"})
    assert item.category == "Comedy, Drama"
    assert item.pictures == ("images/1.jpg",)


def test_a_generic_item_without_optional_columns_is_an_item() -> None:
    assert GENERIC.item({"item_id": "1", "title": "Cup"}) == RawItem("1", "Cup", raw_title="'Cup'")


def test_a_generic_item_may_name_a_path_and_a_url() -> None:
    assert GENERIC.item({"item_id": "1", "title": "Cup", "image": "a.jpg", "image_url": HIGH}).pictures == (
        "a.jpg",
        HIGH,
    )


def test_an_item_of_2018_is_cleaned() -> None:
    item = AMAZON_2018.item(
        {
            "asin": "B1",
            "title": "<b>Mat</b> &amp; Strap",
            "brand": "by\n    \n    Acme",
            "category": ["Sports &amp; Outdoors", "Yoga", "</span></span></span>", "Made of rubber"],
            "description": ["<p>Soft.</p>", "Light."],
            "imageURLHighRes": [HIGH],
            "imageURL": [LOW],
        }
    )
    assert item == RawItem(
        "B1", "Mat & Strap", "Acme", "Sports & Outdoors, Yoga", "Soft. Light.", (HIGH, LOW), item.raw_title
    )


@pytest.mark.parametrize("column", ["imageURLHighRes", "imageURL", "image", "imUrl"])
@pytest.mark.parametrize("value", [HIGH, [HIGH, LOW]])
def test_pictures_of_2018_are_found_under_each_name(column: str, value: object) -> None:
    assert AMAZON_2018.item({"asin": "B1", "title": "x", column: value}).pictures == (HIGH,)


def test_a_category_of_2018_ends_where_bullet_points_begin() -> None:
    path = ["Gift Cards", "Gift Cards", "No expiration, no fees.", "Variety"]
    assert AMAZON_2018.item({"asin": "B1", "category": path}).category == "Gift Cards"


def test_a_main_category_that_is_a_logo_is_read_from_its_text() -> None:
    logo = '<img src="https://pictures.example/nav.png" alt="AMAZON FASHION"/>'
    assert AMAZON_2018.item({"asin": "B1", "category": [], "main_cat": logo}).category == "AMAZON FASHION"


def test_nested_categories_of_2014_give_their_first_path() -> None:
    item = AMAZON_2018.item({"asin": "B1", "categories": [["Books", "Poetry"], ["Gifts"]]})
    assert item.category == "Books, Poetry"


def test_features_stand_in_for_a_missing_description() -> None:
    assert AMAZON_2018.item({"asin": "B1", "description": [], "feature": ["Red", "Round"]}).description == "Red Round"
    assert AMAZON_2023.item({"parent_asin": "B1", "features": ["Red", "Round"]}).description == "Red Round"


def test_a_page_scraped_as_a_title_is_no_title() -> None:
    item = AMAZON_2018.item({"asin": "B1", "title": "var aPageStart = (new Date()).getTime();"})
    assert item.title is None
    assert "aPageStart" in item.raw_title


def test_an_item_of_2023_takes_store_and_the_main_picture() -> None:
    item = AMAZON_2023.item(
        {
            "parent_asin": "B1",
            "title": "Mat",
            "store": "Acme",
            "main_category": "Sports",
            "categories": [],
            "description": [],
            "images": [
                {"variant": "PT01", "hi_res": LOW, "large": LOW, "thumb": LOW},
                {"variant": "MAIN", "hi_res": None, "large": HIGH, "thumb": LOW},
            ],
        }
    )
    assert (item.brand, item.category, item.pictures) == ("Acme", "Sports", (HIGH, LOW))


def test_pictures_of_2023_may_come_as_columns() -> None:
    images = {"variant": ["PT01", "MAIN"], "hi_res": [LOW, HIGH], "large": [None, None]}
    assert AMAZON_2023.item({"parent_asin": "B1", "images": images}).pictures == (HIGH,)


@pytest.mark.parametrize("junk", [None, 5, "text", [5], {"a": 1}, [[None]], [{"variant": 3}], float("nan")])
@pytest.mark.parametrize("raw_format", [GENERIC, AMAZON_2018, AMAZON_2023], ids=lambda f: f.name)
def test_fields_of_any_type_never_break_an_item(raw_format: RawFormat, junk: object) -> None:
    columns = "title brand store category categories main_cat main_category description feature features details"
    row = dict.fromkeys([*columns.split(), "image", "images", "imageURL", "image_url", "genres"], junk)
    assert raw_format.item(row | {c: "B1" for c in raw_format.item_columns if c != "title"}).item_id == "B1"


def test_a_repeated_item_keeps_its_first_values_and_gains_missing_ones() -> None:
    first = RawItem("B1", None, "Acme", None, None, (HIGH,))
    later = RawItem("B1", "Mat", "Other", "Sports", None, (LOW,))
    assert first.completed_by(later) == RawItem("B1", "Mat", "Acme", "Sports", None, (HIGH,))
