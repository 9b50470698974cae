"""The demo job: draw the catalog, simulate the shoppers, and write both as a shop would export them."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from model.artifacts import MANIFEST, building, is_up_to_date, read_manifest, write_manifest
from model.errors import ArtifactError, InvalidInputError
from offline.demo.catalog import make_catalog
from offline.demo.dirt import broken_picture, event_rows, item_rows
from offline.demo.parameters import DemoParameters
from offline.demo.render import render
from offline.demo.shoppers import Shop, make_shoppers, simulate

KIND = "synthetic demo data"
VERSION = 1
"""Raise when the same parameters and seed would give other files."""
NOTE = """SYNTHETIC DATA. No product, brand, shop or person in these files exists.

Pictures are drawn and shoppers simulated by offline/demo. Every shopper likes some palettes and patterns, which no text
names, beside categories and brands. The missing and damaged entries are there on purpose. Free of rights (CC0).
"""


def make_demo_data(out: Path, seed: int = 0, parameters: DemoParameters | None = None) -> Path:
    """Write items.jsonl, interactions.csv, images/, README.txt and a manifest to `out`; same seed, same bytes.

    Returns `out`. Raises InvalidInputError rather than replace a folder that this job did not make.
    """
    parameters = parameters or DemoParameters()
    inputs = {"seed": seed, "parameters": asdict(parameters), "version": VERSION}
    if is_up_to_date(out, inputs):
        print(f"demo data: {out} is up to date")
        return out
    _check_replaceable(out)
    products = make_catalog(parameters, seed)
    events = simulate(Shop(products, parameters), make_shoppers(parameters, seed), parameters, seed)
    with building(out) as folder:
        rows = item_rows(products, parameters, seed)
        (folder / "README.txt").write_text(NOTE)
        (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with (folder / "interactions.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["user_id", "item_id", "timestamp"])
            writer.writerows(event_rows(events, products, parameters, seed))
        (folder / "images").mkdir()
        wanted = {row["image"] for row in rows}
        broken = broken_picture(rows, seed)
        for product in tqdm(products, desc="drawing", unit="picture", disable=None):
            name = f"images/{product.item_id}.jpg"
            if name in wanted:
                picture = render(product, seed)
                (folder / name).write_bytes(picture[: len(picture) // 3] if name == broken else picture)
        counts = {"items": len(products), "shoppers": parameters.num_shoppers, "events": len(events)}
        write_manifest(folder, {"kind": KIND, "inputs": inputs, "counts": counts})
    return out


def _check_replaceable(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        made_here = out.is_dir() and read_manifest(out, verify=False).get("kind") == KIND
    except ArtifactError:
        made_here = False
    if not made_here:
        raise InvalidInputError(f"--out {out} exists and is not {KIND} ({MANIFEST} says no such thing)", "out")
