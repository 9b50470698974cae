"""What the image signal is worth on the synthetic demo, and whether bfloat16 costs ranking quality.

    python -m benchmarks.quality [--quick] [--json PATH] [--store store]

Trains the demo twice, with the image signal and without it (neither in the prompt nor in retrieval), and compares both
with popularity, SASRec and the control without a language model on the test events. Full ranking.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.report import Report, at_least, at_most, benchmark_parser, finish
from model.checkpoint import load_checkpoint
from model.config import Config, load_config
from model.store import Store
from offline.cf import make_cf
from offline.evaluate import all_parts, blocks_of, encode_users, evaluate, load_test
from offline.features import write_features
from offline.jobs import run_job
from offline.metrics import ndcg_at
from offline.pipeline import make_demo
from offline.rankings import read_rows
from offline.train import train

YOUNG = "target too young for CF"
QUICK = ["name=demo-quick", "language_model.num_layers=2", "train.steps=5", "train.head_epochs=15"]
WITHOUT_IMAGE = ['prompt.fields=["title","cf"]', 'heads.signals=["cf","text"]']


def main() -> int:
    arguments = benchmark_parser(__doc__.splitlines()[0]).parse_args()
    store = Store(arguments.store)
    overrides = QUICK if arguments.quick else []
    config = load_config("demo", overrides)
    without = load_config("demo", [*overrides, *WITHOUT_IMAGE, f"name={config.name}-without-image"])
    make_demo(config, store)
    with_rows, without_rows = measure(config, store), measure(without, store)
    report = Report("quality", config.seed, {"with": config.model_dump(), "without image": without.model_dump()})
    report.rows = [{**row, "system": row["system"]} for row in with_rows]
    report.rows += [{**row, "system": f"{row['system']}, image off"} for row in without_rows if row["system"] == "ours"]
    print(table(report.rows))
    ours, popularity = (ndcg(with_rows, name, "all") for name in ("ours", "popularity"))
    young, young_without = (ndcg(rows, "ours", YOUNG) for rows in (with_rows, without_rows))
    sasrec = ndcg(with_rows, "SASRec", YOUNG)
    report.checks = [
        at_least("NDCG@10 of ours over popularity", ours / popularity, 2.0, "x"),
        at_least("NDCG@10 on young targets, ours minus SASRec", young - sasrec, 0.005, ""),
        at_least("share of it lost without images", 1 - young_without / young if young else 0.0, 0.2, ""),
        at_most("NDCG@10, bfloat16 against float32", rounding_cost(config, store), 0.005, ""),
    ]
    return finish(report, arguments.json)


def measure(config: Config, store: Store) -> list[dict[str, Any]]:
    """Full-ranking rows of one configuration, every job reused where it is up to date."""
    write_features(config, store)
    make_cf(config, store)
    folder = evaluate(config, store, train(config, store))
    return [row for row in read_rows(folder) if row["protocol"] == "full"]


def ndcg(rows: list[dict[str, Any]], system: str, group: str) -> float:
    return float(next(row["ndcg@10"] for row in rows if (row["system"], row["group"]) == (system, group)))


def rounding_cost(config: Config, store: Store) -> float:
    """|NDCG@10 with a bfloat16 language model - the same with float32|, on every test user."""
    scores = []
    folder = train(config, store)
    for dtype in ("bfloat16", "float32"):
        trained = load_checkpoint(folder)
        language_model = trained.config.language_model.model_copy(update={"dtype": dtype})
        checkpoint = replace(trained, config=trained.config.model_copy(update={"language_model": language_model}))
        test = load_test(checkpoint, store)
        language_model = encode_users(checkpoint, test, test.cases.histories, store)
        vectors = blocks_of(all_parts(checkpoint, test), language_model, test).vectors(checkpoint.joined.weights)
        scores.append(ndcg_at(vectors.full_ranks(test.cases.targets, test.cases.histories), 10))
    print(f"NDCG@10 in bfloat16 {scores[0]:.4f}, in float32 {scores[1]:.4f}")
    return float(np.abs(scores[0] - scores[1]))


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'NDCG@10, full ranking':34}{'all':>10}{'young':>10}"]
    for system in dict.fromkeys(row["system"] for row in rows):
        chosen = [row for row in rows if row["system"] == system]
        lines.append(f"{system:34}{ndcg(chosen, system, 'all'):10.4f}{ndcg(chosen, system, YOUNG):10.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_job(main)
