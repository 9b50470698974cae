import hashlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_models import tiny_clip, tiny_sentence_encoder, tiny_siglip, tiny_siglip2

from model.artifacts import building, read_manifest, write_manifest
from model.config import Config, parse_config
from model.errors import ArtifactError
from model.store import Store
from offline.dataset import INTERACTION_SCHEMA, ITEM_SCHEMA
from offline.encoders import load_image_encoder, load_text_encoder
from offline.feature_cache import FeatureCache
from offline.features import embed_images, embed_items, embed_texts, item_text, load_features, write_features

ROOT = Path(__file__).resolve().parents[2]
FP32 = {"rtol": 1e-4, "atol": 1e-5}
NOTHING, OWN, TEXT_TOWER = 0, 1, 2


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for build in (tiny_siglip, tiny_siglip2, tiny_clip, tiny_sentence_encoder):
        build(folder / build.__name__)
    return folder


@pytest.fixture
def config(encoders: Path) -> Config:
    return configured(encoders, str(encoders / "tiny_siglip"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path


def configured(encoders: Path, vision: str, batch_size: int = 4) -> Config:
    tree = {
        "name": "tiny",
        "dataset": "tiny",
        "language_model": {"source": "unused/unused"},
        "vision": {"source": vision, "batch_size": batch_size},
        "text": {"source": str(encoders / "tiny_sentence_encoder"), "batch_size": batch_size},
    }
    return parse_config(tree, Config)


def item(row: int, folder: Path, *, picture: bool = True, **fields: str | None) -> dict[str, str | None]:
    """An item whose picture, one colour, lies below `folder`."""
    if picture:
        colour = tuple(hashlib.sha256(str(row).encode()).digest()[:3])
        Image.new("RGB", (16, 16), colour).save(folder / "images" / f"{row}.png")
    standard = {
        "item_id": f"i{row}",
        "title": f"Lamp {row}",
        "brand": "Arbor",
        "category": None,
        "description": "Bright.",
    }
    return {**standard, "image": f"images/{row}.png" if picture else None, "image_url": None, **fields}


def table(*items: dict[str, str | None]) -> pa.Table:
    return pa.Table.from_pylist(list(items), ITEM_SCHEMA)


def write_dataset(folder: Path, num_items: int, *, broken: int | None = None) -> None:
    with building(folder) as temporary:
        (temporary / "images").mkdir()
        items = [item(row, temporary) for row in range(num_items)]
        if broken is not None:
            (temporary / "images" / f"{broken}.png").write_bytes(b"no picture")
        pq.write_table(table(*items), temporary / "items.parquet")
        pq.write_table(pa.Table.from_pylist([], INTERACTION_SCHEMA), temporary / "interactions.parquet")
        write_manifest(temporary, {"kind": "dataset"})


@pytest.mark.parametrize("family", ["tiny_siglip", "tiny_siglip2", "tiny_clip"])
def test_rows_of_a_run_equal_each_item_encoded_alone(family: str, encoders: Path, store: Store, images: Path) -> None:
    config = configured(encoders, str(encoders / family))
    items = [item(row, images, picture=row != 2) for row in range(7)]
    features = embed_items(table(*items), images, config, store)
    vision = load_image_encoder(config.vision, store.models, "cpu")
    text = load_text_encoder(config.text, store.models, "cpu")
    for row, fields in enumerate(items):
        if row == 2:
            expected = vision.encode_texts(["Lamp 2, Arbor"])
        else:
            expected = vision.encode_images([Image.open(images / f"images/{row}.png")])
        np.testing.assert_allclose(features["image"].vectors[row], expected[0], **FP32)
        np.testing.assert_allclose(features["text"].vectors[row], text.encode_texts([item_text(fields)])[0], **FP32)
    assert features["image"].origin.tolist() == [OWN, OWN, TEXT_TOWER, OWN, OWN, OWN, OWN]
    assert features["image"].vectors.dtype == np.float32
    assert features["image"].origin.dtype == np.uint8


def test_item_text_leaves_out_what_is_missing() -> None:
    whole = {"title": "Lamp", "brand": "Arbor", "category": "Lamps", "description": " Bright. "}
    assert item_text(whole) == "Lamp\nArbor\nLamps\nBright."
    assert item_text({"title": "Lamp", "brand": None, "category": "", "description": None}) == "Lamp"


def test_without_a_text_tower_a_missing_picture_is_nothing(encoders: Path, store: Store, images: Path) -> None:
    config = configured(encoders, "package:efficientnet-lite0")
    features = embed_images(table(item(0, images), item(1, images, picture=False)), images, config, store)
    assert features.origin.tolist() == [OWN, NOTHING]
    assert np.abs(features.vectors[0]).sum() > 0
    assert not features.vectors[1].any()
    assert features.vectors.shape == (2, 1280)


def test_items_without_any_picture_still_have_the_encoders_width(encoders: Path, store: Store, images: Path) -> None:
    config = configured(encoders, "package:efficientnet-lite0")
    features = embed_images(table(item(0, images, picture=False)), images, config, store)
    assert features.vectors.shape == (1, 1280)
    assert features.num_encoded == 0


def test_an_item_without_words_has_no_text_feature(config: Config, store: Store, images: Path) -> None:
    blank = item(0, images, title=" ", brand=None, description=None)
    features = embed_texts(table(blank, item(1, images)), images, config, store)
    assert features.origin.tolist() == [NOTHING, OWN]
    assert not features.vectors[0].any()


def test_nothing_is_encoded_twice(config: Config, store: Store, images: Path) -> None:
    items = table(*(item(row, images, picture=row != 1) for row in range(5)))
    first = embed_items(items, images, config, store)
    second = embed_items(items, images, config, store)
    assert [first[s].num_encoded for s in ("image", "text")] == [5, 5]
    assert [second[s].num_encoded for s in ("image", "text")] == [0, 0]
    np.testing.assert_array_equal(first["image"].vectors, second["image"].vectors)
    np.testing.assert_array_equal(first["text"].vectors, second["text"].vectors)


def test_equal_contents_are_encoded_once(config: Config, store: Store, images: Path) -> None:
    twins = table(item(0, images), item(0, images, item_id="twin"))
    features = embed_items(twins, images, config, store)
    assert [features[s].num_encoded for s in ("image", "text")] == [1, 1]
    np.testing.assert_array_equal(features["image"].vectors[0], features["image"].vectors[1])


def test_a_changed_item_alone_is_encoded_again(config: Config, store: Store, images: Path) -> None:
    items = [item(row, images) for row in range(5)]
    before = embed_items(table(*items), images, config, store)
    Image.new("RGB", (16, 16), "white").save(images / "images/3.png")
    items[1]["description"] = "Dim."
    after = embed_items(table(*items), images, config, store)
    assert [after[s].num_encoded for s in ("image", "text")] == [1, 1]
    changed = {s: (after[s].vectors != before[s].vectors).any(axis=1).nonzero()[0].tolist() for s in after}
    assert changed == {"image": [3], "text": [1]}


def test_with_everything_in_the_cache_no_weights_are_read(config: Config, store: Store, images: Path) -> None:
    write_dataset(store.dataset("tiny"), 3)
    write_features(config, store)
    (images / "config.json").write_text(config.model_dump_json())
    code = (
        "import json, sys; from pathlib import Path; import pyarrow.parquet as pq\n"
        "from model.config import Config; from model.store import Store; from offline.features import embed_items\n"
        "config = Config.model_validate_json(Path(sys.argv[1]).read_text()); store = Store(Path(sys.argv[2]))\n"
        "folder = store.dataset('tiny')\n"
        "features = embed_items(pq.read_table(folder / 'items.parquet'), folder, config, store, 'cpu')\n"
        "print(sum(f.num_encoded for f in features.values()), 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(images / "config.json"), str(store.root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["0", "False"]


def test_a_killed_run_keeps_its_shards_and_the_next_one_ends_the_work(
    encoders: Path, store: Store, images: Path
) -> None:
    config = configured(encoders, str(encoders / "tiny_siglip"), batch_size=2)
    items = table(*(item(row, images) for row in range(700)))
    pq.write_table(items, images / "items.parquet")
    (images / "config.json").write_text(config.model_dump_json())
    code = (
        "import sys; from pathlib import Path; import pyarrow.parquet as pq\n"
        "from model.config import Config; from model.store import Store; from offline.features import embed_images\n"
        "folder = Path(sys.argv[1]); config = Config.model_validate_json((folder / 'config.json').read_text())\n"
        "embed_images(pq.read_table(folder / 'items.parquet'), folder, config, Store(Path(sys.argv[2])), 'cpu')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(images), str(store.root)], cwd=ROOT) as job:
        deadline = time.monotonic() + 120
        while not list(store.feature_cache.glob("*/[!.]*")) and time.monotonic() < deadline:
            time.sleep(0.002)
        job.send_signal(signal.SIGKILL)
    fingerprint = load_image_encoder(config.vision, store.models, "cpu").fingerprint
    num_kept = len(FeatureCache(store.feature_cache / fingerprint))
    assert 0 < num_kept < 700
    resumed = embed_images(items, images, config, store, "cpu")
    assert resumed.num_encoded == 700 - num_kept
    assert (resumed.origin == OWN).all()
    uninterrupted = embed_images(items.slice(0, 40), images, config, Store(images / "other"), "cpu")
    np.testing.assert_allclose(resumed.vectors[:40], uninterrupted.vectors, **FP32)


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_shard_is_named_and_encoded_again(
    damage: str, config: Config, store: Store, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = table(*(item(row, images) for row in range(5)))
    before = embed_images(items, images, config, store)
    (shard,) = store.feature_cache.glob("*/*")
    if damage == "truncated":
        os.truncate(shard, shard.stat().st_size // 2)
    else:
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    after = embed_images(items, images, config, store)
    assert after.num_encoded == 5
    assert [shard.name in problem for problem in after.problems] == [True]
    assert shard.name in caplog.text
    np.testing.assert_array_equal(after.vectors, before.vectors)
    assert embed_images(items, images, config, store).num_encoded == 0


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    keys = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(64)]
    vectors = np.arange(64 * 3, dtype=np.float32).reshape(64, 3)

    def write(writer: int) -> None:
        cache = FeatureCache(tmp_path / "cache")
        for row in range(0, 64, 4):
            if (row // 4) % 2 == writer % 2:
                cache.append(keys[row : row + 4], vectors[row : row + 4])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    cache = FeatureCache(tmp_path / "cache")
    assert not cache.damaged
    np.testing.assert_array_equal(cache.read(keys, 3), vectors)


def test_a_broken_picture_is_named_and_counts_as_missing(config: Config, store: Store, images: Path) -> None:
    items = [item(row, images) for row in range(4)]
    (images / "images/1.png").write_bytes(b"<html>not found</html>")
    (images / "images/2.png").unlink()
    items[3]["image"] = "../outside.png"
    features = embed_images(table(*items), images, config, store)
    assert features.origin.tolist() == [OWN, TEXT_TOWER, TEXT_TOWER, TEXT_TOWER]
    assert features.problems == (
        "item i1: picture 1.png does not decode: UnidentifiedImageError",
        "item i2: picture images/2.png cannot be read (No such file or directory)",
        "item i3: picture ../outside.png lies outside the folder of pictures",
    )


def test_the_job_writes_what_load_features_reads(config: Config, store: Store) -> None:
    write_dataset(store.dataset("tiny"), 6, broken=2)
    assert write_features(config, store) == ["image", "text"]
    image, text = (load_features(store.features("tiny", name)) for name in ("image", "text"))
    assert isinstance(image.vectors, np.memmap)
    assert (image.vectors.shape, text.vectors.shape) == ((6, 32), (6, 16))
    assert image.origin.tolist() == [OWN, OWN, TEXT_TOWER, OWN, OWN, OWN]
    manifest = read_manifest(store.features("tiny", "image"))
    assert manifest["counts"] == {"items": 6, "own": 5, "text_tower": 1, "nothing": 0, "encoded": 6}
    assert manifest["encoder"] == image.encoder_fingerprint
    assert manifest["problems"] == ["item i2: picture 2.png does not decode: UnidentifiedImageError"]


def test_the_job_runs_again_only_for_what_changed(config: Config, encoders: Path, store: Store) -> None:
    write_dataset(store.dataset("tiny"), 3)
    write_features(config, store)
    assert write_features(config, store) == []
    assert write_features(configured(encoders, str(encoders / "tiny_clip")), store) == ["image"]
    write_dataset(store.dataset("tiny"), 4)
    assert write_features(config, store) == ["image", "text"]
    assert load_features(store.features("tiny", "image")).num_encoded == 1


def test_the_command_says_when_all_is_up_to_date_and_names_what_is_missing(
    config: Config, store: Store, tmp_path: Path
) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "offline.features", "--config", str(toml), "--store", str(store.root)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    toml = tmp_path / "tiny.toml"
    toml.write_text(
        'name = "tiny"\ndataset = "tiny"\nlanguage_model.source = "unused/unused"\n'
        f'vision.source = "{config.vision.source}"\ntext.source = "{config.text.source}"\n'
    )
    without_dataset = run()
    assert without_dataset.returncode == 2
    assert "manifest.json is missing" in without_dataset.stderr
    write_dataset(store.dataset("tiny"), 3)
    write_features(config, store, "cpu")
    assert run().stdout == "features of tiny are up to date\n"


def test_pickled_features_are_refused(config: Config, store: Store) -> None:
    write_dataset(store.dataset("tiny"), 3)
    write_features(config, store)
    folder = store.features("tiny", "text")
    facts = read_manifest(folder)
    np.save(folder / "vectors.npy", np.array([{"any": "object"}] * 3, dtype=object), allow_pickle=True)
    write_manifest(folder, facts)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_features(folder)


def test_truncated_features_are_refused_by_name(config: Config, store: Store) -> None:
    write_dataset(store.dataset("tiny"), 3)
    write_features(config, store)
    os.truncate(store.features("tiny", "image") / "vectors.npy", 200)
    with pytest.raises(ArtifactError, match=r"vectors\.npy has 200 bytes"):
        load_features(store.features("tiny", "image"))
