"""What a system's ranks of the test events come to: metrics by group, tables, and files to compare with others.

A system is anything with ranks; `Scores` makes them from its scores. Knows no model and no search.

# C test events, N items
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.artifacts import building, write_json, write_manifest
from offline.dataset import Cases, Dataset
from offline.metrics import rank_of_target, sample_candidates, summarise
from offline.plots import plot_evaluation

Ranks = Mapping[str, np.ndarray]
"""int [C] by protocol: `full`, the catalog without the history; `sampled`, against random unseen items."""


class System(Protocol):
    """What can be ranked by."""

    def full_ranks(self, targets: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """int [C]: rank of every target among all items that its history does not have."""

    def scores(self, rows_CM: np.ndarray) -> np.ndarray:
        """float [C, M]: scores of M items for every test event."""


@dataclass(frozen=True)
class Scores:
    """A system that scores every item for every test event."""

    scores_CN: np.ndarray

    def full_ranks(self, targets: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        return rank_of_target(self.scores_CN, targets, histories)

    def scores(self, rows_CM: np.ndarray) -> np.ndarray:
        return np.take_along_axis(self.scores_CN, rows_CM, axis=1)


def ranks_of(system: System, dataset: Dataset, cases: Cases, num_candidates: int, seed: int) -> Ranks:
    """Ranks by both protocols; every system meets the same candidates."""
    candidates = sample_candidates(dataset, num_candidates, seed)
    columns = np.column_stack([cases.targets, candidates[cases.users]])
    first = np.zeros(len(columns), int)
    return {
        "full": system.full_ranks(cases.targets, cases.histories),
        "sampled": rank_of_target(system.scores(columns), first, [np.empty(0, int)] * len(columns)),
    }


def all_events(cases: Cases) -> dict[str, np.ndarray]:
    """The one group of a system that knows no others."""
    return {"all": np.ones(len(cases), bool)}


def write_evaluation(
    folder: Path,
    title: str,
    dataset: Dataset,
    cases: Cases,
    ranks: Mapping[str, Ranks],
    groups: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    inputs: Mapping[str, Any],
) -> None:
    """Write metrics.json, ranks.parquet, table.txt and metrics.png. `facts` join metrics.json, such as seconds."""
    rows = metric_rows(ranks, groups)
    with building(folder) as new:
        (new / "table.txt").write_text(format_table(title, rows))
        write_json(new / "metrics.json", {"rows": rows, **facts})
        write_ranks(new / "ranks.parquet", dataset, cases, ranks)
        plot_evaluation(rows, title, new / "metrics.png")
        write_manifest(new, {"kind": "evaluation", "inputs": dict(inputs)})


def metric_rows(ranks: Mapping[str, Ranks], groups: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row for every system, protocol and group that has events."""
    return [
        {"system": system, "protocol": protocol, "group": group, "events": int(members.sum())}
        | summarise(by_protocol[protocol][members])
        for system, by_protocol in ranks.items()
        for protocol in by_protocol
        for group, members in groups.items()
        if members.any()
    ]


def write_ranks(path: Path, dataset: Dataset, cases: Cases, ranks: Mapping[str, Ranks]) -> None:
    """Ranks by test event, for paired comparisons."""
    columns = {f"{system} | {protocol}": r for system, by in ranks.items() for protocol, r in by.items()}
    pq.write_table(pa.table({"user_id": [dataset.users[user] for user in cases.users], **columns}), path)


def format_table(title: str, rows: list[dict[str, Any]]) -> str:
    """The tables as text: one block a protocol and group."""
    lines = [title]
    blocks = dict.fromkeys((row["protocol"], row["group"], row["events"]) for row in rows)
    for protocol, group, events in blocks:
        kind = "full ranking" if protocol == "full" else "against random unseen items"
        lines += [
            "",
            f"{group} ({events} events), {kind}",
            f"{'':30}{'Hit@5':>8}{'Hit@10':>8}{'NDCG@5':>8}{'NDCG@10':>8}",
        ]
        for row in rows:
            if (row["protocol"], row["group"]) == (protocol, group):
                numbers = "".join(f"{row[name]:8.4f}" for name in ("hit@5", "hit@10", "ndcg@5", "ndcg@10"))
                lines.append(f"{row['system']:30}{numbers}")
    return "\n".join(lines) + "\n"


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of `metric_rows` as `evaluate` wrote them."""
    rows: list[dict[str, Any]] = json.loads((folder / "metrics.json").read_text())["rows"]
    return rows


def short_table(folder: Path) -> str:
    """What a newcomer wants to see of an evaluation: full ranking, whole systems, by group."""
    rows = read_rows(folder)
    chosen = [row for row in rows if row["protocol"] == "full" and " alone" not in row["system"]]
    groups = {row["group"]: row["events"] for row in chosen}
    lines = ["Full ranking of the whole catalog, test events:", "", " " * 30 + "".join(f"{g:>28}" for g in groups)]
    lines.append(" " * 30 + "".join(f"{f'({n} events)':>28}" for n in groups.values()))
    lines.append(" " * 30 + f"{'Hit@10':>19}{'NDCG@10':>9}" * len(groups))
    for system in dict.fromkeys(row["system"] for row in chosen):
        cells = {row["group"]: row for row in chosen if row["system"] == system}
        lines.append(f"{system:30}" + "".join(f"{cells[g]['hit@10']:19.4f}{cells[g]['ndcg@10']:9.4f}" for g in groups))
    return "\n".join(lines) + "\n"
