"""Raw files to a published dataset, through the command line's own function and, once, through a real process."""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from model.artifacts import read_manifest
from model.errors import InvalidInputError
from offline.dataset import INTERACTION_SCHEMA, ITEM_SCHEMA, load_dataset, tie_key
from offline.ingest.__main__ import arguments_of, parser
from offline.ingest.job import Arguments, run
from offline.ingest.records import UNTITLED

ITEMS = ["a", "b", "c", "d", "lonely"]
USERS = ["u1", "u2", "u3"]


def write_lines(path: Path, rows: list[Any]) -> None:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture
def generic(tmp_path: Path) -> Arguments:
    """Three users who all took a, b, c, d; one event comes twice, two tie; item `lonely` has one event."""
    folder = tmp_path / "raw"
    (folder / "images").mkdir(parents=True)
    for item_id in "ab":
        Image.effect_noise((40, 40), 50).save(folder / "images" / f"{item_id}.jpg")
    (folder / "images" / "c.jpg").write_text("<html>")
    write_lines(
        folder / "items.jsonl",
        [
            {"item_id": "c", "title": "<b>Cup</b>", "image": "images/c.jpg", "description": "<p>Tea &amp; more</p>"},
            {"item_id": "a", "title": "Axe", "brand": "Acme", "genres": ["Tools", "Wood"], "image": "images/a.jpg"},
            {"item_id": "b", "title": "", "image": "images/b.jpg"},
            {"item_id": "b", "title": "Ball", "image": "images/c.jpg"},
            {"item_id": "lonely", "title": "Lonely"},
            "{broken",
        ],
    )
    rows = [
        {"user_id": user, "item_id": item, "timestamp": 100 + n // 2} for user in USERS for n, item in enumerate("abcd")
    ]
    rows += [
        {"user_id": "u1", "item_id": "a", "timestamp": 999},
        {"user_id": "u1", "item_id": "lonely", "timestamp": 101},
        {"user_id": "u1", "item_id": "a", "timestamp": "never"},
    ]
    write_lines(folder / "interactions.jsonl", rows)
    return Arguments(
        "generic", folder / "interactions.jsonl", folder / "items.jsonl", tmp_path / "out" / "tiny", k_core=2
    )


def items_of(arguments: Arguments) -> dict[str, dict[str, Any]]:
    return {row["item_id"]: row for row in pq.read_table(arguments.out / "items.parquet").to_pylist()}


def test_the_dataset_has_the_agreed_form(generic: Arguments) -> None:
    run(generic)
    items = pq.read_table(generic.out / "items.parquet")
    interactions = pq.read_table(generic.out / "interactions.parquet")
    assert items.schema.equals(ITEM_SCHEMA)
    assert interactions.schema.equals(INTERACTION_SCHEMA)
    assert items["item_id"].to_pylist() == ["a", "b", "c", "d"]
    rows = interactions.to_pylist()
    assert rows == sorted(rows, key=lambda r: (r["user_id"], r["timestamp"], tie_key(r["user_id"], r["item_id"])))
    assert [row["split"] for row in rows] == ["train", "train", "validation", "test"] * 3
    dataset = load_dataset(generic.out)
    assert (dataset.num_items, dataset.users) == (4, USERS)


def test_items_are_cleaned_completed_and_kept_without_title_or_picture(generic: Arguments) -> None:
    run(generic)
    items = items_of(generic)
    assert (items["a"]["brand"], items["a"]["category"]) == ("Acme", "Tools, Wood")
    assert (items["c"]["title"], items["c"]["description"], items["c"]["image"]) == ("Cup", "Tea & more", None)
    assert items["b"]["title"] == "Ball"
    assert items["d"]["title"] == UNTITLED
    with Image.open(generic.out / items["b"]["image"]) as picture:
        assert picture.size == (40, 40)
    assert len(list((generic.out / "images").iterdir())) == 2


def test_the_report_counts_every_step_and_names_what_was_dropped(generic: Arguments) -> None:
    run(generic)
    report = json.loads((generic.out / "report.json").read_text())
    assert [(s["events"], s["users"], s["items"]) for s in report["steps"]] == [
        (14, 3, 5),
        (13, 3, 5),
        (12, 3, 4),
        (12, 3, 4),
    ]
    assert [(file["rows"], file["bad_rows"]) for file in report["files"]] == [(15, 1), (6, 1)]
    assert report["pictures"] == {"local": 2, "none named": 1, "not a picture": 1}
    assert {r["reason"] for r in report["item_remarks"]} == {"id comes twice", "not in the items file"}
    markdown = (generic.out / "report.md").read_text()
    for named in ("interactions.jsonl:15", "items.jsonl:6", "images/c.jpg"):
        assert named in markdown
    counts = {"events": 12, "users": 3, "items": 4, "pictures": 2, "train": 6, "validation": 3, "test": 3}
    assert read_manifest(generic.out)["counts"] == counts


def test_events_of_unknown_items_are_dropped_on_request(generic: Arguments) -> None:
    run(replace(generic, keep_unknown_items=False))
    assert list(items_of(generic)) == ["a", "b", "c"]


def test_a_second_run_finds_its_result_and_any_change_makes_it_again(generic: Arguments) -> None:
    run(generic)
    assert "up to date" in run(generic)
    assert "up to date" not in run(replace(generic, force=True))
    assert "up to date" not in run(replace(generic, k_core=3))
    picture = generic.items.parent / "images" / "a.jpg"
    os.utime(picture, ns=(1, 1))
    assert "up to date" not in run(replace(generic, k_core=3))
    assert "up to date" in run(replace(generic, k_core=3))


def test_the_same_input_gives_the_same_bytes(generic: Arguments) -> None:
    run(generic)
    other = replace(generic, out=generic.out.with_name("other"))
    run(other)
    assert read_manifest(generic.out) == read_manifest(other.out)


def test_a_folder_that_is_no_dataset_is_never_replaced(generic: Arguments) -> None:
    generic.out.mkdir(parents=True)
    (generic.out / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInputError, match="not a dataset"):
        run(generic)
    with pytest.raises(InvalidInputError, match="holds the input"):
        run(replace(generic, out=generic.items.parent))
    assert (generic.out / "thesis.txt").is_file()


def test_a_core_that_leaves_nothing_says_so(generic: Arguments) -> None:
    with pytest.raises(InvalidInputError, match="no event survives the 50-core"):
        run(replace(generic, k_core=50))
    assert not generic.out.exists()


def test_amazon_2018_with_all_its_dirt(tmp_path: Path) -> None:
    reviews = [
        {"reviewerID": user, "asin": f"B{n}", "unixReviewTime": 1_500_000_000 + 86_400 * n, "overall": 5.0}
        for user in USERS
        for n in range(4)
    ]
    write_lines(tmp_path / "reviews.json.gz", [*reviews, reviews[0], {"asin": "B1"}])
    picture = "http://127.0.0.1:9/x.jpg"
    metadata = [
        str({"asin": "B0", "title": 'It\'s "quoted"', "imUrl": picture}),
        {"asin": "B1", "title": "<span id='t'>Span &amp; Co</span>", "imageURL": [picture]},
        {"asin": "B1", "title": "Other", "brand": "Acme"},
        {"asin": "B2", "title": "var a = (new Date()).getTime();", "imageURLHighRes": [picture]},
        {"asin": "B9", "title": "Nobody bought it"},
    ]
    write_lines(tmp_path / "metadata.json.gz", metadata)
    arguments = Arguments(
        "amazon2018", tmp_path / "reviews.json.gz", tmp_path / "metadata.json.gz", tmp_path / "out", k_core=3
    )
    run(arguments)
    items = items_of(arguments)
    assert {key: item["title"] for key, item in items.items()} == {
        "B0": 'It\'s "quoted"',
        "B1": "Span & Co",
        "B2": UNTITLED,
        "B3": UNTITLED,
    }
    assert items["B1"]["brand"] == "Acme"
    assert [item["image_url"] for item in items.values()] == [picture, picture, picture, None]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["pictures"] == {"address not allowed": 3, "none named": 1}


def test_amazon_2023_through_a_process_and_bad_input_ends_with_one_line(tmp_path: Path) -> None:
    reviews = [
        {"user_id": user, "parent_asin": f"B{n}", "timestamp": 1_500_000_000_000 + n}
        for user in USERS
        for n in range(3)
    ]
    write_lines(tmp_path / "reviews.jsonl", reviews)
    images = [{"variant": "MAIN", "hi_res": None, "large": "https://pictures.example/x.jpg"}]
    write_lines(
        tmp_path / "meta.jsonl", [{"parent_asin": f"B{n}", "title": f"T{n}", "images": images} for n in range(3)]
    )

    def ingest(*files: str) -> subprocess.CompletedProcess[str]:
        options = ["--out", str(tmp_path / "out"), "--k-core", "3", "--no-download"]
        command = [sys.executable, "-m", "offline.ingest", "amazon2023", *files, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    reviews_file, meta_file = str(tmp_path / "reviews.jsonl"), str(tmp_path / "meta.jsonl")
    done = ingest("--reviews", reviews_file, "--metadata", meta_file)
    assert done.returncode == 0, done.stderr
    assert "not downloaded 3" in done.stdout
    assert pq.read_table(tmp_path / "out" / "interactions.parquet")["timestamp"].to_pylist() == [1_500_000_000] * 9
    swapped = ingest("--reviews", meta_file, "--metadata", reviews_file)
    assert swapped.returncode == 2
    assert swapped.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "meta.jsonl" in swapped.stderr
    assert "Traceback" not in swapped.stderr


def test_the_command_line_reaches_every_setting() -> None:
    line = (
        "generic --interactions i.csv --items t.csv --out o --k-core 3 --no-download --allow-private-addresses "
        "--drop-unknown-items --download-time-limit-s 5 --download-timeout-s 2 --download-concurrency 7 "
        "--download-attempts 1 --max-image-bytes 10 --max-image-pixels 20 --force"
    )
    arguments = arguments_of(parser().parse_args(line.split()))
    assert (arguments.k_core, arguments.download, arguments.keep_unknown_items, arguments.force) == (
        3,
        False,
        False,
        True,
    )
    downloads = arguments.downloads
    assert (downloads.time_limit_s, downloads.timeout_s, downloads.concurrency, downloads.attempts) == (5.0, 2.0, 7, 1)
    assert downloads.allow_private
    assert (arguments.pictures.max_bytes, arguments.pictures.max_pixels) == (10, 20)


@pytest.mark.parametrize("option", ["--k-core 0", "--download-attempts 0", "--download-concurrency 0"])
def test_a_senseless_option_is_refused_by_name(option: str) -> None:
    line = f"generic --interactions i.csv --items t.csv --out o {option}"
    with pytest.raises(InvalidInputError, match=option.split()[0]):
        arguments_of(parser().parse_args(line.split()))
