"""How fast histories become user vectors, without HTTP and without a queue, and whether they stay the same vectors.

    python -m benchmarks.engine [--quick] [--json PATH] [--store store] [--shape small|paper] [--layers N]

Three tables, in one run:

- forward: batches of histories of one length, by the engine and by the Hugging Face decoder as it is (padded, no
  prefix reused), in turn; useful FLOPs (benchmarks/flops.py) against the fastest matrix product of the same run;
- answers: the engine against its slow twin, one by one, together and going on from what was read before, in float32
  and in bfloat16: real histories on the catalog that `--store` serves, or random ones on an untrained catalog. What
  bfloat16 must keep to is float32: against each other, the rounding errors of two paths add up;
- returning people: one history growing item by item, asked after each: everything computed anew, what was read
  remembered while the window of ten slides by one, and remembered with windows of 8 to 12 that slide by five. What a
  window costs in NDCG@10 is measured on the validation events of the dataset that `--store` serves.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.flops import matmul_peak, state_flops, timed
from benchmarks.report import Report, at_least, at_most, benchmark_parser, finish
from benchmarks.synthetic_store import Shape, build_store
from model.bounded_cache import DEFAULT_CACHES, CacheSizes
from model.catalog import Catalog, current_version
from model.checkpoint import Checkpoint, load_checkpoint
from model.config import PromptConfig
from model.encoder import UserEncoder
from model.engine import Engine
from model.index import Index, build_index
from model.language_model import LanguageModel, choose_device, load_language_model
from model.prompt import PromptBuilder, pad
from model.store import Store
from offline.dataset import load_dataset

SEED = 0
NOTHING = CacheSizes(user_vector_bytes=0, prefix_bytes=0)
BATCHES = {"cpu": (1, 2, 4, 8), "cuda": (1, 4, 16, 64)}
NUM_HISTORIES = 64
"""Of mixed lengths, whose answers are compared."""
SLIDING, STRIDES = {"max_history": 10, "history_stride": 1}, {"max_history": 12, "history_stride": 5}
MAX_DIFFERENCE, MIN_COSINE, MIN_OVERLAP = 1e-4, 0.999, 0.95
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """One published catalog and the checkpoint that it was made with."""

    store: Store
    catalog: Catalog
    checkpoint: Checkpoint
    device: torch.device

    @classmethod
    def load(cls, store: Store, device: torch.device) -> Subject:
        version = current_version(store.catalogs)
        if version is None:
            raise SystemExit(f"no catalog is published in {store.catalogs}")
        catalog = Catalog.load(store.catalogs / version)
        return cls(store, catalog, load_checkpoint(store.checkpoints / catalog.checkpoint_id), device)

    @cached_property
    def index(self) -> Index:
        """Of the language model's part alone, which is what the engine computes."""
        return build_index(self.checkpoint.heads.item_vectors(self.catalog.features))

    def language_model(self, dtype: str | None = None) -> LanguageModel:
        config = self.checkpoint.config.language_model
        return load_language_model(
            config.model_copy(update={"dtype": dtype or config.dtype}), self.store.models, self.device
        )

    def encoder(self, language_model: LanguageModel, **window: int) -> UserEncoder:
        """The slow twin; `window`: fields of the prompt's configuration."""
        config = PromptConfig(**{**self.checkpoint.config.prompt.model_dump(), **window})
        heads = self.checkpoint.heads.to(self.device)
        builder = PromptBuilder(language_model.tokenizer, config)
        return UserEncoder(language_model, heads, builder, self.catalog.segments, self.catalog.features)

    def real_histories(self, num: int) -> list[np.ndarray]:
        """What `num` people of the dataset had chosen before their last event, as the prompt shows it."""
        dataset = load_dataset(self.store.dataset(self.checkpoint.config.dataset))
        known = [[self.catalog.row(dataset.item_ids[row]) for row in events[:-1]] for events in dataset.events]
        rows = [np.array([row for row in history if row is not None], np.int64) for history in known]
        chosen = np.random.default_rng(SEED).permutation(len(rows))[:num]
        return [rows[at][-self.checkpoint.config.prompt.max_history :] for at in chosen if len(rows[at])]

    def next_events(self, num: int) -> list[tuple[np.ndarray, int]]:
        """Histories before the validation event, and that event, of `num` people of the dataset."""
        dataset = load_dataset(self.store.dataset(self.checkpoint.config.dataset))
        rows = [[self.catalog.row(dataset.item_ids[row]) for row in events[:-1]] for events in dataset.events]
        whole = [np.array(own, np.int64) for own in rows if None not in own and len(own) > 1]
        chosen = np.random.default_rng(SEED).permutation(len(whole))[:num]
        return [(whole[at][:-1], int(whole[at][-1])) for at in chosen]

    def histories(self, lengths: Sequence[int], seed: int = SEED) -> list[np.ndarray]:
        generator = np.random.default_rng(seed)
        return [generator.choice(self.catalog.num_items, length, replace=False) for length in lengths]


def main() -> int:
    arguments = _arguments()
    device = choose_device(arguments.device)
    served = Store(arguments.store)
    with tempfile.TemporaryDirectory(prefix="engine-") as work:
        shape = Shape(arguments.shape, arguments.layers).language_model(Path(work), served.models)
        subject = Subject.load(build_store(Path(work) / "store", shape, ("title", "image"), 2000), device)
        forward = measure_forward(subject, BATCHES[device.type], repeats=3 if arguments.quick else 7)
        returning = measure_returning(subject, num_items=24 if arguments.quick else 42)
        if current_version(served.catalogs):
            trained = Subject.load(served, device)
            answers = measure_answers(trained, trained.real_histories(NUM_HISTORIES))
            windows = measure_windows(trained, 300 if arguments.quick else 1500)
        else:
            trained, windows = subject, []
            answers = measure_answers(subject, subject.histories([1 + at % 10 for at in range(NUM_HISTORIES)]))
    rows = [*forward, *answers, *returning, *windows]
    report = Report("engine", SEED, _settings(arguments, subject, trained), rows)
    print(tables(forward, answers, returning))
    for row in windows:
        print(f"window of {row['max_history']}, stride {row['history_stride']}: NDCG@10 {row['ndcg@10']:.4f}")
    if arguments.json:
        plot(forward, arguments.json.with_suffix(".png"))
    report.checks = checks(forward, answers, returning)
    return finish(report, arguments.json)


def measure_forward(subject: Subject, batches: Sequence[int], repeats: int) -> list[Row]:
    """One row a batch size and length: milliseconds of a batch, the best of `repeats`, both in turn."""
    peak = matmul_peak(subject.language_model().dtype, subject.device)
    twin = subject.encoder(subject.language_model())
    packed = subject.encoder(subject.language_model())
    engine = Engine(packed, packed.language_model.pack(), NOTHING)
    num_prefix = len(twin.builder.prefix)
    rows = []
    for num_items in (2, 5, 10):
        for batch in batches:
            histories = subject.histories([num_items] * batch)
            lengths = [len(twin.builder.recommend(h, twin.segments)) for h in histories]
            bare_s, engine_s = best_in_turn(
                [partial(_bare, twin, histories), partial(engine.encode, histories)], repeats, subject.device
            )
            shape = twin.language_model.decoder.config
            flops = sum(state_flops(shape, length, num_prefix) for length in lengths)
            row: Row = {"table": "forward", "items": num_items, "batch": batch, "tokens": sum(lengths)}
            row |= {"decoder_ms": 1000 * bare_s, "engine_ms": 1000 * engine_s, "speedup": bare_s / engine_s}
            row |= {"tokens/s": sum(lengths) / engine_s, "peak_flops": peak}
            row |= {"share_of_peak": flops / engine_s / peak, "decoder_share_of_peak": flops / bare_s / peak}
            rows.append(row)
            _say(f"forward: {num_items} items x {batch}: {row['engine_ms']:.1f} ms, decoder {row['decoder_ms']:.1f} ms")
    return rows


@torch.inference_mode()
def _bare(twin: UserEncoder, histories: Sequence[np.ndarray]) -> Tensor:
    """The Hugging Face decoder over padded prompts, and the user side of the heads."""
    prompts = [twin.builder.recommend(history, twin.segments) for history in histories]
    return twin.heads.project_users(twin.rec_states(pad(prompts, twin.language_model.device)))


def best_in_turn(works: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """The shortest time of each work in seconds; they take turns, so that a slower machine slows all alike."""
    times = [[timed(work, device) for work in works] for _ in range(repeats + 1)][1:]
    return [min(own) for own in zip(*times, strict=True)]


def measure_answers(subject: Subject, histories: Sequence[np.ndarray]) -> list[Row]:
    """One row a pair of paths: cosine of user vectors, largest difference, and overlap of the top ten."""
    vectors: dict[str, np.ndarray] = {}
    for dtype in ("float32", "bfloat16"):
        slow = subject.encoder(subject.language_model(dtype))
        vectors[f"decoder, {dtype}"] = slow.encode(histories)
        packed = subject.encoder(subject.language_model(dtype))
        decoder = packed.language_model.pack()
        vectors[f"engine, {dtype}"] = Engine(packed, decoder, NOTHING).encode(histories)
        alone = Engine(packed, decoder, NOTHING)
        vectors[f"engine, one by one, {dtype}"] = np.concatenate([alone.encode([history]) for history in histories])
        returning = Engine(packed, decoder, CacheSizes(0, DEFAULT_CACHES.prefix_bytes))
        returning.encode([history[:-1] for history in histories if len(history) > 1])
        vectors[f"engine, going on, {dtype}"] = returning.encode(histories)
    return [
        compare(subject, vectors, path, reference)
        for path in vectors
        for reference in ("decoder, float32", "decoder, bfloat16")
        if path != reference and (path.endswith("bfloat16") or reference.endswith("float32"))
    ]


def compare(subject: Subject, vectors: dict[str, np.ndarray], path: str, reference: str) -> Row:
    ours, theirs = vectors[path], vectors[reference]
    cosine = cosine_similarity(torch.from_numpy(ours), torch.from_numpy(theirs))
    top, other = (subject.index.search(users, 10)[1] for users in (ours, theirs))
    overlap = np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(top.tolist(), other.tolist(), strict=True)])
    return {
        "table": "answers",
        "path": path,
        "against": reference,
        "max_difference": float(np.abs(ours - theirs).max()),
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "overlap@10": float(overlap),
        "same_top_10": float((top == other).all(axis=1).mean()),
    }


def measure_returning(subject: Subject, num_items: int, num_people: int = 3) -> list[Row]:
    """One row a way to remember: tokens and milliseconds a request of histories that grow from 1 to `num_items`."""
    language_model = subject.language_model()
    ways = {
        "nothing remembered, 10 items": (SLIDING, NOTHING),
        "prefixes remembered, 10 items": (SLIDING, CacheSizes(0, DEFAULT_CACHES.prefix_bytes)),
        "prefixes remembered, 8 to 12 items": (STRIDES, CacheSizes(0, DEFAULT_CACHES.prefix_bytes)),
    }
    engines = {}
    for way, (window, caches) in ways.items():
        encoder = subject.encoder(language_model, **window)
        engines[way] = encoder, Engine(encoder, language_model.pack(), caches)
    totals = {way: [0.0, 0, 0] for way in ways}
    for person in subject.histories([num_items] * num_people, seed=1):
        for length in range(1, num_items + 1):
            for way, (encoder, engine) in engines.items():
                used = encoder.builder.keep_newest(person[:length], encoder.segments)
                num_tokens = engine.num_tokens(used)
                seconds = timed(partial(engine.encode, [used]), subject.device)
                totals[way] = [a + b for a, b in zip(totals[way], (seconds, num_tokens, 1), strict=True)]
    return [
        {"table": "returning people", "way": way, "tokens": tokens / num, "ms": 1000 * seconds / num}
        for way, (seconds, tokens, num) in totals.items()
    ]


def measure_windows(subject: Subject, num: int) -> list[Row]:
    """One row a window: NDCG@10 of the next event in full ranking, by the checkpoint as it was trained."""
    language_model = subject.language_model()
    events = subject.next_events(num)
    rows = []
    for window in (SLIDING, {"max_history": 12, "history_stride": 1}, STRIDES):
        encoder = subject.encoder(language_model, **window)
        engine = Engine(encoder, language_model.pack(), NOTHING)
        user_UQ = engine.encode([encoder.builder.keep_newest(history, encoder.segments) for history, _ in events])
        top_UK = subject.index.search(user_UQ, 10, [history for history, _ in events])[1]
        user_U, place_U = np.nonzero(top_UK == np.array([[target] for _, target in events]))
        ndcg = float((1 / np.log2(place_U + 2)).sum() / len(events))
        rows.append({"table": "windows", **window, "events": len(events), "ndcg@10": ndcg, "hits": len(user_U)})
    return rows


def checks(forward: Sequence[Row], answers: Sequence[Row], returning: Sequence[Row]) -> list[Any]:
    full = [row for row in forward if row["items"] == 10]
    exact = [row for row in answers if row["path"].endswith("float32")]
    rounded = [row for row in answers if row["path"].startswith("engine") and row["path"].endswith("bfloat16")]
    true = [row for row in rounded if row["against"].endswith("float32")]
    anew, _, strides = returning
    return [
        at_least("engine over decoder, 10 items, largest batch", full[-1]["speedup"], 1.0, "x"),
        at_most("engine over decoder, 10 items alone, time", 1 / full[0]["speedup"], 1.15, "x"),
        at_most(
            "float32, largest difference of user vectors", max(r["max_difference"] for r in exact), MAX_DIFFERENCE, ""
        ),
        at_least("float32, share of identical top tens", min(r["same_top_10"] for r in exact), 1.0, ""),
        at_least("bfloat16, mean cosine to float32", min(r["cosine_mean"] for r in true), MIN_COSINE, ""),
        at_least("bfloat16, overlap of the top ten", min(r["overlap@10"] for r in rounded), MIN_OVERLAP, ""),
        at_least("returning people, strides over nothing remembered", anew["ms"] / strides["ms"], 1.5, "x"),
    ]


def tables(forward: Sequence[Row], answers: Sequence[Row], returning: Sequence[Row]) -> str:
    heads = ("items", "batch", "tokens", "decoder ms", "engine ms", "speedup", "tokens/s", "peak")
    lines = ["{:>6}{:>6}{:>8}{:>12}{:>11}{:>9}{:>10}{:>7}".format(*heads)]
    lines += [
        f"{r['items']:6}{r['batch']:6}{r['tokens']:8}{r['decoder_ms']:12.1f}{r['engine_ms']:11.1f}{r['speedup']:9.2f}"
        f"{r['tokens/s']:10.0f}{r['share_of_peak']:7.2f}"
        for r in forward
    ]
    lines += ["", f"{'answers':36}{'against':22}{'max diff':>10}{'cos mean':>10}{'min':>9}{'overlap':>9}{'same':>7}"]
    lines += [
        f"{r['path']:36}{r['against']:22}{r['max_difference']:10.1e}{r['cosine_mean']:10.5f}{r['cosine_min']:9.5f}"
        f"{r['overlap@10']:9.3f}{r['same_top_10']:7.3f}"
        for r in answers
    ]
    lines += ["", f"{'returning people':38}{'new tokens':>12}{'ms a request':>14}"]
    lines += [f"{r['way']:38}{r['tokens']:12.1f}{r['ms']:14.1f}" for r in returning]
    return "\n".join(lines)


def plot(forward: Sequence[Row], path: Path) -> None:
    """Share of the matmul peak by tokens of the batch, engine and decoder."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    rows = sorted(forward, key=lambda row: row["tokens"])
    tokens = [row["tokens"] for row in rows]
    axes.plot(tokens, [row["share_of_peak"] for row in rows], "o-", color="#c2410c", label="engine")
    axes.plot(tokens, [row["decoder_share_of_peak"] for row in rows], "o-", color="#0369a1", label="decoder, padded")
    axes.set(xscale="log", ylim=(0, 1), xlabel="tokens of the batch", ylabel="useful FLOPs / matmul peak")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _settings(arguments: argparse.Namespace, subject: Subject, trained: Subject) -> Row:
    config = subject.checkpoint.config.language_model
    return {
        "model": arguments.shape,
        "layers": config.num_layers or "all",
        "dtype": config.dtype,
        "device": torch.cuda.get_device_name() if subject.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "answers_from": trained.checkpoint.id,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("small", "paper"), default="small", help="SmolLM2-135M or 2.7B parameters")
    parser.add_argument("--layers", type=int, help="decoder layers (default: all; 4 with --quick)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    arguments.layers = arguments.layers or (4 if arguments.quick else None)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
