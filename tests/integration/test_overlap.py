"""The job on small datasets with tiny encoders: what it finds, says, writes and draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_data import tiny_dataset

from model.artifacts import building, write_manifest
from model.config import Config, parse_config
from model.store import Store
from offline.dataset import ITEM_SCHEMA, load_dataset
from offline.encoders import load_image_encoder
from offline.encoders.picture import open_picture
from offline.overlap import (
    BEYOND_TEXT,
    BY_PICTURE,
    BY_TEXT,
    MIN_ITEMS,
    as_json,
    as_text,
    main,
    measure,
    plot,
    title_and_description,
    verdict,
)

NUM_ITEMS = 80


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """80 items in four clusters, three of them without a picture, and 300 people who keep to a cluster."""
    store = Store(tmp_path_factory.mktemp("overlap"))
    tiny_dataset(store.dataset("clusters"), num_users=300, num_items=NUM_ITEMS, num_without_image=3)
    return store


def configured(models: Path, dataset: str, vision: str = "siglip") -> Config:
    tree = {
        "name": "tiny",
        "dataset": dataset,
        "language_model": {"source": "unused/unused"},
        "vision": {"source": str(models / vision)},
        "text": {"source": str(models / "text")},
    }
    return parse_config(tree, Config)


def rewritten(source: Path, folder: Path, *, shuffled: bool = False, **pictures: Image.Image) -> Path:
    """A copy of a dataset with other pictures under the names of items; or all pictures dealt at random."""
    dataset = load_dataset(source)
    rows = dataset.items.to_pylist()
    with_picture = [row for row in rows if row["image"]]
    if shuffled:
        order = np.random.default_rng(0).permutation(len(with_picture))
        for row, image in zip(with_picture, [with_picture[at]["image"] for at in order], strict=True):
            row["image"] = image
    with building(folder) as temporary:
        (temporary / "images").mkdir()
        for path in (source / "images").iterdir():
            (temporary / "images" / path.name).write_bytes(path.read_bytes())
        for item_id, picture in pictures.items():
            picture.save(temporary / "images" / f"{item_id}.jpg")
        (temporary / "interactions.parquet").write_bytes((source / "interactions.parquet").read_bytes())
        pq.write_table(pa.Table.from_pylist(rows, ITEM_SCHEMA), temporary / "items.parquet")
        write_manifest(temporary, {"kind": "dataset", "name": folder.name})
    return folder


def test_pictures_and_texts_of_clusters_that_people_keep_to_agree_with_their_choices(
    store: Store, tiny_models: Path
) -> None:
    overlap = measure(configured(tiny_models, "clusters"), store, "cpu")
    assert overlap.num_compared >= MIN_ITEMS
    assert overlap.agreements[BY_PICTURE].lift.low > 1
    assert overlap.agreements[BY_TEXT].lift.low > 1
    assert "worth trying" in verdict(overlap)[0]


def test_pictures_dealt_at_random_say_nothing_of_choices(store: Store, tiny_models: Path) -> None:
    rewritten(store.dataset("clusters"), store.dataset("shuffled"), shuffled=True)
    overlap = measure(configured(tiny_models, "shuffled"), store, "cpu")
    assert overlap.agreements[BY_PICTURE].lift.low < 1
    assert overlap.agreements[BEYOND_TEXT].lift.low < 1
    assert overlap.agreements[BY_TEXT].lift.low > 1
    assert verdict(overlap)[0].startswith("Nothing shows that images will help")


def test_missing_blank_and_repeated_pictures_are_named(store: Store, tiny_models: Path) -> None:
    stripes = open_picture((store.dataset("clusters") / "images" / "i0010.jpg").read_bytes())
    pictures = {"i0005": Image.new("RGB", (48, 48), "white"), "i0006": stripes, "i0007": stripes}
    rewritten(store.dataset("clusters"), store.dataset("faulty"), **pictures)
    found = as_json(measure(configured(tiny_models, "faulty"), store, "cpu"))["faults"]
    assert sorted(found["no picture"]["examples"]) == ["i0000", "i0001", "i0002"]
    assert found["blank picture"] == {"items": 1, "examples": ["i0005"]}
    assert sorted(found["picture that another item has"]["examples"]) == ["i0006", "i0007"]


@pytest.mark.parametrize("vision", ["siglip", "clip"])
def test_the_similarity_is_the_mean_cosine_of_the_two_towers(store: Store, tiny_models: Path, vision: str) -> None:
    config = configured(tiny_models, "clusters", vision)
    aligned = measure(config, store, "cpu").aligned
    assert aligned is not None
    dataset = load_dataset(store.dataset("clusters"))
    items = [item for item in dataset.items.to_pylist() if item["image"]]
    encoder = load_image_encoder(config.vision, store.models, "cpu")
    cosines = []
    for item in items:
        picture = encoder.encode_images([open_picture((dataset.folder / item["image"]).read_bytes())])[0]
        text = encoder.encode_texts([title_and_description(item)])[0]
        cosines.append(picture @ text / np.linalg.norm(picture) / np.linalg.norm(text))
    np.testing.assert_allclose(np.sort(aligned.own_N), np.sort(cosines), rtol=1e-3, atol=1e-5)


def test_a_random_encoder_does_not_tell_an_items_text_from_others(store: Store, tiny_models: Path) -> None:
    sentence = verdict(measure(configured(tiny_models, "clusters", "clip"), store, "cpu"))[-1]
    assert sentence.startswith("A picture does not tell its own item's text from another's")


def test_too_few_items_are_said_to_be_too_few(store: Store, tiny_models: Path) -> None:
    tiny_dataset(store.dataset("few"), num_items=24)
    overlap = measure(configured(tiny_models, "few"), store, "cpu")
    assert overlap.num_compared <= 24
    assert verdict(overlap)[0].startswith("Whether images help cannot be said")
    assert "fewer than 50 items" in as_text(overlap)


def test_the_command_prints_the_verdict_and_writes_figures_and_plot(
    store: Store, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "shop.toml"
    config.write_text(
        f'name = "shop"\ndataset = "clusters"\n[language_model]\nsource = "unused/unused"\n'
        f'[vision]\nsource = "{tiny_models / "clip"}"\n[text]\nsource = "{tiny_models / "text"}"\n'
    )
    outputs = ["--json", str(tmp_path / "new" / "o.json"), "--plot", str(tmp_path / "o.png")]
    main(["--config", str(config), "--store", str(store.root), *outputs])
    written = json.loads((tmp_path / "new" / "o.json").read_text())
    assert written["verdict"][0] in capsys.readouterr().out
    assert written["aligned"]["items"] == NUM_ITEMS - 3
    with Image.open(tmp_path / "o.png") as picture:
        assert picture.width > 1000


def test_a_plot_can_be_drawn_when_nothing_could_be_compared(store: Store, tiny_models: Path, tmp_path: Path) -> None:
    tiny_dataset(store.dataset("fewer"), num_items=16)
    plot(measure(configured(tiny_models, "fewer"), store, "cpu"), tmp_path / "o.png")
    assert (tmp_path / "o.png").stat().st_size > 1000


def test_a_plot_in_no_known_format_is_refused_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--config", "demo", "--store", "nowhere", "--plot", "overlap.jpeg2"])
    assert "must end in .png, .svg or .pdf" in capsys.readouterr().err
