"""Encoders of item texts: any sentence-transformers model.

# B texts of a batch, T text width
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from model.artifacts import fingerprint
from model.config import TextConfig
from model.errors import InvalidInputError
from offline.encoders.source import Source, choose_dtype, locate

if TYPE_CHECKING:
    import torch


class TextEncoder(Protocol):
    """A frozen encoder whose weights are read at the first encoding, not before."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal features: weights, tokenizer, dtype."""

    @property
    def width(self) -> int:
        """T."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to float32 [B, T]; what is longer than the model reads is cut."""


def load_text_encoder(config: TextConfig, models: Path, device: str | torch.device) -> TextEncoder:
    """The configured encoder on `device`. Raises InvalidInputError for a source that cannot be found."""
    source = locate(config.source, config.revision, models, config_file="modules.json")
    return SentenceEncoder(source, choose_dtype(config.dtype, str(device)), str(device))


class SentenceEncoder:
    """A sentence-transformers model with the pooling and normalisation that it defines."""

    def __init__(self, source: Source, dtype: str, device: str) -> None:
        self._source = source
        self._dtype = dtype
        self._device = device
        self.fingerprint = fingerprint({"weights": source.identity, "dtype": dtype, "preparation": 1})

    @property
    def width(self) -> int:
        return int(self._model.get_embedding_dimension())

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        vectors = self._model.encode(list(texts), batch_size=max(len(texts), 1), show_progress_bar=False)
        return np.asarray(vectors, np.float32).reshape(len(texts), -1)

    @cached_property
    def _model(self) -> Any:
        import torch
        from sentence_transformers import SentenceTransformer

        source = self._source
        try:
            return SentenceTransformer(
                source.location,
                revision=source.revision,
                device=self._device,
                model_kwargs={"dtype": getattr(torch, self._dtype), "use_safetensors": True},
            )
        except (OSError, ValueError, ImportError) as error:
            raise InvalidInputError(f"text.source {source.location!r} does not load: {error}", "text.source") from None
