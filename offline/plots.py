"""Figures of training and evaluation, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot_training(metrics: dict[str, Any], path: Path) -> None:
    """Losses by step, and validation NDCG@10 by epoch of the projectors beside the control's."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, quality = figure.subplots(1, 2)
    names = [name for name in (metrics["steps"] or [{}])[0] if name == "risa" or name.startswith("reri_")]
    for name in names:
        losses.plot([r["step"] for r in metrics["steps"]], [r[name] for r in metrics["steps"]], label=name)
    losses.set(title="Training loss", xlabel="step", ylabel="nats")
    for label, records in (("projectors", metrics["heads"]), ("control", metrics["control"])):
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
