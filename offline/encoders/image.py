"""Encoders of pictures: any SigLIP, SigLIP2 or CLIP, and EfficientNet-Lite0.

Features are raw, not L2-normalised: the adaptor and the projectors that read them begin with a linear layer and learn
what length means, and a length thrown away here could not be had back.

# B pictures or texts of a batch, V visual width
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from model.artifacts import fingerprint
from model.config import VisionConfig
from model.errors import InvalidInputError
from model.packages import EFFICIENTNET_LITE0
from offline.encoders import picture
from offline.encoders.source import Source, choose_dtype, locate

if TYPE_CHECKING:
    import torch

TWO_TOWERS = ("siglip", "siglip2", "clip")
"""`model_type` of the families whose pictures and texts share a space."""


class ImageEncoder(Protocol):
    """A frozen encoder whose weights are read at the first encoding, not before."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal features: weights, dtype and preparation of pictures."""

    @property
    def width(self) -> int:
        """V."""

    @property
    def has_text_tower(self) -> bool:
        """Whether texts can be encoded into the space of the pictures."""

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures to float32 [B, V]."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to float32 [B, V], in the space of the pictures; long ones are cut. Raises InvalidInputError."""


def load_image_encoder(config: VisionConfig, models: Path, device: str | torch.device) -> ImageEncoder:
    """The configured encoder on `device`; `models` is where converted weights are kept.

    Raises InvalidInputError for a source that cannot be found or is of another family.
    """
    source = locate(config.source, config.revision, models)
    dtype = choose_dtype(config.dtype, str(device))
    kind = source.config.get("model_type")
    if kind == EFFICIENTNET_LITE0:
        return EfficientNetLite0(source, dtype, str(device))
    if kind in TWO_TOWERS:
        return TwoTowers(source, dtype, str(device))
    families = ", ".join((*TWO_TOWERS, EFFICIENTNET_LITE0))
    raise InvalidInputError(
        f"vision.source {config.source!r} is of type {kind!r}; give a model of {families}", "vision.source"
    )


class TwoTowers:
    """SigLIP, SigLIP2 and CLIP, as `AutoModel` loads them."""

    has_text_tower = True

    def __init__(self, source: Source, dtype: str, device: str) -> None:
        self._source = source
        self._dtype = dtype
        self._device = device
        self.fingerprint = _fingerprint(source, dtype, preparation=1)

    @property
    def width(self) -> int:
        shape = self._config
        return int(getattr(shape, "projection_dim", None) or shape.vision_config.hidden_size)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        import torch

        prepared = self._image_processor(images=list(images), return_tensors="pt").to(self._device)
        prepared["pixel_values"] = prepared["pixel_values"].to(self._model.dtype)
        with torch.inference_mode():
            return _pooled(self._model.get_image_features(**prepared))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        # SigLIP was trained on texts padded to full length and reads the last position, so its padding is not masked.
        padded = self._config.model_type != "clip"
        tokens = self._tokenizer(
            list(texts),
            padding="max_length" if padded else True,
            truncation=True,
            max_length=self._config.text_config.max_position_embeddings,
            return_attention_mask=not padded,
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            return _pooled(self._model.get_text_features(**tokens))

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return self._open(AutoConfig)

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModel

        model = self._open(AutoModel, dtype=getattr(torch, self._dtype), use_safetensors=True)
        return model.eval().requires_grad_(False).to(self._device)

    @cached_property
    def _image_processor(self) -> Any:
        from transformers import AutoImageProcessor

        return self._open(AutoImageProcessor, backend="pil")  # the same pixels whether torchvision is there or not

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer
        from transformers.models.auto.tokenization_auto import get_tokenizer_config
        from transformers.utils import is_sentencepiece_available

        declared = get_tokenizer_config(self._source.location, revision=self._source.revision).get("tokenizer_class")
        if declared == "SiglipTokenizer" and not is_sentencepiece_available():
            # Without it transformers takes a tokenizer that leaves out SigLIP's lower-casing, and says nothing.
            raise InvalidInputError(
                f"the text tower of {self._source.location} needs its own tokenizer: `pip install sentencepiece`",
                "vision.source",
            )
        return self._open(AutoTokenizer)

    def _open(self, auto_class: Any, **options: Any) -> Any:
        source = self._source
        try:
            return auto_class.from_pretrained(source.location, revision=source.revision, **options)
        except (OSError, ValueError, ImportError) as error:
            raise InvalidInputError(
                f"vision.source {source.location!r} does not load: {error}", "vision.source"
            ) from None


class EfficientNetLite0:
    """The small default: the mean over space of the last feature map of a classifier of photographs."""

    has_text_tower = False
    width = 1280

    def __init__(self, source: Source, dtype: str, device: str) -> None:
        self._source = source
        self._dtype = dtype
        self._device = device
        self.fingerprint = _fingerprint(source, dtype, preparation=1)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        import torch

        side = int(self._source.config["image_size"])
        pixels_BHWC = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in images])
        inputs_BCHW = (torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() - 127) / 128
        with torch.inference_mode():
            maps_BVHW = self._model.extract_features(inputs_BCHW.to(self._device, getattr(torch, self._dtype)))
            return _array(maps_BVHW.float().mean(dim=(2, 3)))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:  # noqa: ARG002
        raise InvalidInputError("EfficientNet-Lite0 has no text tower; a SigLIP or CLIP has one", "vision.source")

    @cached_property
    def _model(self) -> Any:
        import torch
        from efficientnet_lite_pytorch import EfficientNet
        from safetensors.torch import load_file

        # The architecture is built with random weights first; the random numbers of the job must not shift by that.
        with torch.random.fork_rng(devices=[]):
            model = EfficientNet.from_name("efficientnet-lite0")
        model.load_state_dict(load_file(Path(self._source.location) / "model.safetensors"))
        return model.eval().requires_grad_(False).to(self._device, getattr(torch, self._dtype))


def _fingerprint(source: Source, dtype: str, preparation: int) -> str:
    """`preparation` is raised when an encoder class prepares its inputs differently."""
    return fingerprint(
        {"weights": source.identity, "dtype": dtype, "pictures": picture.VERSION, "preparation": preparation}
    )


def _pooled(output: Any) -> np.ndarray:
    """transformers returned the features themselves before version 5, and the output around them since."""
    return _array(getattr(output, "pooler_output", output))


def _array(vectors: torch.Tensor) -> np.ndarray:
    array: np.ndarray = vectors.float().cpu().numpy()
    return array
