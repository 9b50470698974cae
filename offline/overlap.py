"""Will images help on my data? Measured before anyone pays for training:

    python -m offline.overlap --config movielens [--json overlap.json] [--plot overlap.png]

- Do likenesses agree? Of an item's 10 nearest by picture, how many are among the 10 that the same people chose most
  (training events only), against chance; the same for its text; and for its picture when the 10 nearest by text are
  left out, which is what pictures add. Needs no aligned encoder. Says whether there is something to learn, not how
  much a trained model will gain.
- Can a picture stand for the description? Similarity of an item's picture and text (title and description) against
  other items' texts, where the vision encoder has a text tower (SigLIP, CLIP): the paper's Figures 2 and 9.
- What is wrong with pictures and texts: missing, repeated, blank, markup.

Looks at MAX_ITEMS items at most, a seeded sample. What it encodes stays in the feature cache and is not encoded again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from model.artifacts import write_json
from model.config import Config
from model.store import Store
from offline.dataset import Dataset, load_dataset
from offline.encoders import load_image_encoder
from offline.encoders.image import TWO_TOWERS
from offline.encoders.source import locate
from offline.features import OWN, default_device, embed_items
from offline.jobs import configured, job_parser, run_job
from offline.overlap_content import Mask, look_at, picture_faults, text_faults
from offline.overlap_likeness import (
    Agreement,
    Alignment,
    Estimate,
    agreement,
    alignment,
    nearest,
    nearest_by_choice,
    unit_rows,
)

NUM_NEAREST = 10
MAX_ITEMS = 10_000
"""Looked at. A likeness matrix of so many takes seconds; repeats among the items left out are not seen."""
MAX_TEXTS = 2_000
"""Texts put through the text tower: with the usual spread of .05, their mean is right to .002."""
MIN_ITEMS = 50
"""With fewer, chance alone finds a fifth of the ten nearest."""
MIN_EVENTS = 5
"""Training events an item needs for its neighbours by choice: the paper leaves out items with fewer interactions."""
MIN_PICTURES = 0.5
"""Share of the items. The paper measured no further: without half the pictures Hit@5 fell from .4570 to .4451 (Sport)
and from .5883 to .5805 (Art)."""
SHOPS_COSINE, BOOKS_COSINE = 0.29, 0.16
"""CLIP, picture and description, in the paper and its reviews: all its shops are at the first or above (.31 mostly; .26
for COCO's captions, .07 for random ones), books at the second, and there descriptions beat images (Hit@5 .5100, .4870).
"""
NUM_EXAMPLES = 3

BY_PICTURE, BY_TEXT = "alike by picture: chosen by the same people", "alike by text: chosen by the same people"
BEYOND_TEXT = "alike by picture, not by text: chosen by the same people"
PICTURE_AND_TEXT = "alike by picture: alike by text"


@dataclass(frozen=True)
class Overlap:
    """What was found on N items of a dataset."""

    config: Config
    num_items: int
    """In the dataset; N or more."""
    item_ids: list[str]
    faults: dict[str, Mask]
    """By the words of the report: bool [N]."""
    telling_N: Mask
    """Items with a picture of their own that shows something."""
    num_compared: int
    """Items behind the agreements: such a picture, a text and MIN_EVENTS training events."""
    agreements: dict[str, Agreement]
    """Empty where fewer than MIN_ITEMS items can be compared."""
    aligned: Alignment | None
    """None: the vision encoder has no text tower, or fewer than MIN_ITEMS items have picture and text."""
    vision_family: str
    """`model_type` of the vision encoder."""


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    for path in filter(None, (arguments.json, arguments.plot)):
        path.parent.mkdir(parents=True, exist_ok=True)
    overlap = measure(*configured(arguments))
    print(as_text(overlap), end="")
    if arguments.json:
        write_json(arguments.json, as_json(overlap))
    if arguments.plot:
        plot(overlap, arguments.plot)


def measure(config: Config, store: Store, device: str | None = None) -> Overlap:
    """Look at the configured dataset with the configured encoders; `device` unset: CUDA when there is one."""
    dataset = load_dataset(store.dataset(config.dataset))
    rows = np.random.default_rng(config.seed).permutation(dataset.num_items)[:MAX_ITEMS]
    items = dataset.items.take(rows)
    features = embed_items(items, dataset.folder, config, store, device)
    image, text = features["image"], features["text"]
    names = items["image"].to_pylist()
    pictures = look_at(names, dataset.folder, image.origin == OWN, image.vectors)
    known_N = pictures.telling_N & (text.origin == OWN)
    compared = np.flatnonzero(known_N & (dataset.num_train_events[rows] >= MIN_EVENTS))
    return Overlap(
        config=config,
        num_items=dataset.num_items,
        item_ids=items["item_id"].to_pylist(),
        faults=picture_faults(names, pictures) | text_faults(items),
        telling_N=pictures.telling_N,
        num_compared=len(compared),
        agreements=agreements(image.vectors[compared], text.vectors[compared], histories_of(dataset, rows[compared])),
        aligned=aligned(items, image.vectors, np.flatnonzero(known_N)[:MAX_TEXTS], config, store, device),
        vision_family=str(locate(config.vision.source, config.vision.revision, store.models).config["model_type"]),
    )


def histories_of(dataset: Dataset, rows: np.ndarray) -> list[np.ndarray]:
    """Training events of every user among the items `rows`, numbered as they stand there."""
    number_of = np.full(dataset.num_items, -1)
    number_of[rows] = np.arange(len(rows))
    numbered = (number_of[dataset.train_events(user)] for user in range(len(dataset.users)))
    return [numbers[numbers >= 0] for numbers in numbered]


def agreements(image_NV: np.ndarray, text_NT: np.ndarray, histories: list[np.ndarray]) -> dict[str, Agreement]:
    """How far pictures, texts and people's choices agree on what is alike, for N items in random order."""
    if len(image_NV) < MIN_ITEMS:
        return {}
    by_image_NK = nearest(unit_rows(image_NV, centred=True), NUM_NEAREST)
    by_text_NK = nearest(unit_rows(text_NT, centred=True), NUM_NEAREST)
    by_choice_NK = nearest_by_choice(histories, len(image_NV), NUM_NEAREST)
    found = {
        BY_PICTURE: agreement(by_image_NK, by_choice_NK),
        BY_TEXT: agreement(by_text_NK, by_choice_NK),
        BEYOND_TEXT: agreement(by_image_NK, by_choice_NK, besides_NK=by_text_NK),
        PICTURE_AND_TEXT: agreement(by_image_NK, by_text_NK),
    }
    return {question: answer for question, answer in found.items() if answer is not None}


def aligned(
    items: pa.Table, image_NV: np.ndarray, rows: np.ndarray, config: Config, store: Store, device: str | None
) -> Alignment | None:
    """Pictures of the items `rows` against their titles and descriptions in the vision encoder's own space."""
    encoder = load_image_encoder(config.vision, store.models, device or default_device())
    if not encoder.has_text_tower or len(rows) < MIN_ITEMS:
        return None
    texts = [title_and_description(item) for item in items.take(rows).to_pylist()]
    size = config.vision.batch_size
    vectors = [encoder.encode_texts(texts[start : start + size]) for start in range(0, len(texts), size)]
    return alignment(image_NV[rows], np.concatenate(vectors))


def title_and_description(item: Mapping[str, Any]) -> str:
    """What the text tower reads; it cuts off what it has no room for, 64 to 77 tokens as a rule."""
    return " ".join(item[field] for field in ("title", "description") if item[field])


def verdict(overlap: Overlap) -> list[str]:
    """The answer in plain words: of all first, then why."""
    share = float(overlap.telling_N.mean())
    pictures = f"{share:.0%} of the items have a picture of their own that shows something."
    if share < MIN_PICTURES:
        pictures += " That is less than the half with which the paper tested: get pictures first."
    return [*_answer(overlap), pictures, _standing_in(overlap)]


def _answer(overlap: Overlap) -> list[str]:
    found = overlap.agreements
    if BY_PICTURE not in found or BEYOND_TEXT not in found:
        return [
            f"Whether images help cannot be said: {overlap.num_compared:,} items have a telling picture, a text and "
            f"{MIN_EVENTS} training events, where {MIN_ITEMS} are needed that people chose together."
        ]
    alone, beyond = found[BY_PICTURE].lift, found[BEYOND_TEXT].lift
    reason = f"Items that look alike are chosen by the same people {_times(alone)}"
    if BY_TEXT in found:
        reason += f"; items whose texts are alike, {_times(found[BY_TEXT].lift)}"
    reason += f". Where the texts are not alike, looks alone still tell {_times(beyond)}."
    if beyond.low > 1:
        return [
            "Images are worth trying: they tell of people's choices what the texts do not (how much, training tells).",
            reason,
        ]
    if alone.low > 1:
        return ["Images may replace texts, but nothing shows that they add to them.", reason]
    return ["Nothing shows that images will help: what looks alike is not chosen by the same people.", reason]


def _times(lift: Estimate) -> str:
    return f"{lift.value:.1f} times as often as chance ({lift.low:.1f} to {lift.high:.1f})"


def _standing_in(overlap: Overlap) -> str:
    if overlap.vision_family not in TWO_TOWERS:
        return (
            "Whether a picture can stand for the description cannot be said: "
            f"{overlap.config.vision.source} has no text tower. Set a SigLIP or CLIP to ask, for instance "
            "--set vision.source=openai/clip-vit-large-patch14-336."
        )
    if overlap.aligned is None:
        return (
            "Whether a picture can stand for the description cannot be said: fewer than "
            f"{MIN_ITEMS} items have a telling picture and a text."
        )
    own, gap = float(overlap.aligned.own_N.mean()), overlap.aligned.gap
    facts = (
        f"similarity {own:.2f}, which is {gap} over other items' texts, and {overlap.aligned.wins:.0%} of those are "
        "further from it"
    )
    if gap.low <= 0:
        return f"A picture does not tell its own item's text from another's ({facts}): it cannot stand for it."
    if overlap.vision_family != "clip":
        return f"A picture knows its own item's text ({facts}). The paper's bounds are for CLIP, so how well is open."
    if own >= SHOPS_COSINE:
        return f"A picture can stand for the description, as in the paper's shops ({facts}; there {SHOPS_COSINE})."
    if own <= BOOKS_COSINE:
        return f"A picture says little of the description, as the paper's books ({facts}; there {BOOKS_COSINE})."
    return f"A picture says part of the description ({facts}; the paper's shops {SHOPS_COSINE}, books {BOOKS_COSINE})."


def as_text(overlap: Overlap) -> str:
    """Tables and verdict, for a terminal."""
    looked = len(overlap.item_ids)
    lines = [f"{overlap.config.dataset}: {looked:,} of {overlap.num_items:,} items", ""]
    lines += [f"{'':40}{'items':>8}{'share':>8}"]
    for fault, mask_N in overlap.faults.items():
        examples = f"  {', '.join(_examples(overlap, mask_N))}" if mask_N.any() else ""
        lines.append(f"{fault:40}{mask_N.sum():8,}{mask_N.mean():8.1%}{examples}")
    if overlap.agreements:
        lines += [
            "",
            f"{f'the {NUM_NEAREST} nearest of {overlap.num_compared:,} items':58}  share  chance  times chance",
        ]
    for question, found in overlap.agreements.items():
        lines.append(f"{question:58}{found.share:7.4f}{found.chance:8.4f}  {found.lift}")
    if overlap.aligned is not None:
        own, other = overlap.aligned.own_N.mean(), overlap.aligned.other_N.mean()
        lines += ["", f"picture and own text {own:.3f}, other items' texts {other:.3f}, gap {overlap.aligned.gap}"]
    return "\n".join([*lines, "", *verdict(overlap)]) + "\n"


def as_json(overlap: Overlap) -> dict[str, Any]:
    """Every figure of the tables, and the verdict."""
    aligned = overlap.aligned
    return {
        "config": overlap.config.name,
        "dataset": overlap.config.dataset,
        "encoders": {"image": overlap.config.vision.source, "text": overlap.config.text.source},
        "seed": overlap.config.seed,
        "items": overlap.num_items,
        "items_looked_at": len(overlap.item_ids),
        "items_compared": overlap.num_compared,
        "telling_pictures": int(overlap.telling_N.sum()),
        "faults": {
            fault: {"items": int(mask_N.sum()), "examples": _examples(overlap, mask_N)}
            for fault, mask_N in overlap.faults.items()
        },
        "agreements": {question: asdict(found) for question, found in overlap.agreements.items()},
        "aligned": aligned
        and {
            "items": len(aligned.own_N),
            "own_text": float(aligned.own_N.mean()),
            "other_texts": float(aligned.other_N.mean()),
            "gap": asdict(aligned.gap),
            "wins": aligned.wins,
        },
        "verdict": verdict(overlap),
    }


def plot(overlap: Overlap, path: Path) -> None:
    """Agreements with their intervals, faults, and the similarities where there are any."""
    figure = Figure(figsize=(15 if overlap.aligned else 11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3 if overlap.aligned else 2)
    _plot_agreements(panels[0], overlap.agreements)
    faults = list(overlap.faults.items())[::-1]
    bars = panels[1].barh([name for name, _ in faults], [mask_N.mean() * 100 for _, mask_N in faults], color="#94a3b8")
    panels[1].bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    panels[1].set(title="Faults", xlabel="% of the items", xlim=(0, 115))
    if overlap.aligned:
        for label, cosine_N in (("own text", overlap.aligned.own_N), ("other texts", overlap.aligned.other_N)):
            panels[2].hist(cosine_N, bins=40, alpha=0.6, label=label)
        panels[2].set(title="Picture and text", xlabel="cosine", ylabel="items")
        panels[2].legend(fontsize=8)
    figure.suptitle(f"{overlap.config.dataset}: {verdict(overlap)[0]}", fontsize=9)
    figure.savefig(path, dpi=110)


def _plot_agreements(axes: Any, found: Mapping[str, Agreement]) -> None:
    lifts = [answer.lift for answer in found.values()][::-1]
    labels = [question.replace(": ", ":\n") for question in found][::-1]
    spans = [[lift.value - lift.low for lift in lifts], [lift.high - lift.value for lift in lifts]]
    axes.errorbar([lift.value for lift in lifts], range(len(lifts)), xerr=spans, fmt="o", color="#c2410c", capsize=3)
    axes.set_yticks(range(len(lifts)), labels, fontsize=8)
    axes.axvline(1, color="#94a3b8", linestyle="--")
    axes.set(title=f"Do likenesses agree? ({NUM_NEAREST} nearest)", xlabel="times chance (95 % interval)", xscale="log")


def _examples(overlap: Overlap, mask_N: Mask) -> list[str]:
    return [overlap.item_ids[row] for row in np.flatnonzero(mask_N)[:NUM_EXAMPLES]]


def _picture_path(name: str) -> Path:
    path = Path(name)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"{name!r} must end in .png, .svg or .pdf")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("Will images help on this data? Measured without training.")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--plot", type=_picture_path, help="draw them there (.png, .svg or .pdf)")
    return parser


if __name__ == "__main__":
    run_job(main)
