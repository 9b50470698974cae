"""The frozen decoder. Turns embeddings into hidden states; knows nothing of items, prompts or people.

# B prompts, T tokens, D language-model width
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from model.config import Dtype, LanguageModelConfig
from model.errors import InvalidInputError
from model.packages import resolve_source
from model.packed_decoder import PackedDecoder, is_supported

BF16_MIN_SPEEDUP = 1.2
"""bfloat16 is taken on a processor only if a timed product is this much faster than float32: rounding has its price."""


def choose_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def choose_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """The dtype that a setting means on a device; `auto` on a processor is measured, not assumed."""
    if dtype != "auto":
        resolved = getattr(torch, dtype)
        assert isinstance(resolved, torch.dtype)  # noqa: S101 - the Literal allows no other
        return resolved
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if bf16_speedup() >= BF16_MIN_SPEEDUP else torch.float32


def bf16_speedup(size: int = 768) -> float:
    """Time of a float32 matrix product over that of a bfloat16 one on this processor."""

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(size, size, dtype=dtype)
        a @ a
        times = []
        for _ in range(5):
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.float32) / seconds(torch.bfloat16)


class LanguageModel:
    """A decoder in evaluation mode whose weights never receive gradients.

    `width` is D. `head` maps states to vocabulary logits and is used by RISA alone; serving never calls it.
    """

    def __init__(self, decoder: Any, tokenizer: Any, device: torch.device) -> None:
        self.decoder = decoder.eval().requires_grad_(False).to(device)
        self.tokenizer = tokenizer
        self.device = device
        self.dtype: torch.dtype = self.decoder.dtype
        self.width: int = self.decoder.config.hidden_size
        embedding = self.decoder.get_input_embeddings().weight
        self.embedding_rms = float(embedding.float().pow(2).mean().sqrt())
        self._packed: PackedDecoder | None = None

    def embed(self, token_BT: Tensor) -> Tensor:
        """Word embeddings [B, T, D] of token ids; placeholders (negative ids) get those of id 0, to be replaced."""
        embedded: Tensor = self.decoder.get_input_embeddings()(token_BT.clamp(min=0))
        return embedded

    def states(self, embed_BTD: Tensor, position_BT: Tensor | None = None, mask_BTT: Tensor | None = None) -> Tensor:
        """Last-layer states [B, T, D].

        `position_BT`: position of every token (default 0..T-1). `mask_BTT`: True where a token (row) sees another
        (column); default causal, under which padding on the right is never seen by a real token.
        """
        mask = None if mask_BTT is None else mask_BTT[:, None]
        output = self.decoder.base_model(
            inputs_embeds=embed_BTD, position_ids=position_BT, attention_mask=mask, use_cache=False
        )
        state_BTD: Tensor = output.last_hidden_state
        return state_BTD

    def pack(self) -> PackedDecoder | None:
        """The decoder laid out for serving, the same at each call; None where it cannot be packed.

        It takes the place of the decoder's own layers: from then on `states` is of no use.
        """
        if self._packed is None and is_supported(self.decoder):
            self._packed = PackedDecoder(self.decoder, consume=True)
        return self._packed

    def head(self, state_BTD: Tensor) -> Tensor:
        """Vocabulary logits of states."""
        logits: Tensor = self.decoder.get_output_embeddings()(state_BTD)
        return logits


def load_tokenizer(config: LanguageModelConfig, models: Path) -> Any:
    """The tokenizer alone, without the weights."""
    return AutoTokenizer.from_pretrained(resolve_source(config.source, models), revision=config.revision)


def load_language_model(config: LanguageModelConfig, models: Path, device: torch.device) -> LanguageModel:
    """Load any decoder that `AutoModelForCausalLM` knows; weights from safetensors only.

    `models` is where converted small models lie. Raises InvalidInputError when the source cannot be loaded.
    """
    source = resolve_source(config.source, models)
    dtype = choose_dtype(config.dtype, device)
    if config.num_layers is not None:
        transformers_logging.set_verbosity_error()  # it reports every weight of the layers that are left out
    try:
        shape = AutoConfig.from_pretrained(source, revision=config.revision)
        if config.num_layers is not None:
            _cut_layers(shape, config.num_layers)
        if config.random_init:
            torch.manual_seed(0)
            decoder = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="sdpa")
        else:
            decoder = AutoModelForCausalLM.from_pretrained(
                source,
                config=shape,
                revision=config.revision,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
            )
        tokenizer = load_tokenizer(config, models)
    except (OSError, ValueError) as error:  # ValueError: a kind of model that transformers does not know
        raise InvalidInputError(
            f"language_model.source {config.source!r} cannot be loaded: {error}. Give a hub id that this machine can "
            "reach, or a folder with config.json, *.safetensors and the tokenizer",
            "language_model.source",
        ) from error
    return LanguageModel(decoder, tokenizer, device)


def _cut_layers(shape: Any, num_layers: int) -> None:
    if num_layers > shape.num_hidden_layers:
        raise InvalidInputError(
            f"language_model.num_layers is {num_layers}, but the model has {shape.num_hidden_layers} layers",
            "language_model.num_layers",
        )
    shape.num_hidden_layers = num_layers
