"""The rows of benchmarks/serving.py as a table and as a figure. Rows of several rounds show their medians."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

COLOURS = {"ours": "#c2410c", "padded": "#0369a1", "naive": "#475569", "naive-without-head": "#94a3b8"}
Row = dict[str, Any]


def table(rows: Sequence[Row], bound_ms: float) -> str:
    """Saturation, single caller and stages of every system."""
    lines = [
        f"{'prompts':15}{'history':14}{'system':20}{'requests/s':>11}{'rounds':>16}{'tokens/s':>10}{'batch':>7}{'peak':>6}"
        f"{'cores':>6}{'/ core s':>9}{'alone p50':>11}{'/ bare':>8}{f'rate, p99 < {bound_ms:g} ms':>22}"
    ]
    for prompts, lengths, system in _kinds(rows):
        same = [row for row in rows if (row["prompts"], row["lengths"], row["system"]) == (prompts, lengths, system)]
        rounds = " ".join(f"{row['requests/s']:.2f}" for row in same)
        lines.append(
            f"{prompts:15}{lengths:14}{system:20}{_middle(same, 'requests/s'):11.2f}{rounds:>16}"
            f"{_middle(same, 'tokens/s'):10.0f}{_middle(same, 'requests_per_batch'):7.1f}"
            f"{_middle(same, 'share_of_peak'):6.2f}{_middle(same, 'cores'):6.2f}"
            f"{_middle(same, 'requests/core_s'):9.2f}"
            f"{_alone(same)}{_bounded(same, bound_ms)}"
        )
    lines += ["", "milliseconds a request, saturated"]
    lines += [
        f"{row['prompts']:15}{row['lengths']:14}{row['system']:20}{stages_text(row)}"
        for row in rows
        if not row["round"]
    ]
    return "\n".join(lines)


def best_rate(row: Row, bound_ms: float) -> float:
    """The highest offered rate of the open loop whose p99 stays below the bound with every request answered; else 0."""
    kept = [at["offered/s"] for at in row["open_loop"] if at["p99_ms"] < bound_ms and not at["failed"]]
    return max(kept, default=0.0)


def plot(rows: Sequence[Row], bound_ms: float, path: Path) -> None:
    """Latency against offered load, median and p99, for every system whose open loop was measured."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if "open_loop" not in row:
            continue
        offered = [at["offered/s"] for at in row["open_loop"]]
        colour = COLOURS[row["system"]]
        axes.plot(offered, [at["p99_ms"] for at in row["open_loop"]], "o-", color=colour, label=row["system"])
        axes.plot(offered, [at["p50_ms"] for at in row["open_loop"]], "o--", color=colour, markersize=3)
        axes.axvline(row["requests/s"], color=colour, linewidth=0.8, linestyle=":")
    axes.axhline(bound_ms, color="black", linewidth=0.8)
    axes.set(
        title="Latency under Poisson load (solid p99, dashed median, dotted: saturation)",
        xlabel="offered requests/s",
        ylabel="milliseconds",
        yscale="log",
    )
    axes.legend()
    figure.savefig(path, dpi=110)


def stages_text(row: Row) -> str:
    """Where a request's time goes; `other` is device time outside the stages that the system counts."""
    device_ms = row["batch_ms"] / row["requests_per_batch"]
    stages = row["stage_ms_per_request"]
    parts = {"queue": row["queue_ms"], "device": device_ms, **stages}
    if stages:
        parts["other"] = device_ms - sum(stages.values())
    return "  ".join(f"{name} {ms:.2f}" for name, ms in parts.items())


def _kinds(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys((row["prompts"], row["lengths"], row["system"]) for row in rows))


def _middle(rows: Sequence[Row], name: str) -> float:
    return float(median(row[name] for row in rows))


def _alone(rows: Sequence[Row]) -> str:
    if "alone_p50_ms" not in rows[0]:
        return " " * 19
    ratio = median(row["alone_p50_ms"] / row["bare_p50_ms"] for row in rows)
    return f"{_middle(rows, 'alone_p50_ms'):11.1f}{ratio:8.2f}"


def _bounded(rows: Sequence[Row], bound_ms: float) -> str:
    measured = [best_rate(row, bound_ms) for row in rows if "open_loop" in row]
    return f"{measured[0]:22.2f}" if measured else ""
