"""Faults of texts, and pictures that are the same or nearly."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from offline.dataset import ITEM_SCHEMA
from offline.overlap_content import Pictures, near_identical, picture_faults, text_faults


def faults_of(title: str, description: str | None) -> set[str]:
    """The faults of an item beside one that has none."""
    rows = [
        {"item_id": "a", "title": title, "description": description},
        {"item_id": "b", "title": "Quiet harbour", "description": "A painting of boats that lie still in the evening."},
    ]
    found = text_faults(pa.Table.from_pylist(rows, ITEM_SCHEMA))
    assert not any(mask[1] for fault, mask in found.items() if "another" not in fault)
    return {fault for fault, mask in found.items() if mask[0]}


@pytest.mark.parametrize(
    ("title", "description", "expected"),
    [
        ("Fish & chips, 3 < 4", "Sold in a paper bag, as they were then.", set()),
        ("Untitled item", "Sold in a paper bag.", {"no title"}),
        ("Up", "A house that flies.", {"title of under 3 letters"}),
        ("<b>Lamp</b>", "A lamp that gives light.", {"title with markup"}),
        ("Lamp", "Bright &amp; cheap, <br>as ever.", {"description with markup"}),
        ("Lamp", None, {"no description"}),
        ("Lamp", "  ", {"no description"}),
        ("Lamp", "Lamp!", {"description no longer than the title"}),
        ("quiet  HARBOUR.", "Another painting of boats.", {"title that another item has"}),
        (
            "Boats",
            "A painting of boats that lie still in the evening",
            {"description that another item has"},
        ),
    ],
)
def test_a_text_has_the_faults_that_it_has(title: str, description: str | None, expected: set[str]) -> None:
    assert faults_of(title, description) == expected


def test_every_item_of_a_repeated_picture_counts_and_the_first_one_tells() -> None:
    nothing = np.zeros(5, np.bool_)
    pictures = Pictures(["x", "y", None, "x", None], np.array([0, 1, 0, 0, 0], np.bool_), nothing)
    found = picture_faults(["1.png", "2.png", None, "4.png", "5.png"], pictures)
    assert {fault: np.flatnonzero(mask).tolist() for fault, mask in found.items() if mask.any()} == {
        "no picture": [2],
        "picture that cannot be read": [4],
        "blank picture": [1],
        "picture that another item has": [0, 3],
    }
    assert np.flatnonzero(pictures.telling_N).tolist() == [0]


def test_nearly_identical_pictures_have_other_bytes_and_almost_the_same_feature() -> None:
    vectors = np.array([[1, 0], [1, 0], [1, 0.1], [0, 1], [0, 1]], np.float32)
    assert near_identical(["x", "x", "y", "z", None], vectors).tolist() == [True, True, True, False, False]
