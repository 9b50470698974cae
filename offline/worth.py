"""On this catalog, is the language model worth its cost, for whom, and by how much?

    python -m offline.worth --config demo --seeds 3

Trains the configuration once a seed (what is up to date is reused), and ranks the test events with and without the
language model's part, and with what could be mistaken for it: a second seed of the parts beside it, h of other people.
All weights are fitted on validation events. Differences are paired, resampled by user, and averaged over seeds.

# C test events, S seeds
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.artifacts import building, write_json, write_manifest
from model.checkpoint import Checkpoint, load_checkpoint
from model.config import PARTS, Config, Part
from model.errors import InvalidInputError
from model.joined import Blocks
from model.sasrec import load_sasrec
from model.store import Store
from offline.bootstrap import fifths
from offline.cf import make_cf
from offline.evaluate import PartBlocks, Test, all_parts, blocks_of, encode_users, load_test
from offline.features import write_features
from offline.fusion import Choices, validation_choices
from offline.jobs import configured, job_parser, run_job
from offline.metrics import gains
from offline.plots import plot_intervals
from offline.pooled import sample_users
from offline.rankings import Scores
from offline.train import train
from offline.worth_report import (
    ALONE,
    CONTROL,
    OURS,
    POOLED_TWICE,
    SASREC,
    SASREC_TWICE,
    SHUFFLED,
    WITHOUT,
    Results,
)

GENERATOR = 29
CUTOFF = 10


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
    results = compare(runs)
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
    language_model = encode_users(checkpoint, test, [*cases, *test.dataset.validation_cases(users).histories], store)
    seconds = (time.perf_counter() - started) / len(language_model)
    joined, most = all_parts(checkpoint, test), config.train.max_softmax_items
    blocks = blocks_of(joined, language_model[: len(cases)], test)
    choices = validation_choices(joined, language_model[len(cases) :], users, test.dataset, test.features, most)
    return Run(checkpoint, test, blocks, choices, seconds)


def shuffled(run: Run) -> Run:
    """Every event gets the h of another, of another person but by rare chance."""
    return replace(
        run,
        blocks=replace(run.blocks, users=_permuted(run.blocks.users)),
        choices=replace(run.choices, users=_permuted(run.choices.users)),
    )


def _permuted(users: Blocks) -> Blocks:
    order = np.random.default_rng(GENERATOR).permutation(len(next(iter(users.values()))))
    return {key: block[order] if key[0] == "language_model" else block for key, block in users.items()}


def second(run: Run, other: Run, part: Part) -> Run:
    """Another seed's part goes where the language model's was."""
    blocks, choices = run.blocks, run.choices
    return replace(
        run,
        blocks=PartBlocks(
            _with_branch(blocks.users, other.blocks.users, part), _with_branch(blocks.items, other.blocks.items, part)
        ),
        choices=replace(
            choices,
            users=_with_branch(choices.users, other.choices.users, part),
            items=_with_branch(choices.items, other.choices.items, part),
        ),
    )


def _with_branch(blocks: Blocks, others: Blocks, part: Part) -> Blocks:
    own = {key: block for key, block in blocks.items() if key[0] != "language_model"}
    taken: Blocks = {("language_model", signal): block for (name, signal), block in others.items() if name == part}
    return {**taken, **own}


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


def compare(runs: Sequence[Run]) -> Results:
    """Rank by every system; a run's placebos come from the next run."""
    others = [*runs[1:], runs[0]]
    found = [ranks_by_system(run, other) for run, other in zip(runs, others, strict=True)]
    gain = {system: np.stack([gains(own[system], CUTOFF) for own in found]) for system in found[0]}
    seconds = float(np.mean([run.seconds_per_history for run in runs]))
    test = runs[0].test
    return Results(gain, test.cases.users, groups_of(test), 1000 * seconds)


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
