"""Items on disk: every id leads to its row and back, whatever it is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.catalog_items import CATALOG_SCHEMA, Items, write_items
from model.errors import ArtifactError, InvalidInputError

ANY_TEXT = st.text(max_size=6)


def items_table(ids: list[str], rows_a_chunk: int = 1000) -> pa.Table:
    rows = [{"item_id": item_id, "title": f"Item {row}"} for row, item_id in enumerate(ids)]
    batches = [rows[start : start + rows_a_chunk] for start in range(0, len(rows), rows_a_chunk)]
    return pa.concat_tables([pa.Table.from_pylist(batch, CATALOG_SCHEMA) for batch in batches])


@given(ids=st.lists(ANY_TEXT, min_size=1, max_size=40, unique=True), strangers=st.lists(ANY_TEXT))
def test_every_id_leads_to_its_row_and_back(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], strangers: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("items")
    write_items(folder, items_table(ids, rows_a_chunk=7))
    items = Items.load(folder, len(ids))
    assert [items.row(item_id) for item_id in ids] == list(range(len(ids)))
    assert [items.item_id(row) for row in range(len(ids))] == ids
    assert [stranger for stranger in strangers if stranger not in ids and items.row(stranger) is not None] == []


def test_ids_whose_hashes_are_equal_are_told_apart(tmp_path: Path) -> None:
    write_items(tmp_path, items_table(["here"]))
    (hash_of_here,), _ = np.load(tmp_path / "item_ids.npy")
    table = items_table(["there", "everywhere", "here"])
    items = Items(table, np.array([[hash_of_here] * 3, [0, 1, 2]], np.uint64))
    assert items.row("here") == 2
    without = Items(table.slice(0, 2), np.array([[hash_of_here] * 2, [0, 1]], np.uint64))
    assert without.row("here") is None


def test_text_that_cannot_be_written_is_no_item(tmp_path: Path) -> None:
    write_items(tmp_path, items_table(["a", "b"]))
    assert Items.load(tmp_path, 2).row("\ud800") is None


@pytest.mark.parametrize("rows_a_chunk", [1, 3, 1000])
def test_an_id_that_comes_twice_is_refused_by_name(tmp_path: Path, rows_a_chunk: int) -> None:
    with pytest.raises(InvalidInputError, match="'twice' comes 2 times"):
        write_items(tmp_path, items_table(["a", "twice", "b", "twice", "c"], rows_a_chunk))


def test_another_number_of_items_is_refused(tmp_path: Path) -> None:
    write_items(tmp_path, items_table(["a", "b"]))
    with pytest.raises(ArtifactError, match=r"items\.arrow has 2 rows .* not 3"):
        Items.load(tmp_path, 3)
