"""All offline jobs of one configuration, in order; each is skipped when its result is up to date.

    python -m offline.pipeline --config demo --demo

`--demo` first makes the synthetic shop and ingests it; otherwise the dataset must have been ingested already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from model.catalog import Catalog, current_version
from model.checkpoint import read_canaries
from model.config import Config
from model.store import Store
from offline.jobs import configured, job_parser, run_job


def main() -> int:
    parser = job_parser(__doc__.splitlines()[0])
    parser.add_argument("--demo", action="store_true", help="make and ingest the synthetic shop first")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address that the printed example calls")
    arguments = parser.parse_args()
    config, store = configured(arguments)
    table = run(config, store, demo=arguments.demo)
    print(f"\n{table}")
    print(f"Try it:\n\n{example_call(store, arguments.url)}\n")
    return 0


def run(config: Config, store: Store, *, demo: bool = False) -> str:
    """Run every job; returns the short table of the evaluation. What a job raises ends the run."""
    # Imported here, so that `--help` and a bad configuration answer at once.
    from offline.cf import make_cf
    from offline.evaluate import evaluate
    from offline.features import write_features
    from offline.rankings import short_table
    from offline.reindex import Options, Steps, reindex
    from offline.train import train

    if demo:
        timed("demo data", lambda: make_demo(config, store))
    timed("features", lambda: write_features(config, store))
    timed("cf", lambda: make_cf(config, store))
    checkpoint = timed("train", lambda: train(config, store))
    evaluation = timed("evaluate", lambda: evaluate(config, store, checkpoint))
    print(timed("reindex", lambda: reindex(Options(store, checkpoint=checkpoint.name), Steps())))
    return short_table(evaluation)


def make_demo(config: Config, store: Store) -> None:
    """The synthetic shop, and its dataset."""
    from offline.demo.write import make_demo_data
    from offline.ingest.job import Arguments
    from offline.ingest.job import run as ingest

    raw = make_demo_data(store.raw("demo"), seed=config.seed)
    ingest(
        Arguments(
            format="generic",
            events=raw / "interactions.csv",
            items=raw / "items.jsonl",
            out=store.dataset(config.dataset),
            download=False,
        )
    )


def timed(step: str, job: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = job()
    print(f"[{step}: {time.perf_counter() - start:.1f} s]", flush=True)
    return result


def example_call(store: Store, url: str) -> str:
    """A curl line with a real history from the catalog that is served."""
    version = current_version(store.catalogs)
    assert version is not None  # noqa: S101 - the step before this one published it
    catalog = Catalog.load(store.catalogs / version, verify=False)
    canaries = read_canaries(store.checkpoints / catalog.checkpoint_id)
    history = [item_id for item_id in canaries[0] if catalog.row(item_id) is not None][-3:]
    ids = ", ".join(f'"{item_id}"' for item_id in history)
    body = f'{{"history": [{ids}], "k": 3, "include": ["title"]}}'
    return f"curl -s {url}/recommend -H 'content-type: application/json' -d '{body}'"


if __name__ == "__main__":
    run_job(main)
