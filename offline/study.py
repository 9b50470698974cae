"""Train and evaluate a grid of configurations that differ in one thing, and report them side by side.

    python -m offline.study representations --config demo --seeds 3

Every row is an ordinary configuration under a name of its own, run by the ordinary jobs: an interrupted study goes on
where it stopped, and what is up to date is not made again. Writes store/evaluations/study-<name>-<config>/.

# C test events, S seeds
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from model.artifacts import building, write_json, write_manifest
from model.config import Config, load_config
from model.errors import InvalidInputError
from model.store import Store
from offline.ablation import open_dataset
from offline.bootstrap import difference
from offline.cf import make_cf
from offline.evaluate import evaluate
from offline.features import write_features
from offline.jobs import job_parser, run_job
from offline.metrics import gains
from offline.plots import plot_intervals
from offline.studies import STUDIES, Row
from offline.train import train

HEAD = ["| | alone | difference | joined | difference | paper | minutes |", "|---|---|---|---|---|---|---|"]
JOINED, ALONE = "ours", "language model alone"
CUTOFF = 10


def main() -> int:
    parser = job_parser(__doc__.splitlines()[0])
    parser.add_argument("study", choices=sorted(STUDIES), help="what differs between the rows (offline/studies.py)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of every row (default: 3)")
    arguments = parser.parse_args()
    folder = study(arguments.study, arguments.config, arguments.set, Store(arguments.store), arguments.seeds)
    print((folder / "report.md").read_text(), end="")
    return 0


@dataclass(frozen=True)
class Result:
    """One row over all seeds."""

    row: Row
    joined: np.ndarray
    """float64 [S, C]: what each event adds to NDCG@10"""
    alone: np.ndarray
    """The same by the language model's part alone."""
    users_C: np.ndarray
    is_new_C: np.ndarray
    """bool [C]: events whose item the row hides from training"""
    seconds: float
    """Wall time of what was not up to date, over all seeds."""
    dataset: str


def study(name: str, base: str, overrides: Sequence[str], store: Store, num_seeds: int) -> Path:
    """Run every row of a study; returns the folder of the report. Raises InvalidInputError for fewer than one seed."""
    if num_seeds < 1:
        raise InvalidInputError(f"--seeds is {num_seeds}: a study needs one at least", "seeds")
    results = []
    for row in STUDIES[name].rows:
        print(f"study {name}: {row.label}", flush=True)
        results.append(run_row(row, base, overrides, store, num_seeds))
    final = store.evaluations / f"study-{name}-{Path(base).stem}"
    with building(final) as folder:
        (folder / "report.md").write_text(report(name, base, results))
        write_json(folder / "study.json", [facts(result) for result in results])
        first = results[0]
        against = {r.row.label: difference(r.joined.mean(0), first.joined.mean(0), r.users_C) for r in results[1:]}
        if against:
            plot_intervals(against, f"NDCG@10 of ours, difference to: {first.row.label}", folder / "study.png")
        write_manifest(folder, {"kind": "study", "inputs": {"name": name, "base": base, "overrides": list(overrides)}})
    return final


def run_row(row: Row, base: str, overrides: Sequence[str], store: Store, num_seeds: int) -> Result:
    joined, alone, started = [], [], time.perf_counter()
    for seed in range(num_seeds):
        config = configuration(row, base, overrides, seed)
        write_features(config, store)
        make_cf(config, store)
        table = pq.read_table(evaluate(config, store, train(config, store)) / "ranks.parquet")
        joined.append(gains(table[f"{JOINED} | full"].to_numpy(), CUTOFF))
        has_parts = f"{ALONE} | full" in table.column_names
        alone.append(gains(table[f"{ALONE if has_parts else JOINED} | full"].to_numpy(), CUTOFF))
    seconds = time.perf_counter() - started
    dataset = open_dataset(config, store)
    cases = dataset.test_cases()
    is_new = np.zeros(len(cases), bool) if dataset.hidden is None else dataset.hidden[cases.targets]
    return Result(row, np.stack(joined), np.stack(alone), cases.users, is_new, seconds, config.dataset)


def configuration(row: Row, base: str, overrides: Sequence[str], seed: int) -> Config:
    """The base with the row's settings, named after both."""
    stem = load_config(base, list(overrides)).name
    label = re.sub(r"[^a-z0-9]+", "-", row.label.lower()).strip("-")
    name = f"{stem}-{label}"[:58].rstrip("-") + (f"-s{seed}" if seed else "")
    return load_config(base, [*overrides, *row.overrides, f"seed={seed}", f"name={name}"])


def facts(result: Result) -> dict[str, Any]:
    return {
        "label": result.row.label,
        "overrides": list(result.row.overrides),
        "paper": result.row.paper,
        "ndcg@10 joined": result.joined.mean(1).tolist(),
        "ndcg@10 language model alone": result.alone.mean(1).tolist(),
        "seconds": round(result.seconds, 1),
    }


def report(name: str, base: str, results: Sequence[Result]) -> str:
    """Markdown: a row a configuration, differences to the first, paired by test event and resampled by user."""
    first = results[0]
    num_seeds, num_events = first.joined.shape
    lines = [
        f"# {STUDIES[name].title}",
        "",
        f"Configuration {base}, dataset {first.dataset}: {num_events} test events, full ranking NDCG@10, mean over "
        f"{num_seeds} seeds (± standard deviation); differences to the first row with their 95 % interval over people. "
        "*Alone*: by h([REC]) as in the paper; *joined*: with pooled features and SASRec.",
        "",
        *HEAD,
        *(_line(result, first, np.ones(num_events, bool)) for result in results),
    ]
    is_new = np.any([result.is_new_C for result in results], axis=0)
    for label, members in (("items that some row hides", is_new), ("all other items", ~is_new)) if is_new.any() else ():
        lines += ["", f"Test events of {label} ({int(members.sum())}):", "", *HEAD]
        lines += [_line(result, first, members) for result in results]
    return "\n".join(lines) + "\n"


def _line(result: Result, first: Result, members_C: np.ndarray) -> str:
    cells = [result.row.label]
    for gain, reference in ((result.alone, first.alone), (result.joined, first.joined)):
        gain, reference = gain[:, members_C], reference[:, members_C]
        by_seed = gain.mean(1)
        spread = f" ± {by_seed.std(ddof=1):.4f}" if len(by_seed) > 1 else ""
        cells.append(f"{by_seed.mean():.4f}{spread}")
        users = result.users_C[members_C]
        apart = "" if result is first else str(difference(gain.mean(0), reference.mean(0), users))
        cells.append(apart)
    return f"| {' | '.join([*cells, result.row.paper, f'{result.seconds / 60:.1f}'])} |"


if __name__ == "__main__":
    run_job(main)
