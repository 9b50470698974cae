"""How fast a training step is: one pass for both losses, beside two passes that read the same history twice.

    python -m benchmarks.training [--quick] [--json PATH] [--store store] [--config demo] [--shape paper] [--layers N]

Five systems take the same steps in turn, on the same windows, with the same language model and the same draws:

- one pass: the step of `offline.train` with one target a window (`train.tails = "last"`), and with one after every item
  of it ("all"); and the first without its grouping of prompts by length, padded together as the rivals' are;
- two passes (benchmarks/training_rival.py): the way the paper's released code trains, and the same without the
  vocabulary's logits of tokens that nobody asks for, which is the harder rival.

Losses are the paper's: one random negative, equal weights. Before anything is timed, losses and gradients of one pass
and two are compared in float32. A round is the same few steps by each system, and a ratio is the median over rounds of
what it was in each: a machine that is busy elsewhere slows all alike.

`--shape paper` measures Sheared-LLaMA-2.7B's exact shape with random weights on made-up items; it wants a GPU.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.flops import matmul_flops, matmul_peak
from benchmarks.report import Check, Report, at_least, at_most, benchmark_parser, finish
from benchmarks.synthetic_store import WIDTHS, Shape, synthetic_features, synthetic_items
from benchmarks.training_rival import TwoPass, write_files
from model.config import SIGNALS, Config, LanguageModelConfig, load_config
from model.encoder import UserEncoder
from model.heads import Heads, ItemFeatures
from model.language_model import choose_device, load_language_model
from model.prompt import TRUNK, Prompt, PromptBuilder, build_segments
from model.store import Store
from offline.dataset import Dataset
from offline.jobs import run_job
from offline.losses import RERI
from offline.onepass import Batch, OnePass
from offline.train import Run, load_run
from offline.windows import Window, WindowSampler, cut_window

LAST, ALL, TOGETHER = "one pass", "one pass, many tails", "one pass, padded together"
HARD, RELEASED = "two passes, no spare logits", "two passes, as released"
PAPER_LOSSES = ["train.loss=bce", "train.risa_weight=1", "train.reri_weight=1", "train.two_stage=false"]
PARTS = ("data", "forward", "backward", "optimiser")
NUM_ITEMS, NUM_USERS = 2000, 1000
"""Of the made-up dataset."""
MIN_SAMPLES, MIN_TARGETS = 1.6, 4.0
MAX_LOSS_DIFFERENCE, MAX_GRADIENT_DIFFERENCE = 1e-5, 1e-4
"""Relative, in float32: the order of sums differs."""
Row = dict[str, Any]


class System(Protocol):
    """What OnePass and TwoPass have in common."""

    heads: Heads

    def prompts(self, windows: list[Window], generator: np.random.Generator) -> list[Prompt]: ...
    def batch(self, windows: list[Window], generator: np.random.Generator) -> Any: ...
    def __call__(self, batch: Any) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Step:
    """The windows of one step and where its randomness starts; equal for every system."""

    number: int
    windows: list[Window]
    seed: int

    @classmethod
    def draw(cls, number: int, run: Run) -> Step:
        sampler = WindowSampler(run.dataset, run.config.prompt.max_history, run.config.seed)
        windows = sampler.draw(run.config.train.batch_size, sampler.generator(number))
        return cls(number, [cut_window(window, run.encoder) for window in windows], run.config.seed)

    def generator(self) -> np.random.Generator:
        """For questions and negatives."""
        return np.random.default_rng([self.seed, self.number, 1])


def main() -> int:
    arguments = _arguments()
    num_rounds, num_steps = (3 if arguments.quick else arguments.rounds), 1
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        work = Path(folder)
        load = _loader(arguments, work)
        differences = compare(load("float32"), work / "exact")
        run = load("auto")
        peak = partial(matmul_peak, run.language_model.dtype, run.language_model.device)
        peak_before, rounds, peak_after = peak(), measure(run, work / "timed", num_rounds, num_steps), peak()
    rows = [summary(name, rounds, max(peak_before, peak_after)) for name in rounds]
    report = Report("training", run.config.seed, _settings(run, num_rounds, num_steps), rows + differences)
    print(table(rows, differences))
    report.checks = checks(rows, differences)
    return finish(report, arguments.json)


def systems(run: Run, folder: Path) -> dict[str, System]:
    """All five, each with heads of its own that start equal; the rivals' feature files go into `folder`."""
    ours, files = run.encoder, write_files(run.features, folder)

    def encoder() -> UserEncoder:
        return UserEncoder(ours.language_model, copy.deepcopy(run.heads), ours.builder, ours.segments, run.features)

    return {
        LAST: one_pass(encoder(), run, "last"),
        ALL: one_pass(encoder(), run, "all"),
        TOGETHER: one_pass(encoder(), run, "last", PaddedTogether),
        HARD: TwoPass(encoder(), files, run.dataset, run.config, whole_head=False),
        RELEASED: TwoPass(encoder(), files, run.dataset, run.config, whole_head=True),
    }


class PaddedTogether(OnePass):
    """One pass without grouping prompts by length: what of the gain is the pass alone."""

    def batch(
        self, windows: list[Window], generator: np.random.Generator, max_group_tokens: int | None = None
    ) -> Batch:
        return super().batch(windows, generator, max_group_tokens or sys.maxsize)


def one_pass(encoder: UserEncoder, run: Run, tails: str, kind: type[OnePass] = OnePass) -> OnePass:
    config = run.config.model_copy(update={"train": run.config.train.model_copy(update={"tails": tails})})
    reri = RERI(run.dataset, run.features, config.heads, config.train)
    return kind(encoder, run.dataset, reri, config)


def compare(run: Run, folder: Path, num_steps: int = 2) -> list[Row]:
    """One row another way: the largest relative difference of its losses and gradients to those of one pass."""
    built, others = systems(run, folder), (TOGETHER, HARD, RELEASED)
    rows: list[Row] = [{"table": "differences", "system": name, "loss": 0.0, "gradient": 0.0} for name in others]
    for number in range(num_steps):
        step = Step.draw(number, run)
        losses, gradients = losses_and_gradients(built[LAST], step)
        for row in rows:
            other_losses, other_gradients = losses_and_gradients(built[row["system"]], step)
            # np.maximum, unlike max, passes on what is not a number.
            row["loss"] = float(np.maximum(row["loss"], largest_difference(losses, other_losses)))
            row["gradient"] = float(np.maximum(row["gradient"], largest_difference(gradients, other_gradients)))
    return rows


def losses_and_gradients(system: System, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = step.generator()
    batch = system.batch(step.windows, generator)
    torch.manual_seed(step.number)  # of dropout
    losses = system(batch)
    system.heads.zero_grad()
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    learned = {name: p.grad for name, p in system.heads.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, learned


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Over all tensors, the largest difference in relation to the largest number of its tensor; names must agree."""
    if one.keys() != other.keys():
        raise ValueError(f"different tensors: {sorted(one.keys() ^ other.keys())}")
    ratios = [(one[name] - other[name]).abs().max() / one[name].abs().max().clamp(min=1e-12) for name in one]
    return float(torch.stack(ratios).max())


class Trainer:
    """The step of `offline.train`, with a clock between its parts."""

    def __init__(self, system: System, config: Config, device: torch.device) -> None:
        self._system = system
        self._max_norm = config.train.max_grad_norm
        self._device = device
        self._optimizer = torch.optim.AdamW(system.heads.parameters(), lr=config.train.learning_rate)
        self._taken = Counter[str]()

    def step(self, step: Step) -> None:
        works = (self._batch_of, self._loss_of, self._backward, self._update)
        passed: Any = step
        for part, work in zip(PARTS, works, strict=True):
            start = time.perf_counter()
            passed = work(passed)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._taken.update({part: time.perf_counter() - start})

    def take(self) -> Row:
        """Seconds in all and by part, and targets, since the last call."""
        taken, self._taken = self._taken, Counter()
        return {**taken, "s": sum(taken[part] for part in PARTS)}

    def _batch_of(self, step: Step) -> Any:
        torch.manual_seed(step.number)  # of dropout
        batch = self._system.batch(step.windows, step.generator())
        self._taken["targets"] += len(batch.targets)
        return batch

    def _loss_of(self, batch: Any) -> Tensor:
        return self._system(batch)["loss"]

    def _backward(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]

    def _update(self, _: None) -> None:
        torch.nn.utils.clip_grad_norm_(self._system.heads.parameters(), self._max_norm)
        self._optimizer.step()


def measure(run: Run, folder: Path, num_rounds: int, num_steps: int) -> dict[str, list[Row]]:
    """What every system did in each round of `num_steps` steps; one round more comes first and does not count."""
    built = systems(run, folder)
    trainers = {name: Trainer(system, run.config, run.language_model.device) for name, system in built.items()}
    rounds: dict[str, list[Row]] = {name: [] for name in built}
    for number in range(num_rounds + 1):
        steps = [Step.draw(number * num_steps + at, run) for at in range(num_steps)]
        for name in _rotated(list(built), number):
            for step in steps:
                trainers[name].step(step)
            rounds[name].append(trainers[name].take() | arithmetic(built[name], steps, run))
        _say(f"round {number}: " + ", ".join(f"{name} {own[-1]['s']:.2f} s" for name, own in rounds.items()))
    return {name: own[1:] for name, own in rounds.items()}


def arithmetic(system: System, steps: Sequence[Step], run: Run) -> Row:
    """Samples, real tokens and floating-point operations of some steps.

    The backward pass costs the forward pass again: frozen weights get no gradient, the activations before them do. (The
    second half of attention's backward pass, a few percent at these lengths, is left out.)
    """
    shape = run.language_model.decoder.config
    prompts = [prompt for step in steps for prompt in system.prompts(step.windows, step.generator())]
    tokens = sum(map(len, prompts))
    whole_head = system.whole_head if isinstance(system, TwoPass) else False
    logits = tokens if whole_head else sum(int(prompt.answer.sum()) for prompt in prompts)
    forward = sum(prompt_flops(shape, prompt) for prompt in prompts) + 2 * shape.hidden_size * shape.vocab_size * logits
    samples = sum(len(step.windows) for step in steps)
    return {"steps": len(steps), "samples": samples, "tokens": tokens, "flops": 2 * forward}


def prompt_flops(shape: Any, prompt: Prompt) -> int:
    """Operations of one forward pass over a prompt: its trunk, and every tail as going on from where it branches."""
    total = matmul_flops(shape, [int((prompt.branch == TRUNK).sum())])
    for number in range(int(prompt.branch.max()) + 1):
        own = prompt.branch == number
        start = int(prompt.limit[own][0])
        total += matmul_flops(shape, [start + int(own.sum())]) - matmul_flops(shape, [start])
    return total


def summary(name: str, rounds: Mapping[str, Sequence[Row]], peak: float) -> Row:
    """One system's medians over rounds; what it is over a rival is taken round by round."""
    own = rounds[name]
    row: Row = {"table": "speed", "system": name}
    row |= {f"{unit}/s": float(np.median(rates(own, unit))) for unit in ("samples", "targets", "tokens")}
    row |= {"share_of_peak": float(np.median(rates(own, "flops"))) / peak, "peak_flops": peak}
    row |= {f"{part}_ms": float(np.median([1000 * r[part] / r["steps"] for r in own])) for part in PARTS}
    for rival in (HARD, RELEASED):
        for unit in ("samples", "targets"):
            row[f"{unit}/s over {rival}"] = float(np.median(rates(own, unit) / rates(rounds[rival], unit)))
    return row


def rates(rounds: Sequence[Row], unit: str) -> np.ndarray:
    return np.array([row[unit] / row["s"] for row in rounds])


def checks(rows: Sequence[Row], differences: Sequence[Row]) -> list[Check]:
    last, many = (next(row for row in rows if row["system"] == name) for name in (LAST, ALL))
    found = []
    for rival in (RELEASED, HARD):
        found += [
            at_least(f"samples/s, one pass over {rival}", last[f"samples/s over {rival}"], MIN_SAMPLES, "x"),
            at_least(f"targets/s, many tails over {rival}", many[f"targets/s over {rival}"], MIN_TARGETS, "x"),
        ]
    loss, gradient = (max(row[kind] for row in differences) for kind in ("loss", "gradient"))
    found.append(at_most("float32, largest relative difference of a loss", loss, MAX_LOSS_DIFFERENCE, ""))
    found.append(at_most("float32, largest relative difference of a gradient", gradient, MAX_GRADIENT_DIFFERENCE, ""))
    return found


def table(rows: Sequence[Row], differences: Sequence[Row]) -> str:
    heads = ("samples/s", "targets/s", "tokens/s", "peak", *(f"{part} ms" for part in PARTS))
    lines = [f"{'':28}" + "".join(f"{head:>13}" for head in heads)]
    lines += [
        f"{row['system']:28}{row['samples/s']:13.2f}{row['targets/s']:13.2f}{row['tokens/s']:13.0f}"
        f"{row['share_of_peak']:13.2f}" + "".join(f"{row[f'{part}_ms']:13.1f}" for part in PARTS)
        for row in rows
    ]
    lines += ["", f"{'largest difference to one pass':32}{'losses':>10}{'gradients':>11}"]
    lines += [f"{row['system']:32}{row['loss']:10.1e}{row['gradient']:11.1e}" for row in differences]
    return "\n".join(lines)


def paper_run(config: Config, work: Path) -> Run:
    """Untrained parts on made-up items, features as memory-mapped as real ones."""
    items, features = synthetic_items(NUM_ITEMS), _mapped(synthetic_features(NUM_ITEMS), work)
    language_model = load_language_model(config.language_model, work, choose_device())
    torch.manual_seed(config.seed)
    heads = Heads(config.heads, language_model.width, WIDTHS, language_model.embedding_rms)  # type: ignore[arg-type]
    builder = PromptBuilder(language_model.tokenizer, config.prompt)
    segments = build_segments(language_model.tokenizer, items, config.prompt)
    encoder = UserEncoder(language_model, heads.to(language_model.device), builder, segments, features)
    generator = np.random.default_rng(config.seed)
    lengths = generator.integers(5, 20, NUM_USERS)
    events = [generator.choice(NUM_ITEMS, length, replace=False).astype(np.int32) for length in lengths]
    dataset = Dataset(work, items, [f"user-{user}" for user in range(NUM_USERS)], events, "made up")
    return Run(config, dataset, features, dict.fromkeys(SIGNALS, "random"), heads, encoder)


def _mapped(features: ItemFeatures, work: Path) -> ItemFeatures:
    vectors = {}
    for signal in SIGNALS:
        np.save(work / f"{signal}.npy", features.vectors[signal])
        vectors[signal] = np.load(work / f"{signal}.npy", mmap_mode="r")
    return ItemFeatures(vectors, features.origin)


def _loader(arguments: argparse.Namespace, work: Path) -> Callable[[str], Run]:
    """What loads everything with a language model of one dtype (`auto`: as training chooses it)."""
    store = Store(arguments.store)
    overrides = [*PAPER_LOSSES, *(["train.batch_size=8"] if arguments.quick else [])]
    if arguments.shape == "paper":
        config = load_config("paper", overrides)
        section = Shape("paper", arguments.layers).language_model(work, store.models)
        return lambda dtype: paper_run(with_language_model(config, section, dtype), work)
    if arguments.layers:
        overrides.append(f"language_model.num_layers={arguments.layers}")
    config = load_config(arguments.config, overrides)
    return lambda dtype: load_run(with_language_model(config, config.language_model, dtype), store)


def with_language_model(config: Config, section: LanguageModelConfig, dtype: str) -> Config:
    return config.model_copy(update={"language_model": section.model_copy(update={"dtype": dtype})})


def _settings(run: Run, num_rounds: int, num_steps: int) -> Row:
    device, config = run.language_model.device, run.config
    return {
        "config": config.model_dump(mode="json", include={"name", "language_model", "prompt", "heads", "train"}),
        "dtype": str(run.language_model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "rounds": num_rounds,
        "steps_a_round": num_steps,
    }


def _rotated(names: list[str], by: int) -> list[str]:
    return names[by % len(names) :] + names[: by % len(names)]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__.splitlines()[0])
    parser.add_argument("--config", default="demo", help="preset name or .toml file (default: demo)")
    parser.add_argument(
        "--shape", choices=("configured", "paper"), default="configured", help="paper: 2.7B parameters, no store needed"
    )
    parser.add_argument("--layers", type=int, help="decoder layers (default: as configured; 2 with --quick)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default: 7; 3 with --quick)")
    arguments = parser.parse_args()
    arguments.layers = arguments.layers or (2 if arguments.quick else None)
    return arguments


if __name__ == "__main__":
    run_job(main)
