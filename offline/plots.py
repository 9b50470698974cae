"""Figures of training and evaluation, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from offline.bootstrap import Interval


def plot_training(metrics: dict[str, Any], path: Path) -> None:
    """Losses by step, and validation NDCG@10 by epoch of the projectors beside the pooled part's."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, quality = figure.subplots(1, 2)
    names = [name for name in (metrics["steps"] or [{}])[0] if name == "risa" or name.startswith("reri_")]
    for name in names:
        losses.plot([r["step"] for r in metrics["steps"]], [r[name] for r in metrics["steps"]], label=name)
    losses.set(title="Training loss", xlabel="step", ylabel="nats")
    for label, records in (("projectors", metrics["heads"]), ("pooled part", metrics["pooled"])):
        if records:
            quality.plot([r["epoch"] for r in records], [r["validation_ndcg@10"] for r in records], label=label)
    steps = [r for r in metrics["steps"] if "validation_ndcg@10" in r]
    if steps:
        x = [r["step"] for r in steps]
        quality.plot(x, [r["validation_ndcg@10"] for r in steps], "o", label="one-pass training (by step)")
    quality.set(title="Validation, full ranking", xlabel="epoch", ylabel="NDCG@10")
    for axes in (losses, quality):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def plot_evaluation(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """NDCG@10 of every system under full ranking, one panel a group of users."""
    full = [row for row in rows if row["protocol"] == "full"]
    groups = list(dict.fromkeys(row["group"] for row in full))
    figure = Figure(figsize=(4.2 * len(groups), 3.6), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        members = [row for row in full if row["group"] == group][::-1]
        colours = ["#c2410c" if row["system"] == "ours" else "#94a3b8" for row in members]
        bars = axes.barh([row["system"] for row in members], [row["ndcg@10"] for row in members], color=colours)
        axes.bar_label(bars, fmt="%.3f", fontsize=8, padding=2)
        axes.set(title=f"{group} ({members[0]['events']} test events)", xlabel="NDCG@10, full ranking")
        axes.margins(x=0.15)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)


def plot_intervals(intervals: Mapping[str, Interval], label: str, path: Path) -> None:
    """A dot and its 95 % interval a line, the first on top."""
    figure = Figure(figsize=(8, 0.6 + 0.4 * len(intervals)), layout="constrained")
    axes = figure.subplots()
    for at, (name, interval) in enumerate(list(intervals.items())[::-1]):
        axes.plot([interval.low, interval.high], [at, at], color="#94a3b8", linewidth=3)
        axes.plot(interval.mean, at, "o", color="#c2410c")
        axes.text(0, at + 0.2, name, fontsize=8, transform=axes.get_yaxis_transform())
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(yticks=[], xlabel=label)
    figure.savefig(path, dpi=110)
