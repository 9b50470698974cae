"""Filters by category and brand against looking at every item."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.catalog_filters import Filters, RowsByName, write_rows_by_name
from model.errors import ArtifactError

NAMES = ["Mugs", "mugs", "Mugs > Large", "Teekannen, groß", "\U0001f375", "\uffee"]
VALUES = st.lists(st.sampled_from([None, *NAMES]), min_size=1, max_size=60)
CHOSEN = st.frozensets(st.sampled_from([*NAMES, "nobody's"]), max_size=4)

Values = list[str | None]


def rows_by_name(folder: Path, name: str, values: Values) -> RowsByName:
    path = folder / f"{name}.arrow"
    write_rows_by_name(path, pa.chunked_array([pa.array(values, pa.string())]))
    return RowsByName.load(path, len(values))


def filters_of(folder: Path, categories: Values, brands: Values, max_cached_bytes: int = 10**6) -> Filters:
    return Filters(
        rows_by_name(folder, "categories", categories), rows_by_name(folder, "brands", brands), max_cached_bytes
    )


@given(values=st.lists(st.tuples(*[st.sampled_from([None, *NAMES])] * 2), min_size=1, max_size=60), data=st.data())
def test_eligible_rows_are_those_of_a_look_at_every_item(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[str | None, str | None]], data: st.DataObject
) -> None:
    filters = filters_of(
        tmp_path_factory.mktemp("filters"), [c for c, _ in values], [b for _, b in values], max_cached_bytes=100
    )
    for categories, brands in data.draw(st.lists(st.tuples(CHOSEN, CHOSEN), max_size=12)):
        found = filters.eligible_rows(categories, brands)
        expected = [
            row
            for row, (category, brand) in enumerate(values)
            if (not categories or category in categories) and (not brands or brand in brands)
        ]
        assert (list(range(len(values))) if found is None else found.tolist()) == expected
        assert (found is None) == (not categories and not brands)


@given(values=VALUES)
def test_every_name_and_no_other_has_rows(tmp_path_factory: pytest.TempPathFactory, values: Values) -> None:
    of = rows_by_name(tmp_path_factory.mktemp("rows"), "categories", values)
    assert {name: of.rows(name).tolist() for name in NAMES if name in of} == {
        name: [row for row, value in enumerate(values) if value == name] for name in NAMES if name in values
    }
    assert len(of) == len(set(values) - {None})
    assert of.rows("nobody's").tolist() == []


def test_a_filter_asked_again_gives_the_same_rows_without_work(tmp_path: Path) -> None:
    filters = filters_of(tmp_path, ["a", "b", "a", "c"], [None, "x", "x", "x"])
    first = filters.eligible_rows(frozenset("ab"), frozenset())
    assert filters.eligible_rows(frozenset("ba"), frozenset()) is first


def test_a_filter_by_one_name_is_a_part_of_the_file(tmp_path: Path) -> None:
    filters = filters_of(tmp_path, ["a", "b", "a"], [None] * 3)
    rows = filters.eligible_rows(frozenset("a"), frozenset())
    assert rows is not None
    assert (rows.tolist(), rows.flags.owndata) == ([0, 2], False)


def test_the_filter_asked_longest_ago_goes_first(tmp_path: Path) -> None:
    filters = filters_of(tmp_path, ["a", "b", "c", "d"], [None] * 4, max_cached_bytes=2 * 16)
    ab, bc, cd = (frozenset(pair) for pair in ("ab", "bc", "cd"))
    kept = filters.eligible_rows(ab, frozenset())
    lost = filters.eligible_rows(bc, frozenset())
    filters.eligible_rows(ab, frozenset())
    filters.eligible_rows(cd, frozenset())
    assert filters.eligible_rows(ab, frozenset()) is kept
    assert filters.eligible_rows(bc, frozenset()) is not lost


@pytest.mark.parametrize("names", ["a", "ab", "x"])
def test_rows_handed_out_cannot_be_written(tmp_path: Path, names: str) -> None:
    rows = filters_of(tmp_path, ["a", "b", "a"], [None] * 3).eligible_rows(frozenset(names), frozenset())
    assert rows is not None
    assert not rows.flags.writeable


def test_names_that_no_item_has_are_told(tmp_path: Path) -> None:
    filters = filters_of(tmp_path, ["a", "b"], ["x", None])
    assert filters.unknown(frozenset({"a", "x"}), frozenset({"x", "A", ""})) == ("", "A", "x")


def test_rows_of_another_number_of_items_are_refused(tmp_path: Path) -> None:
    rows_by_name(tmp_path, "brands", ["a", "b"])
    with pytest.raises(ArtifactError, match=r"brands\.arrow does not hold rows of 3 items"):
        RowsByName.load(tmp_path / "brands.arrow", 3)


def test_another_arrow_file_is_refused(tmp_path: Path) -> None:
    table = pa.table({"name": ["a"], "rows": [np.int64(1)]})
    with pa.OSFile(str(tmp_path / "brands.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ArtifactError, match=r"brands\.arrow"):
        RowsByName.load(tmp_path / "brands.arrow", 2)
