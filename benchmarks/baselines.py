"""Systems of well-kept libraries, and our SASRec beside them, on one split and one protocol.

    python -m benchmarks.baselines [--config movielens] [--systems ours sasrec] [--seeds 0 1 2] [--store store]

Runs in an environment of its own, whose pins do not fit ours: `pip install -r benchmarks/baselines-requirements.txt`.
Every system trains on the training events; the validation event alone decides when it stops; the test cases are scored
from their whole history and ranked by `offline.rankings`. A system that was measured before is not trained again.

# C test cases, N items
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.baselines_fitting import Fitted, Task
from benchmarks.report import Check, Report, at_least, benchmark_parser, finish
from model.artifacts import fingerprint, read_manifest
from model.config import Config, load_config
from model.errors import InvalidInputError
from model.store import Store
from offline.dataset import Dataset, load_dataset
from offline.jobs import run_job
from offline.rankings import Ranks, Scores, all_events, metric_rows, ranks_of, write_evaluation

VERSION = 2
MATCHED = "sasrec-matched"
CLOSE = 0.97
"""Least share of the library's NDCG@10 that our SASRec must reach."""
QUICK = ["cf.max_epochs=2", "cf.validate_every=1"]
QUICK_SYSTEMS = ["popularity", "cooccurrence", "itemknn", "ours", MATCHED]


@dataclass(frozen=True)
class Library:
    """Where a system comes from: our module that calls the library, and the library's name in a package index."""

    module: str
    package: str

    def function(self, name: str) -> Callable[..., Fitted]:
        """A function of the module. Raises InvalidInputError when the library is not installed."""
        try:
            return getattr(importlib.import_module(self.module), name)  # type: ignore[no-any-return]
        except ModuleNotFoundError as error:
            raise InvalidInputError(
                f"{error.name} is not installed here: make an environment of its own with "
                "`pip install -r benchmarks/baselines-requirements.txt`, or choose among the systems of this program: "
                "--systems popularity cooccurrence ours",
                "systems",
            ) from None

    def __str__(self) -> str:
        return f"{self.package} {importlib.metadata.version(self.package)}" if self.package else "this program"


OWN = Library("benchmarks.baselines_own", "")
RECTOOLS = Library("benchmarks.baselines_rectools", "rectools")
CORNAC = Library("benchmarks.baselines_cornac", "cornac")
SYSTEMS = {
    "popularity": (OWN, "fit_popularity"),
    "cooccurrence": (OWN, "fit_cooccurrence"),
    "itemknn": (RECTOOLS, "fit_item_knn"),
    "ours": (OWN, "fit_ours"),
    "sasrec": (RECTOOLS, "fit_sasrec"),
    "sasrec-matched": (RECTOOLS, "fit_sasrec_matched"),
    "vbpr": (CORNAC, "fit_vbpr"),
    "gru4rec": (CORNAC, "fit_gru4rec"),
    "bert4rec": (RECTOOLS, "fit_bert4rec"),
    "ligr": (RECTOOLS, "fit_ligr"),
    "esasrec": (RECTOOLS, "fit_esasrec"),
}


def main() -> int:
    parser = benchmark_parser(__doc__.splitlines()[0])
    parser.add_argument("--config", default="movielens", help="preset or .toml with the dataset and [cf] settings")
    parser.add_argument("--dataset", help="name below store/datasets (default: the configuration's)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    config = load_config(arguments.config, QUICK if arguments.quick else [])
    config = config.model_copy(update={"dataset": arguments.dataset or config.dataset})
    names = arguments.systems or (QUICK_SYSTEMS if arguments.quick else list(SYSTEMS))
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    report = Report("baselines", seeds[0], {"dataset": config.dataset, "cf": config.cf.model_dump(), "seeds": seeds})
    label = f"{config.dataset}-quick" if arguments.quick else config.dataset
    torch.set_num_threads(1)  # all libraries alike, and not in `measure`: the setting is the whole process's
    report.rows = measure(config, Store(arguments.store), names, seeds, label)
    print(table(report.rows))
    if {"ours", MATCHED} <= set(names) and not arguments.quick:  # two epochs say nothing of where either ends
        report.checks = [closeness(report.rows)]
    return finish(report, arguments.json)


def measure(config: Config, store: Store, names: list[str], seeds: list[int], label: str) -> list[dict[str, Any]]:
    """A row for every system and seed; each enters store/evaluations/baselines-<label>-seed<k>/ once it is known."""
    dataset = load_dataset(store.dataset(config.dataset))
    validation = dataset.validation_cases()
    rows = []
    for seed in seeds:
        task = Task(config, store, dataset, validation, seed)
        evaluation = Evaluation(task, store.evaluations / f"baselines-{label}-seed{seed}")
        for name in names:
            row = evaluation.row(name)
            print(f"seed {seed}  {line(row)}", flush=True)
            rows.append(row)
    return rows


class Evaluation:
    """The evaluation folder of one seed: what it has is read, what it lacks is measured and added."""

    def __init__(self, task: Task, folder: Path) -> None:
        self._task, self._folder = task, folder
        self._cases = task.dataset.test_cases()
        self._ranks: dict[str, Ranks] = {}
        self._fits: dict[str, dict[str, Any]] = {}
        if (folder / "manifest.json").is_file():
            self._read()

    def row(self, name: str) -> dict[str, Any]:
        """How one system was fitted, and its metrics by protocol."""
        inputs = self._inputs(name)
        if self._fits.get(name, {}).get("inputs") != inputs:
            ranks, fit = self._measure(name)
            self._ranks[name], self._fits[name] = ranks, {"inputs": inputs, **fit}
            self._write()
        by_protocol = {row["protocol"]: row for row in metric_rows({name: self._ranks[name]}, all_events(self._cases))}
        metrics = {p: {m: by_protocol[p][m] for m in ("hit@10", "ndcg@10")} for p in by_protocol}
        fit = {key: value for key, value in self._fits[name].items() if key != "inputs"}
        return {"system": name, "seed": self._task.seed, **metrics, **fit}

    def _inputs(self, name: str) -> str:
        config, library = self._task.config, SYSTEMS[name][0]
        protocol = config.model_dump(include={"evaluate", "seed"}, exclude_defaults=True)
        parts = {
            "dataset": self._task.dataset.manifest_hash,
            "cf": config.cf.model_dump(),
            "version": VERSION,
            **protocol,
        }
        return fingerprint(parts | {"library": str(library), "features": config.name if name == "vbpr" else ""})

    def _measure(self, name: str) -> tuple[Ranks, dict[str, Any]]:
        task, (library, function) = self._task, SYSTEMS[name]
        start, cpu_start = time.perf_counter(), time.process_time()
        fitted = library.function(function)(task)
        seconds = {
            "train_seconds": round(time.perf_counter() - start, 1),
            "train_cpu_seconds": round(time.process_time() - cpu_start, 1),
        }
        system = Scores(known_only(fitted.score(self._cases), task.dataset))
        ranks = ranks_of(system, task.dataset, self._cases, task.config.evaluate.num_candidates, task.config.seed)
        facts = {"library": str(library), "validation_ndcg@10": fitted.validation_ndcg, "chosen": fitted.chosen}
        return ranks, facts | seconds

    def _read(self) -> None:
        manifest = read_manifest(self._folder)
        if manifest["inputs"]["dataset"] != self._task.dataset.manifest_hash:
            return
        self._fits = json.loads((self._folder / "metrics.json").read_text())["fits"]
        columns = pq.read_table(self._folder / "ranks.parquet")
        self._ranks = {
            name: {protocol: columns[f"{name} | {protocol}"].to_numpy() for protocol in ("full", "sampled")}
            for name in self._fits
        }

    def _write(self) -> None:
        task = self._task
        title = f"baselines, seed {task.seed}: {len(self._cases)} test events, {task.dataset.num_items} items"
        inputs = {"dataset": task.dataset.manifest_hash, "seed": task.seed}
        groups, facts = all_events(self._cases), {"fits": self._fits}
        write_evaluation(self._folder, title, task.dataset, self._cases, self._ranks, groups, facts, inputs)


def known_only(scores_CN: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Scores with -inf for items without training events, which libraries leave where chance put them."""
    return np.where(dataset.num_train_events > 0, scores_CN, -np.inf)


def closeness(rows: list[dict[str, Any]]) -> Check:
    """Ours against the library's SASRec: ratio of mean NDCG@10, its spread over seeds in the name."""
    ours, library = (_by_seed(rows, name) for name in ("ours", MATCHED))
    ratios = [ours[seed] / library[seed] for seed in ours]
    ratio = float(np.mean(list(ours.values())) / np.mean(list(library.values())))
    spread = f"{len(ratios)} seeds, {min(ratios):.3f} to {max(ratios):.3f}"
    return at_least(f"NDCG@10 of our SASRec over RecTools' ({spread})", ratio, CLOSE, "x")


def _by_seed(rows: list[dict[str, Any]], system: str) -> dict[int, float]:
    return {row["seed"]: row["full"]["ndcg@10"] for row in rows if row["system"] == system}


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, the standard deviation of NDCG@10, and seconds of one core to fit."""
    lines = [f"\n{'':16}{'full ranking':>26}{'against 100 unseen':>22}", HEADER]
    for system in dict.fromkeys(row["system"] for row in rows):
        chosen = [row for row in rows if row["system"] == system]
        lines.append(line(mean(chosen)))
    return "\n".join(lines)


HEADER = f"{'':16}{'Hit@10':>8}{'NDCG@10':>9}{'+-':>9}{'Hit@10':>11}{'NDCG@10':>11}{'CPU s':>10}  library"


def mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the same form for several seeds."""
    metrics = {
        protocol: {metric: float(np.mean([row[protocol][metric] for row in rows])) for metric in rows[0][protocol]}
        for protocol in ("full", "sampled")
    }
    spread = float(np.std([row["full"]["ndcg@10"] for row in rows]))
    seconds = float(np.mean([row["train_cpu_seconds"] for row in rows]))
    return rows[0] | metrics | {"spread": spread, "train_cpu_seconds": seconds}


def line(row: Mapping[str, Any]) -> str:
    full, sampled = row["full"], row["sampled"]
    return (
        f"{row['system']:16}{full['hit@10']:8.4f}{full['ndcg@10']:9.4f}{row.get('spread', 0):9.4f}"
        f"{sampled['hit@10']:11.4f}{sampled['ndcg@10']:11.4f}{row['train_cpu_seconds']:10.1f}  {row['library']}"
    )


if __name__ == "__main__":
    run_job(main)
