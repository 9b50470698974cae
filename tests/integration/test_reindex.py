"""Reindexing as an operator does it: real items, tiny encoders and language model, real processes, real kills."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from tiny_data import tiny_dataset
from tiny_models import tiny_language_model, tiny_sentence_encoder, tiny_siglip

from model.artifacts import read_manifest, write_json, write_manifest
from model.catalog import Catalog, current_version, list_versions, set_current
from model.config import Config, parse_config
from model.heads import Heads
from model.joined import equal_weights
from model.ranking import Query
from model.recommender import Recommender
from model.store import Store
from offline.dataset import Dataset, load_dataset
from offline.encoders import load_image_encoder, load_text_encoder
from offline.publish import alone
from offline.reindex import BUSY, PUBLISHED, REFUSED, UNUSABLE, main

ROOT = Path(__file__).resolve().parents[2]
NUM_ITEMS, NUM_NEW = 24, 3
CF_WIDTH = 6


def tiny_config(models: Path) -> Config:
    tree = {
        "name": "tiny",
        "dataset": "tiny",
        "language_model": {"source": str(models / "language"), "dtype": "float32"},
        "vision": {"source": str(models / "vision"), "dtype": "float32"},
        "text": {"source": str(models / "text"), "dtype": "float32"},
        "heads": {"shared_width": 8, "adaptor_width": 8, "parts": ["language_model"]},
    }
    return parse_config(tree, Config)


def write_checkpoint(store: Store, config: Config, dataset: Dataset) -> None:
    """Heads as they are before training: what is tested here does not depend on what they learned."""
    image = load_image_encoder(config.vision, store.models, "cpu")
    text = load_text_encoder(config.text, store.models, "cpu")
    widths = {"image": image.width, "cf": CF_WIDTH, "text": text.width}
    torch.manual_seed(0)
    heads = Heads(config.heads, 32, widths, embedding_rms=1.0)
    num_events = dataset.num_train_events
    folder = store.checkpoints / "tiny-1"
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config.model_dump(mode="json"))
    save_file(heads.state_dict(), folder / "heads.safetensors")
    write_json(folder / "weights.json", {"joined": equal_weights(["language_model"])})
    np.save(folder / "cf.npy", np.random.default_rng(0).normal(size=(NUM_ITEMS, CF_WIDTH)).astype(np.float32))
    table = {"item_id": dataset.item_ids, "num_events": num_events, "has_cf": num_events > 0}
    pq.write_table(pa.table(table), folder / "train_items.parquet")
    write_json(
        folder / "canaries.json", [[dataset.item_ids[row] for row in events[:3]] for events in dataset.events[:3]]
    )
    facts = {"config_name": "tiny", "created": "2026-01-01", "state_width": 32, "widths": widths}
    encoders = {"image": image.fingerprint, "cf": "sasrec", "text": text.fingerprint}
    write_manifest(folder, {"kind": "checkpoint", "encoders": encoders, **facts})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a dataset and a checkpoint, and one reindex done: version 1."""
    root = tmp_path_factory.mktemp("reindex")
    models = root / "models"
    tiny_language_model(models / "language")
    tiny_siglip(models / "vision")
    tiny_sentence_encoder(models / "text")
    store = Store(root / "store")
    tiny_dataset(store.dataset("tiny"), num_items=NUM_ITEMS, num_new=NUM_NEW, num_without_image=2)
    write_checkpoint(store, tiny_config(models), load_dataset(store.dataset("tiny")))
    assert reindex(store) == PUBLISHED
    return store.root


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Store:
    """A copy that a test may change."""
    return Store(Path(shutil.copytree(prepared, tmp_path / "store")))


def reindex(store: Store, *arguments: str) -> int:
    return main(["--store", str(store.root), "--config", "tiny", *arguments])


def served(store: Store) -> Catalog:
    version = current_version(store.catalogs)
    assert version is not None
    return Catalog.load(store.catalogs / version)


def items_file(store: Store, *, without: int = 0, **changes: dict[str, object]) -> Path:
    """The dataset's items as JSON lines beside its pictures; `changes` by item id, new ids are added."""
    dataset = store.dataset("tiny")
    items = {row["item_id"]: row for row in pq.read_table(dataset / "items.parquet").to_pylist()[without:]}
    for item_id, fields in changes.items():
        items[item_id] = {**items.get(item_id, {"item_id": item_id, "title": "New"}), **fields}
    path = dataset / "changed.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items.values()))
    return path


def state_of(catalogs: Path) -> tuple[str | None, list[str]]:
    return current_version(catalogs), list_versions(catalogs)


def test_the_published_catalog_holds_every_item_with_what_is_known_of_it(store: Store) -> None:
    catalog, dataset = served(store), load_dataset(store.dataset("tiny"))
    assert catalog.items.table["item_id"].to_pylist() == dataset.item_ids
    assert catalog.popularity.tolist() == dataset.num_train_events.tolist()
    assert catalog.item(0).signals == {"image": True, "cf": True, "text": True}  # by the aligned text tower
    assert catalog.item(0).image_file is None
    new = catalog.item(NUM_ITEMS - 1)
    assert new.signals == {"image": True, "cf": False, "text": True}
    assert catalog.popularity[NUM_ITEMS - 1] == 0


def test_pictures_are_stored_by_their_content(store: Store) -> None:
    catalog, dataset = served(store), load_dataset(store.dataset("tiny"))
    name = catalog.item(5).image_file
    assert name is not None
    assert re.fullmatch(r"([0-9a-f]{2})/\1[0-9a-f]{62}\.jpg", name)
    original = dataset.folder / dataset.items["image"][5].as_py()
    assert (store.images / name).read_bytes() == original.read_bytes()


def test_the_manifest_tells_what_was_checked(store: Store) -> None:
    manifest = served(store).manifest
    assert manifest["checks"]["recall"] == {"recall@10": 1.0, "recall@100": 1.0}
    assert [len(results) for results in manifest["checks"]["canaries"]] == [10, 10, 10]
    assert manifest["counts"] == {"items": 24, "with_image": 24, "with_cf": 21, "with_text": 24}


def test_the_recommender_ranks_with_the_published_catalog(store: Store) -> None:
    recommender = Recommender.load(store, device="cpu")
    ranking = recommender.rank([Query(("i0005", "i0006"), k=30)])[0]
    assert len(ranking.items) == NUM_ITEMS - 2
    assert "i0023" in [item.item_id for item in ranking.items]
    for item in ranking.items:
        assert item.signals is not None
        assert item.score == pytest.approx(item.signals.image + item.signals.cf + item.signals.text, abs=1e-9)


def test_nothing_changed_makes_no_new_version(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of(store.catalogs)
    assert reindex(store) == PUBLISHED
    assert f"nothing changed: {before[0]} stays" in capsys.readouterr().out
    assert state_of(store.catalogs) == before


def test_force_publishes_though_nothing_changed(store: Store) -> None:
    before = current_version(store.catalogs)
    assert reindex(store, "--force") == PUBLISHED
    assert current_version(store.catalogs) != before
    assert served(store).manifest["parent"] == before


def test_only_changed_items_are_encoded_again(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    items = items_file(
        store, i0007={"title": "Another title"}, n0001={"title": "New lamp", "image": "images/i0009.jpg"}
    )
    assert reindex(store, "--items", str(items)) == PUBLISHED
    out = capsys.readouterr().out
    assert "25 (1 added, 0 removed, 1 changed)" in out
    assert "encoded     image 0, text 2" in out  # the new item's picture is known by its content


def test_an_unchanged_item_keeps_its_vector(store: Store) -> None:
    before = served(store)
    assert reindex(store, "--items", str(items_file(store, i0007={"title": "Another title"}))) == PUBLISHED
    after = served(store)
    same = [row for row in range(NUM_ITEMS) if row != 7]
    np.testing.assert_allclose(after.item_vectors[same], before.item_vectors[same], atol=1e-6)
    assert np.abs(after.item_vectors[7] - before.item_vectors[7]).max() > 1e-3


def test_an_item_that_nobody_has_bought_yet_can_be_recommended(store: Store) -> None:
    picture = store.dataset("tiny") / "images" / "i0009.jpg"
    shutil.copyfile(picture, picture.with_name("new.jpg"))
    items = items_file(store, n0001={"title": "Brand-new lamp", "image": "images/new.jpg"})
    assert reindex(store, "--items", str(items)) == PUBLISHED
    row = served(store).row("n0001")
    assert row is not None
    assert served(store).item(row).signals == {"image": True, "cf": False, "text": True}
    answers = Recommender.load(store, device="cpu").rank([Query(("i0005",), k=30)])[0].items
    assert "n0001" in [item.item_id for item in answers]


def test_a_dry_run_publishes_nothing(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before, pictures = state_of(store.catalogs), sorted(store.images.rglob("*"))
    content = (store.dataset("tiny") / "images" / "i0009.jpg").read_bytes()
    (store.dataset("tiny") / "images" / "new.jpg").write_bytes(content + b"\0")
    items = items_file(store, n0001={"image": "images/new.jpg"})
    assert reindex(store, "--items", str(items), "--dry-run") == PUBLISHED
    assert "would be served" in capsys.readouterr().out
    assert state_of(store.catalogs) == before
    assert sorted(store.images.rglob("*")) == pictures
    assert sorted(p.name for p in store.catalogs.iterdir()) == sorted([".lock", "CURRENT", *before[1]])


def test_an_item_without_any_signal_is_refused_by_name(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny heads retrieve by CF alone, so that a new item has nothing."""
    config = json.loads((store.checkpoints / "tiny-1" / "config.json").read_text())
    config["heads"]["signals"] = ["cf"]
    write_json(store.checkpoints / "tiny-1" / "config.json", config)
    facts = read_manifest(store.checkpoints / "tiny-1", verify=False)
    write_manifest(store.checkpoints / "tiny-1", {key: value for key, value in facts.items() if key != "files"})
    before = state_of(store.catalogs)
    assert reindex(store) == REFUSED
    assert "3 items with no usable signal (no picture, text or CF): i0021, i0022, i0023" in capsys.readouterr().err
    assert state_of(store.catalogs) == before


def test_losing_most_of_the_catalog_is_refused_unless_allowed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of(store.catalogs)
    items = str(items_file(store, without=13))
    assert reindex(store, "--items", items) == REFUSED
    assert "13 of 24 items" in capsys.readouterr().err
    assert state_of(store.catalogs) == before
    assert reindex(store, "--items", items, "--max-removed", "1") == PUBLISHED
    assert served(store).num_items == 11


def test_other_encoders_than_those_of_the_training_are_refused(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store.checkpoints / "tiny-1"
    facts = read_manifest(folder, verify=False)
    facts["encoders"]["image"] = "0123456789abcdef"
    write_manifest(folder, {key: value for key, value in facts.items() if key != "files"})
    assert reindex(store) == UNUSABLE
    assert "0123456789abcdef" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", ["heads.safetensors", "cf.npy"])
def test_a_damaged_checkpoint_is_refused_by_name(
    store: Store, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    os.truncate(store.checkpoints / "tiny-1" / damaged, 20)
    assert reindex(store, "--force") == UNUSABLE
    assert damaged in capsys.readouterr().err


def test_items_that_do_not_exist_are_an_error(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert reindex(store, "--items", str(store.root / "absent")) == UNUSABLE
    assert "absent does not exist" in capsys.readouterr().err


def test_rollback_serves_the_version_from_before(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    first = current_version(store.catalogs)
    reindex(store, "--force")
    second = current_version(store.catalogs)
    assert reindex(store, "--rollback") == PUBLISHED
    assert current_version(store.catalogs) == first
    assert f"catalog {first} is served now (before: {second})" in capsys.readouterr().out
    assert reindex(store, "--rollback", str(second)) == PUBLISHED
    assert current_version(store.catalogs) == second


def test_rollback_passes_over_a_damaged_version(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    first = current_version(store.catalogs)
    for _ in range(2):
        reindex(store, "--force")
    middle = list_versions(store.catalogs)[1]
    os.truncate(store.catalogs / middle / "item_vectors.npy", 100)
    assert reindex(store, "--rollback") == PUBLISHED
    assert current_version(store.catalogs) == first
    assert f"passed over {middle}" in capsys.readouterr().out


def test_rollback_to_a_version_that_is_not_there_names_those_that_are(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reindex(store, "--rollback", "nope") == UNUSABLE
    said = capsys.readouterr().err
    assert "nope is not a whole catalog version" in said
    assert str(current_version(store.catalogs)) in said


def test_rollback_to_a_damaged_or_absent_version_changes_nothing(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first = current_version(store.catalogs)
    reindex(store, "--force")
    second = current_version(store.catalogs)
    os.truncate(store.catalogs / str(first) / "tokens.npy", 100)
    for wanted in ([str(first)], ["absent"], []):
        assert reindex(store, "--rollback", *wanted) == UNUSABLE
        assert current_version(store.catalogs) == second
    assert "tokens.npy" in capsys.readouterr().err


def test_old_versions_beyond_keep_are_deleted_but_never_the_current(store: Store) -> None:
    first = str(current_version(store.catalogs))
    reindex(store, "--force")
    reindex(store, "--force", "--keep", "1")
    current, versions = state_of(store.catalogs)
    assert len(versions) == 2
    assert current in versions
    assert first not in versions
    with alone(store.catalogs):
        set_current(store.catalogs, versions[0])
    reindex(store, "--force", "--keep", "0")
    assert list_versions(store.catalogs) == [current_version(store.catalogs)]


def test_list_marks_the_served_version(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    reindex(store, "--force")
    capsys.readouterr()
    assert reindex(store, "--list") == PUBLISHED
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line[:2] for line in lines] == ["  ", "* "]
    assert all("24  tiny-1" in line for line in lines)


def test_a_second_reindex_ends_with_a_clear_message(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with alone(store.catalogs):
        assert reindex(store, "--force") == BUSY
        assert reindex(store, "--rollback") == BUSY
    assert f"another reindex (process {os.getpid()}) is at work" in capsys.readouterr().err
    assert reindex(store, "--force") == PUBLISHED


KILLER = """
import contextlib, os, signal, sys
import offline.reindex as job
from model.catalog import Catalog, current_version, list_versions

catalogs = sys.argv[1] + "/catalogs"
store = job.Store(job.Path(sys.argv[1]))
die_at, moments, inside = -1, 0, False

def moment(name):
    global moments
    if moments == die_at:
        print(name, end=" | ", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    moments += 1

def changes_files(event, arguments):
    # "open" has (path, mode, flags); the others name the paths that they change first.
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    if inside and event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link"):
        if str(arguments[0]).startswith(catalogs):
            moment(event + " " + os.path.basename(str(arguments[0])))

class Steps(job.Steps):
    @contextlib.contextmanager
    def step(self, name):
        moment("before " + name)
        with super().step(name):
            yield
        moment("after " + name)

job.reindex(job.Options(store, config="tiny", force=True, dry_run=True), Steps())  # imports, once for all children
moments = 0
sys.addaudithook(changes_files)
status = None
while status != 0:
    die_at += 1
    pid = os.fork()
    if pid == 0:
        inside = True
        job.reindex(job.Options(store, config="tiny", force=True, keep=0), Steps())
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    for version in list_versions(store.catalogs):
        Catalog.load(store.catalogs / version)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    print("killed" if killed else status, current_version(store.catalogs), sep=" | ", flush=True)
"""


def test_killed_at_any_step_or_file_the_old_version_is_served(store: Store) -> None:
    """A process is forked and killed before and after every step and before every change of a file below catalogs/."""
    old = str(current_version(store.catalogs))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    run = subprocess.run(
        [sys.executable, "-c", KILLER, str(store.root)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    *kills, last = [line.split(" | ") for line in run.stdout.splitlines()]
    moments = [moment for moment, *_ in kills]
    assert all(outcome == "killed" for _, outcome, _ in kills)
    before_serving = kills[: moments.index("after serve")]
    assert [version for *_, version in before_serving] == [old] * len(before_serving)
    assert {"before load", "open image.npy", "open popularity.npy", "before pictures", "before serve"} <= set(moments)
    assert any(moment.startswith("os.rename .CURRENT") for moment in moments)
    assert last[0] == "0"
    assert last[1] == served(store).version != old


@pytest.mark.parametrize("command", [["offline/reindex.py"], ["-m", "offline.reindex"]])
def test_it_runs_as_a_file_and_as_a_module(store: Store, command: list[str]) -> None:
    arguments = ["--store", str(store.root), "--config", "tiny"]
    run = subprocess.run([sys.executable, *command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == PUBLISHED, run.stderr
    assert "nothing changed" in run.stdout


def test_help_documents_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    for code in (PUBLISHED, REFUSED, UNUSABLE, BUSY):
        assert re.search(rf"^  {code}  ", out, re.MULTILINE)
