"""Retrieval beside generation: accuracy, and seconds for 100 people, of one language model used in four ways.

    python -m benchmarks.generative --config movielens [--systems NAME ...] [--users N] [--quick] [--json PATH]

`titles` writes the next item's title word by word, `semantic-ids` its four codes, `item-tokens` its one token; a trie
keeps them to items that exist and that the person has not chosen, and beam search to the likeliest (see
generative_words.py, generative_beams.py). They are trained here, in minutes: the prompt's beginning, words of their
own, and a low-rank change of the language model, which their published forms train as well (`--lora-rank 0`: not).
`retrieval` is what the service answers with: the newest checkpoint of the configuration in the catalog that is
published. Without it (`python -m offline.train`, then `python -m offline.reindex`) leave it out of `--systems`.

All meet the same test cases. An item that a system does not list has the rank below its list, and ties count as lost.
Seconds are those of the processor as well as of the clock: other programs on the machine slow only the clock.

# C test cases, N items
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.generative_beams import generate
from benchmarks.generative_reader import Reader, train_reader
from benchmarks.generative_trie import build_trie
from benchmarks.generative_words import SYSTEMS, make_words
from benchmarks.report import Check, Report, at_least, benchmark_parser, finish
from model.bounded_cache import CacheSizes
from model.checkpoint import latest_checkpoint
from model.config import Config, TrainConfig, load_config
from model.errors import ArtifactError
from model.language_model import choose_device, load_language_model
from model.prompt import PromptBuilder
from model.ranking import Query
from model.recommender import Recommender
from model.store import Store
from offline.aligned import load_item_features
from offline.dataset import Cases, Dataset, load_dataset
from offline.jobs import run_job
from offline.metrics import popularity_scores, rank_of_target, summarise

RETRIEVAL = "retrieval"
NAMES = (RETRIEVAL, *SYSTEMS)
LIST_LENGTH = 10
BATCH_SIZE = 16
"""Histories at once in the second timing; in the first, one."""
TIMED_ALONE = 25
"""Cases timed one at a time, the first of the sample."""
RECIPES: Mapping[str, TrainConfig] = {
    "titles": TrainConfig(steps=60, batch_size=8, learning_rate=1e-2, warmup_steps=5),
    "semantic-ids": TrainConfig(steps=150, batch_size=16, learning_rate=1e-2, warmup_steps=5),
    "item-tokens": TrainConfig(steps=100, batch_size=32, learning_rate=3e-3, warmup_steps=5),
}
"""One to two minutes each on one thread, by which none has stopped learning; the rates come from a few short trials."""
MIN_COSTS = {"titles": 2.0}
"""Least processor seconds one at a time, as a multiple of retrieval's: many words cost many steps."""
QUICK_STEPS = 3
QUICK_USERS = 32
Scorer = Callable[[list[np.ndarray]], np.ndarray]
"""Histories in, float32 [number of them, N] out: -inf for all that is not listed."""


@dataclass(frozen=True)
class System:
    """One way to answer, ready to be asked."""

    name: str
    score: Scorer
    facts: dict[str, Any]
    """What it was made with."""


def main() -> int:
    parser = benchmark_parser(__doc__.splitlines()[0])
    parser.add_argument("--config", default="movielens", help="preset name or .toml file (default: movielens)")
    parser.add_argument("--systems", nargs="+", choices=NAMES, default=list(NAMES), help="default: all")
    parser.add_argument("--users", type=int, default=200, help="test cases, drawn from all (default: 200)")
    parser.add_argument("--beams", type=int, default=20, help="beams of a person (default: 20)")
    parser.add_argument("--lora-rank", type=int, default=8, help="0: the language model stays frozen")
    arguments = parser.parse_args()
    config, store = load_config(arguments.config), Store(arguments.store)
    rivals = Rivals(config, store, load_dataset(store.dataset(config.dataset)), arguments.beams, arguments.lora_rank)
    num_cases = min(arguments.users, QUICK_USERS) if arguments.quick else arguments.users
    report = Report("generative", config.seed, settings(rivals, num_cases))
    report.rows = list(measured(rivals, arguments.systems, num_cases, quick=arguments.quick))
    report.checks = checks(report.rows)
    return finish(report, arguments.json)


def settings(rivals: Rivals, num_cases: int) -> dict[str, Any]:
    return {
        "config": rivals.config.model_dump(mode="json"),
        "cases": num_cases,
        "beams": rivals.num_beams,
        "lora_rank": rivals.lora_rank,
        "threads": torch.get_num_threads(),
        "batch_size": BATCH_SIZE,
    }


def measured(rivals: Rivals, names: Sequence[str], num_cases: int, *, quick: bool) -> Iterator[dict[str, Any]]:
    """A row for popularity and for each of `names`, printed as it comes."""
    cases = sample_cases(rivals.dataset, num_cases, rivals.config.seed)
    yield shown(measure(popularity(rivals.dataset), cases))
    if RETRIEVAL in names:  # before any training, so that its lack shows at once
        yield shown(measure(load_retrieval(rivals.config, rivals.store, rivals.dataset), cases))
    for name in (name for name in names if name != RETRIEVAL):
        recipe = RECIPES[name].model_copy(update={"steps": QUICK_STEPS}) if quick else RECIPES[name]
        yield shown(measure(rivals.train(name, recipe), cases))


def sample_cases(dataset: Dataset, num: int, seed: int) -> Cases:
    """A fixed sample of the test cases, in their order."""
    cases = dataset.test_cases()
    chosen = np.sort(np.random.default_rng([seed, 7]).permutation(len(cases))[:num])
    return Cases(cases.users[chosen], [cases.histories[at] for at in chosen], cases.targets[chosen])


def popularity(dataset: Dataset) -> System:
    scores_N = popularity_scores(dataset)
    return System("popularity", lambda histories: np.tile(scores_N, (len(histories), 1)), {})


def load_retrieval(config: Config, store: Store, dataset: Dataset) -> System:
    """What is served, remembering nothing between questions. Raises an error that says which job is to be run first."""
    checkpoint = latest_checkpoint(store, config.name)
    recommender = Recommender.load(store, caches=CacheSizes(user_vector_bytes=0, prefix_bytes=0))
    if recommender.checkpoint_id != checkpoint.name:
        raise ArtifactError(
            f"the catalog that is published was made with checkpoint {recommender.checkpoint_id}, not with "
            f"{checkpoint.name}: run `python -m offline.reindex --config {config.name}`"
        )
    row_of = {item_id: row for row, item_id in enumerate(dataset.item_ids)}

    def score(histories: list[np.ndarray]) -> np.ndarray:
        queries = [Query(tuple(dataset.item_ids[row] for row in rows), k=2 * LIST_LENGTH) for rows in histories]
        scores = np.full((len(histories), dataset.num_items), -np.inf, np.float32)
        for at, ranking in enumerate(recommender.rank(queries)):
            for item in ranking.items:
                scores[at, row_of[item.item_id]] = item.score
        return scores

    return System(RETRIEVAL, score, {"checkpoint": checkpoint.name})


@dataclass(frozen=True)
class Rivals:
    """What the generative systems have in common."""

    config: Config
    store: Store
    dataset: Dataset
    num_beams: int
    lora_rank: int

    def train(self, name: str, recipe: TrainConfig) -> System:
        """Spell the catalog, and teach a language model, loaded for this one alone, to write it."""
        config, dataset = self.config, self.dataset
        language_model = load_language_model(config.language_model, self.store.models, choose_device())
        features, _ = load_item_features(config, self.store, dataset)
        titles = dataset.items["title"].to_pylist()
        torch.manual_seed(config.seed)
        words = make_words(name, language_model, titles, config.prompt.max_title_tokens, features, config.seed)
        trie = build_trie(words.spellings)
        prefix = PromptBuilder(language_model.tokenizer, config.prompt).prefix
        reader = Reader(language_model, words, prefix, config.prompt.max_history, self.lora_rank)
        training = train_reader(reader, dataset, recipe, config.seed)
        facts = {
            "training": asdict(training),
            "recipe": recipe.model_dump(include={"steps", "batch_size", "learning_rate", "warmup_steps"}),
            "learned_parameters": sum(parameter.numel() for parameter in reader.learned()),
            "words": len(words.embedding_VD),
            "longest_item": max(len(spelling) for spelling in words.spellings),
            "items_written_like_another": dataset.num_items - len(np.unique(trie.leaf_of_item)),
        }
        return System(name, lambda histories: generate(reader, trie, histories, histories, self.num_beams), facts)


def measure(system: System, cases: Cases) -> dict[str, Any]:
    """Accuracy on all cases, answered in batches; seconds for 100 people in batches and one at a time."""
    alone = min(TIMED_ALONE, len(cases))
    system.score(cases.histories[:1])  # warm
    _, one_at_a_time = timed(system, cases.histories[:alone], batch_size=1)
    scores_CN, batched = timed(system, cases.histories, BATCH_SIZE)
    ranks = np.minimum(rank_of_target(scores_CN, cases.targets, cases.histories), LIST_LENGTH + 1)
    return {
        "system": system.name,
        "cases": len(cases),
        **summarise(ranks),
        "one at a time": one_at_a_time,
        f"{BATCH_SIZE} at once": batched,
        "shortest_list": int(np.isfinite(scores_CN).sum(axis=1).min()),
        **system.facts,
    }


def timed(system: System, histories: list[np.ndarray], batch_size: int) -> tuple[np.ndarray, dict[str, float]]:
    """(scores [C, N], seconds for 100 people by the clock and of the processor)."""
    clock, processor = time.perf_counter(), time.process_time()
    scores = [system.score(histories[at : at + batch_size]) for at in range(0, len(histories), batch_size)]
    hundreds = len(histories) / 100
    seconds = {
        "clock_s": (time.perf_counter() - clock) / hundreds,
        "processor_s": (time.process_time() - processor) / hundreds,
    }
    return np.concatenate(scores), seconds


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """The row itself, printed."""
    alone, batched = (row[key]["processor_s"] for key in ("one at a time", f"{BATCH_SIZE} at once"))
    training = f"; trained {row['training']['seconds']:.0f} s" if "training" in row else ""
    print(
        f"{row['system']:14}Hit@10 {row['hit@10']:.4f}  NDCG@10 {row['ndcg@10']:.4f}  processor seconds for 100 people:"
        f" {alone:.2f} one at a time, {batched:.2f} in batches{training}",
        flush=True,
    )
    return row


def checks(rows: list[dict[str, Any]]) -> list[Check]:
    """That every list is full, and that generation costs what it is known to cost, where retrieval was measured too."""
    found = [at_least(f"items that {row['system']} lists", row["shortest_list"], LIST_LENGTH, "") for row in rows]
    seconds = {row["system"]: row["one at a time"]["processor_s"] for row in rows}
    for name in MIN_COSTS.keys() & seconds.keys() if RETRIEVAL in seconds else ():
        ratio = seconds[name] / seconds[RETRIEVAL]
        found.append(at_least(f"processor seconds of {name} over those of retrieval", ratio, MIN_COSTS[name], "x"))
    return found


if __name__ == "__main__":
    run_job(main)
