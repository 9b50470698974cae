"""What `offline.worth` found, in numbers and in plain words. Knows gains of systems, not how they came about.

# C test events, S seeds
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.config import Config
from offline.bootstrap import Interval, difference

OURS, WITHOUT = "ours", "ours without language model"
SASREC, SASREC_TWICE = "SASRec", "SASRec, two seeds"
CONTROL, ALONE = "control (pooled features)", "language model alone"
SHUFFLED, POOLED_TWICE = "h of other people", "a second control in h's place"
PLACEBOS = (SHUFFLED, POOLED_TWICE)


@dataclass(frozen=True)
class Results:
    """Ranks of every system, averaged as gains over the seeds, and what they cost."""

    gain: Mapping[str, np.ndarray]
    """By system: float64 [S, C], each event's share of NDCG@10 (offline/metrics.py)."""
    users_C: np.ndarray
    groups: Mapping[str, np.ndarray]
    """bool [C] by group of events."""
    milliseconds: float
    """A history through the language model, many at a time."""

    def ndcg(self, system: str, members_C: np.ndarray | None = None) -> float:
        """Mean over seeds (and over the members of a group)."""
        gain_C = self.gain[system].mean(0)
        return float(gain_C.mean() if members_C is None else gain_C[members_C].mean())

    def spread(self, system: str) -> float:
        """Standard deviation of NDCG@10 over the seeds."""
        return float(self.gain[system].mean(1).std(ddof=1))

    def difference(self, system: str, other: str, group: str = "all") -> Interval:
        members_C = self.groups[group]
        gain_C, other_C = (self.gain[name].mean(0)[members_C] for name in (system, other))
        return difference(gain_C, other_C, self.users_C[members_C])

    def differences(self) -> dict[str, Interval]:
        """What is told apart, by a line that names both."""
        pairs = [(OURS, WITHOUT), *((placebo, WITHOUT) for placebo in PLACEBOS), (OURS, SASREC), (OURS, SASREC_TWICE)]
        pairs += [*((OURS, placebo) for placebo in PLACEBOS), (OURS, CONTROL), (WITHOUT, SASREC), (OURS, ALONE)]
        return {f"{system} - {other}": self.difference(system, other) for system, other in pairs}

    def facts(self) -> dict[str, Any]:
        """For worth.json."""
        return {
            "ndcg@10": {name: {"mean": self.ndcg(name), "sd": self.spread(name)} for name in self.gain},
            "by seed": {name: gain.mean(1).tolist() for name, gain in self.gain.items()},
            "differences": {name: vars(interval) for name, interval in self.differences().items()},
            "by group": {
                group: {
                    "events": int(members.sum()),
                    **{name: self.ndcg(name, members) for name in self.gain},
                    f"{OURS} - {WITHOUT}": vars(self.difference(OURS, WITHOUT, group)),
                    f"{OURS} - {SASREC}": vars(self.difference(OURS, SASREC, group)),
                }
                for group, members in self.groups.items()
            },
            "milliseconds a history": self.milliseconds,
        }

    def report(self, config: Config) -> str:
        """Markdown."""
        num_seeds = len(self.gain[OURS])
        lines = [f"# Is the language model worth it? {config.name}", "", self.verdict(), ""]
        lines += [
            f"{len(self.users_C)} test events of {len(np.unique(self.users_C))} people, full ranking, {num_seeds} "
            f"seeds. Language model: {config.language_model.source}, {config.language_model.num_layers or 'all'} "
            "layers.",
            "",
            "| system | NDCG@10 | over seeds |",
            "|---|---|---|",
            *(f"| {name} | {self.ndcg(name):.4f} | ± {self.spread(name):.4f} |" for name in self.gain),
            "",
            "| difference | NDCG@10, 95 % over people |",
            "|---|---|",
            *(f"| {name} | {interval} |" for name, interval in self.differences().items()),
            "",
            f"| group | events | SASRec | without | ours | {OURS} - {WITHOUT} | {OURS} - SASRec |",
            "|---|---|---|---|---|---|---|",
            *(self._group_line(group) for group in self.groups),
        ]
        return "\n".join(lines) + "\n"

    def _group_line(self, group: str) -> str:
        members = self.groups[group]
        numbers = " | ".join(f"{self.ndcg(name, members):.4f}" for name in (SASREC, WITHOUT, OURS))
        against = " | ".join(str(self.difference(OURS, other, group)) for other in (WITHOUT, SASREC))
        return f"| {group} | {int(members.sum())} | {numbers} | {against} |"

    def verdict(self) -> str:
        """In plain words."""
        added = self.difference(OURS, WITHOUT)
        share = added.mean / max(self.ndcg(WITHOUT), 1e-9)
        cost = f"It costs {self.milliseconds:.1f} ms of this machine a history (many at a time)."
        chance = max(self.difference(placebo, WITHOUT).mean for placebo in PLACEBOS)
        if not added.is_above_zero:
            return (
                f"**No gain was measured.** With the language model NDCG@10 changes by {added} ({share:+.1%}): the "
                f"interval holds zero. {cost} Without it the same vectors are served from features and SASRec alone."
            )
        if not all(self.difference(OURS, placebo).is_above_zero for placebo in PLACEBOS):
            return (
                f"**A gain, but not surely more than a placebo's.** The language model adds {added} ({share:+.1%}); in "
                f"its place another seed of the control, or h of other people, adds up to {chance:+.4f}. {cost}"
            )
        best = max(self.groups, key=lambda group: self.difference(OURS, WITHOUT, group).mean)
        return (
            f"**It helps.** The language model adds {added} NDCG@10 ({share:+.1%}), placebos {chance:+.4f} at most; "
            f"most for {best}. {cost}"
        )
