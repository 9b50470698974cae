"""A catalog on disk: what it gives back, and that no damaged file gets through."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.artifacts import MANIFEST, read_manifest, write_json, write_manifest
from model.catalog import FILES, Catalog, current_version, list_versions, set_current
from model.catalog_items import CATALOG_SCHEMA
from model.config import SIGNALS
from model.errors import ArtifactError, InvalidInputError
from model.heads import ALIGNED_TEXT, NOTHING, OWN, ItemFeatures
from model.index import brute_force
from model.prompt import Segments
from offline.publish import Contents, describe, write_contents

WIDTHS = {"image": 6, "cf": 4, "text": 5}


def small_contents(num_items: int = 12, seed: int = 0) -> Contents:
    rng = np.random.default_rng(seed)
    items = [
        {
            "item_id": f"i{row:03d}",
            "title": f"Lamp {row}",
            "brand": "Arbor" if row % 2 else None,
            "category": "Lamps",
            "description": None,
            "image_file": f"ab/{row:064x}.jpg" if row else None,
            "image_url": None,
        }
        for row in range(num_items)
    ]
    lengths = rng.integers(1, 5, num_items)
    origin = {s: np.full(num_items, OWN, np.uint8) for s in SIGNALS}
    origin["image"][0], origin["cf"][0] = ALIGNED_TEXT, NOTHING
    return Contents(
        items=pa.Table.from_pylist(items, CATALOG_SCHEMA),
        segments=Segments(
            rng.integers(0, 99, lengths.sum()).astype(np.int32), np.r_[0, np.cumsum(lengths)].astype(np.int64)
        ),
        features=ItemFeatures(
            {s: rng.normal(size=(num_items, width)).astype(np.float32) for s, width in WIDTHS.items()}, origin
        ),
        item_vectors=rng.normal(size=(num_items, 9)).astype(np.float32),
        popularity=np.arange(num_items, dtype=np.int64),
    )


def write_catalog(folder: Path, contents: Contents | None = None) -> Path:
    contents = contents or small_contents()
    folder.mkdir(parents=True)
    write_contents(folder, contents)
    write_manifest(folder, {"version": folder.name, "checkpoint": "c1", **describe(contents)})
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalog(tmp_path_factory.mktemp("catalogs") / "v1")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "v1"))


def vouch_again(folder: Path) -> None:
    """Write the manifest anew, so that only the meaning of a changed file can give it away."""
    facts = read_manifest(folder, verify=False)
    write_manifest(folder, {key: value for key, value in facts.items() if key != "files"})


def test_a_loaded_catalog_holds_what_was_written(written: Path) -> None:
    contents, catalog = small_contents(), Catalog.load(written)
    assert (catalog.version, catalog.checkpoint_id, catalog.num_items) == ("v1", "c1", 12)
    assert catalog.items.table.equals(contents.items)
    assert catalog.segments.of(3).tolist() == contents.segments.of(3).tolist()
    np.testing.assert_array_equal(catalog.item_vectors, contents.item_vectors)
    np.testing.assert_array_equal(catalog.popularity, contents.popularity)
    np.testing.assert_array_equal(catalog.popular, np.arange(12)[::-1])
    for signal in SIGNALS:
        np.testing.assert_array_equal(catalog.features.vectors[signal], contents.features.vectors[signal])
        np.testing.assert_array_equal(catalog.features.origin[signal], contents.features.origin[signal])


def test_rows_and_ids_are_two_names_of_one_item(written: Path) -> None:
    catalog = Catalog.load(written)
    assert [catalog.row(catalog.item_id(row)) for row in range(12)] == list(range(12))
    assert catalog.row("unheard of") is None
    item = catalog.item(5)
    assert (item.item_id, item.title, item.brand, item.description) == ("i005", "Lamp 5", "Arbor", None)
    assert item.image_file == f"ab/{5:064x}.jpg"


def test_an_item_tells_which_signals_it_has(written: Path) -> None:
    catalog = Catalog.load(written)
    assert catalog.item(0).signals == {"image": True, "cf": False, "text": True}
    assert catalog.item(1).signals == {"image": True, "cf": True, "text": True}


@pytest.mark.parametrize("row", [-1, 12])
def test_a_row_outside_the_catalog_is_an_error(written: Path, row: int) -> None:
    catalog = Catalog.load(written)
    for ask in (catalog.item, catalog.item_id):
        with pytest.raises(IndexError, match="12 items"):
            ask(row)


def test_a_filter_finds_the_items_of_its_category_and_brand(written: Path) -> None:
    catalog = Catalog.load(written)
    assert catalog.eligible_rows(frozenset(), frozenset()) is None
    found = catalog.eligible_rows(frozenset({"Lamps", "Chairs"}), frozenset({"Arbor"}))
    assert found is not None
    assert found.tolist() == [1, 3, 5, 7, 9, 11]
    assert catalog.unknown_filters(frozenset({"Lamps", "Chairs"}), frozenset({"Arbor", "Ember"})) == ("Chairs", "Ember")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(events=st.lists(st.integers(0, 3), min_size=12, max_size=12), data=st.data())
def test_the_most_popular_rows_come_first_and_ties_by_row(
    written: Path, events: list[int], data: st.DataObject
) -> None:
    catalog = replace(Catalog.load(written, verify=False), popularity=np.array(events))
    eligible = sorted(data.draw(st.sets(st.integers(0, 11))))
    num = data.draw(st.integers(1, 14))
    expected = sorted(eligible, key=lambda row: (-events[row], row))[:num]
    assert catalog.most_popular(num, np.array(eligible, np.int64)).tolist() == expected
    assert Catalog.load(written, verify=False).most_popular(3).tolist() == [11, 10, 9]


def test_the_index_searches_the_item_vectors(written: Path) -> None:
    catalog = Catalog.load(written)
    user = np.random.default_rng(1).normal(size=9).astype(np.float32)
    scores, rows = catalog.index.search(user[None], 5)
    expected_scores, expected_rows = brute_force(catalog.item_vectors, user, 5)
    assert (scores[0].tolist(), rows[0].tolist()) == (expected_scores.tolist(), expected_rows.tolist())


def test_arrays_stay_on_disk_and_cannot_be_written(written: Path) -> None:
    catalog = Catalog.load(written)
    assert isinstance(catalog.item_vectors.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        catalog.features.vectors["image"][0, 0] = 1.0


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_truncated_file_is_refused_by_name(folder: Path, name: str) -> None:
    path = folder / name
    os.truncate(path, path.stat().st_size - 7)
    with pytest.raises(ArtifactError, match=f"/{re.escape(name)}"):
        Catalog.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_by_name(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"/{re.escape(name)}"):
        Catalog.load(folder)


def test_a_file_beyond_the_hashed_bytes_is_still_hashed_when_it_is_small(folder: Path) -> None:
    content = bytearray((folder / "image.npy").read_bytes())
    content[-1] ^= 1
    (folder / "image.npy").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"image\.npy differs"):
        Catalog.load(folder, max_hashed_bytes=0)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"/{re.escape(name)}"):
        Catalog.load(folder, verify=False)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".npy")])
def test_a_pickle_is_never_loaded(folder: Path, name: str, as_array: bool) -> None:
    trap = Trap(folder / "sprung")
    if as_array:
        np.save(folder / name, np.array([trap], dtype=object), allow_pickle=True)
    else:
        (folder / name).write_bytes(pickle.dumps(trap))
    vouch_again(folder)
    with pytest.raises(ArtifactError, match=f"/{re.escape(name)}"):
        Catalog.load(folder)
    assert not trap.path.exists()


def test_files_that_do_not_fit_each_other_are_refused_by_name(folder: Path) -> None:
    other = write_catalog(folder.with_name("other"), small_contents(num_items=11))
    for name in FILES:
        if name == "tokens.npy":  # its length is free; offsets.npy then does not fit
            continue
        mixed = Path(shutil.copytree(folder, folder.with_name(f"mixed-{name}")))
        shutil.copyfile(other / name, mixed / name)
        vouch_again(mixed)
        with pytest.raises(ArtifactError, match=f"/{re.escape(name)}"):
            Catalog.load(mixed)


def test_offsets_that_do_not_cut_the_tokens_are_refused(folder: Path) -> None:
    offsets = np.load(folder / "offsets.npy")
    offsets[3] = offsets[-1] + 5
    np.save(folder / "offsets.npy", offsets)
    vouch_again(folder)
    with pytest.raises(ArtifactError, match=r"offsets\.npy"):
        Catalog.load(folder)


def test_an_item_that_comes_twice_is_refused_before_it_is_written(tmp_path: Path) -> None:
    contents = small_contents()
    ids = ["i000", "i000", *contents.items["item_id"].to_pylist()[2:]]
    items = contents.items.set_column(0, CATALOG_SCHEMA.field("item_id"), pa.array(ids))
    with pytest.raises(InvalidInputError, match="'i000' comes 2 times"):
        write_contents(tmp_path, replace(contents, items=items))


def test_a_catalog_of_an_older_format_is_refused_with_the_way_out(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["format"]
    write_json(folder / MANIFEST, manifest)
    with pytest.raises(ArtifactError, match=r"format 1, .* offline\.reindex"):
        Catalog.load(folder)


@pytest.mark.parametrize("lost", ["kind", "version", "checkpoint", "counts", "dims"])
def test_a_manifest_that_lacks_a_fact_is_refused(folder: Path, lost: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest[lost]
    write_json(folder / MANIFEST, manifest)
    with pytest.raises(ArtifactError, match=lost):
        Catalog.load(folder)


def test_a_manifest_that_does_not_vouch_for_a_file_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"]["popular.npy"]
    write_json(folder / MANIFEST, manifest)
    with pytest.raises(ArtifactError, match=r"vouch for popular\.npy"):
        Catalog.load(folder)


def test_nothing_is_current_before_the_first_publication(tmp_path: Path) -> None:
    assert current_version(tmp_path / "catalogs") is None
    assert list_versions(tmp_path / "catalogs") == []


def test_current_names_what_was_set_last(written: Path, tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        shutil.copytree(written, tmp_path / version)
        set_current(tmp_path, version)
        assert current_version(tmp_path) == version


def test_a_version_that_is_not_whole_cannot_be_set(folder: Path) -> None:
    set_current(folder.parent, "v1")
    (folder.parent / "v2").mkdir()
    for absent in ("v2", "v3", "../v1", ""):
        with pytest.raises(ArtifactError, match="not a whole catalog version; there are: v1"):
            set_current(folder.parent, absent)
    assert current_version(folder.parent) == "v1"


def test_unfinished_folders_are_not_versions(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / ".v2.0a1b2c3d.tmp")
    (folder.parent / "v3").mkdir()
    assert list_versions(folder.parent) == ["v1"]


@pytest.mark.parametrize("content", [b"", b"../elsewhere\n", b"\xff\xfe"])
def test_a_damaged_current_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "CURRENT").write_bytes(content)
    with pytest.raises(ArtifactError, match="CURRENT"):
        current_version(tmp_path)
