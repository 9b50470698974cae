"""On this catalog, is the language model worth its cost, for whom, and by how much?

    python -m offline.worth --config demo --seeds 3

Trains the configuration once a seed (what is up to date is reused), and ranks the test events with and without the
language model's part, and with what could be mistaken for it: a second seed of the parts beside it, h of other people.
All weights are fitted on validation events. Differences are paired, resampled by user, and averaged over seeds.

# C test events, S seeds
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.artifacts import building, write_json, write_manifest
from model.checkpoint import Checkpoint, load_checkpoint
from model.config import PARTS, Config, Part
from model.errors import InvalidInputError
from model.joined import Blocks
from model.sasrec import load_sasrec
from model.store import Store
from offline.bootstrap import Interval, difference, fifths, gains
from offline.cf import make_cf
from offline.evaluate import PartBlocks, Test, all_parts, blocks_of, encode_users, load_test
from offline.features import write_features
from offline.fusion import Choices, validation_choices
from offline.jobs import configured, job_parser, run_job
from offline.plots import plot_intervals
from offline.pooled import sample_users, seen_by
from offline.rankings import Scores
from offline.train import train

OURS, WITHOUT = "ours", "ours without language model"
SASREC, SASREC_TWICE = "SASRec", "SASRec, two seeds"
CONTROL, ALONE = "control (pooled features)", "language model alone"
SHUFFLED, POOLED_TWICE = "h of other people", "a second control in h's place"
PLACEBOS = (SHUFFLED, POOLED_TWICE)
GENERATOR = 29


def main() -> int:
    parser = job_parser(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="trainings to average over (default: 3)")
    arguments = parser.parse_args()
    config, store = configured(arguments)
    folder = worth(config, store, arguments.seeds)
    print((folder / "report.md").read_text(), end="")
    return 0


def worth(config: Config, store: Store, num_seeds: int) -> Path:
    """Write report.md, worth.json and worth.png to store/evaluations/worth-<config>/; returns the folder.

    All parts take part, whichever of them the configuration serves. Raises InvalidInputError for fewer than two seeds:
    each seed's placebo comes from another.
    """
    if num_seeds < 2:
        raise InvalidInputError(f"--seeds is {num_seeds}: two are needed, as one is the other's placebo", "seeds")
    seeds = range(config.seed, config.seed + num_seeds)
    runs = [open_run(seeded(config, seed), store, validation_seed=config.seed) for seed in seeds]
    results = Results.of(runs)
    with building(store.evaluations / f"worth-{config.name}") as folder:
        (folder / "report.md").write_text(results.report(config))
        write_json(folder / "worth.json", results.facts())
        plot_intervals(results.differences(), "difference of NDCG@10, full ranking", folder / "worth.png")
        write_manifest(folder, {"kind": "worth", "inputs": {"checkpoints": [run.checkpoint.id for run in runs]}})
    return store.evaluations / f"worth-{config.name}"


def seeded(config: Config, seed: int) -> Config:
    """The same configuration with another seed, under a name of its own: jobs keep what they make by name."""
    return config if seed == config.seed else config.model_copy(update={"seed": seed, "name": f"{config.name}-s{seed}"})


@dataclass(frozen=True)
class Run:
    """One seed: what its parts make of the validation and the test events."""

    checkpoint: Checkpoint
    test: Test
    blocks: PartBlocks
    choices: Choices
    seconds_per_history: float
    """Of the language model, many histories at a time, its loading included."""


def open_run(config: Config, store: Store, validation_seed: int) -> Run:
    """Train where needed, and compute the blocks. `validation_seed`: of the sample of people that weights are fitted
    on, which must be the same for all runs."""
    write_features(config, store)
    make_cf(config, store)
    checkpoint = load_checkpoint(train(config, store))
    test = load_test(checkpoint, store)
    users = sample_users(test.dataset, config.train.max_validation_users, validation_seed)
    cases = test.cases.histories
    started = time.perf_counter()
    language_model = encode_users(checkpoint, test, [*cases, *seen_by(test.dataset, users)], store)
    seconds = (time.perf_counter() - started) / len(language_model)
    joined, most = all_parts(checkpoint, test), config.train.max_softmax_items
    blocks = blocks_of(joined, language_model[: len(cases)], test)
    choices = validation_choices(joined, language_model[len(cases) :], users, test.dataset, test.features, most)
    return Run(checkpoint, test, blocks, choices, seconds)


def with_branch(run: Run, change: Callable[[Blocks, str], Blocks]) -> Run:
    """The run with other blocks in the place of the language model's; `change` is told whose blocks it changes."""
    blocks = PartBlocks(change(run.blocks.users, "test users"), change(run.blocks.items, "test items"))
    users, items = change(run.choices.users, "validation users"), change(run.choices.items, "validation items")
    return replace(run, blocks=blocks, choices=replace(run.choices, users=users, items=items))


def shuffled(run: Run) -> Run:
    """Every event gets the h of another, of another person but by rare chance."""

    def change(blocks: Blocks, whose: str) -> Blocks:
        if whose.endswith("items"):
            return blocks
        order = np.random.default_rng(GENERATOR).permutation(len(next(iter(blocks.values()))))
        return {key: block[order] if key[0] == "language_model" else block for key, block in blocks.items()}

    return with_branch(run, change)


def second(run: Run, other: Run, part: Part) -> Run:
    """Another seed's part goes where the language model's was."""
    sources = {
        "test users": other.blocks.users,
        "test items": other.blocks.items,
        "validation users": other.choices.users,
        "validation items": other.choices.items,
    }

    def change(blocks: Blocks, whose: str) -> Blocks:
        own = {key: block for key, block in blocks.items() if key[0] != "language_model"}
        taken: Blocks = {("language_model", s): block for (name, s), block in sources[whose].items() if name == part}
        return {**taken, **own}

    return with_branch(run, change)


def ranks(run: Run, parts: Sequence[Part]) -> np.ndarray:
    """Full ranks [C] by these parts, weighted on validation."""
    return run.blocks.vectors(run.choices.weights(parts)).full_ranks(run.test.cases.targets, run.test.cases.histories)


def sasrec_ranks(run: Run) -> np.ndarray:
    """Full ranks [C] by SASRec itself, which never returns an item that it does not know."""
    cases = run.test.cases
    scores = Scores(load_sasrec(run.checkpoint.folder / "sasrec").score(cases.histories))
    return scores.full_ranks(cases.targets, cases.histories)


def ranks_by_system(run: Run, other: Run) -> dict[str, np.ndarray]:
    """`other`: a run of another seed, whose parts stand in as placebos."""
    return {
        SASREC: sasrec_ranks(run),
        SASREC_TWICE: ranks(second(run, other, "sasrec"), ("language_model", "sasrec")),
        CONTROL: ranks(run, ("pooled",)),
        ALONE: ranks(run, ("language_model",)),
        WITHOUT: ranks(run, ("pooled", "sasrec")),
        SHUFFLED: ranks(shuffled(run), PARTS),
        POOLED_TWICE: ranks(second(run, other, "pooled"), PARTS),
        OURS: ranks(run, PARTS),
    }


@dataclass(frozen=True)
class Results:
    """Ranks of every system, averaged as gains over the seeds, and what they cost."""

    gain: Mapping[str, np.ndarray]
    """By system: float64 [S, C], each event's share of NDCG@10 (offline/bootstrap.py)."""
    users_C: np.ndarray
    groups: Mapping[str, np.ndarray]
    """bool [C] by group of events."""
    milliseconds: float
    """A history through the language model, many at a time."""

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Results:
        """Every run's placebo comes from the next run."""
        others = [*runs[1:], runs[0]]
        found = [ranks_by_system(run, other) for run, other in zip(runs, others, strict=True)]
        gain = {system: np.stack([gains(own[system]) for own in found]) for system in found[0]}
        test = runs[0].test
        return cls(
            gain, test.cases.users, groups_of(test), 1000 * float(np.mean([run.seconds_per_history for run in runs]))
        )

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


def groups_of(test: Test) -> dict[str, np.ndarray]:
    """All events; fifths by the target's popularity and by the length of the history; items too young for CF."""
    events = test.dataset.num_train_events
    lengths = np.array([len(history) for history in test.cases.histories])
    groups = {"all": np.ones(len(test.cases), bool)}
    names = ("first", "second", "third", "fourth", "last")
    for label, values in (("popularity of the item", events[test.cases.targets]), ("length of the history", lengths)):
        for name, members in zip(names, fifths(values), strict=True):
            if members.any():
                groups[f"{label}, {name} fifth ({values[members].min()} to {values[members].max()})"] = members
    young = ~test.has_cf[test.cases.targets]
    return groups | ({"items too young for CF": young} if young.any() else {})


if __name__ == "__main__":
    run_job(main)
