"""Bytes of a picture file to what an encoder is shown: RGB, upright, of bounded size."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

VERSION = 1
"""Raise when the same bytes would give other pixels: it is part of every image encoder's fingerprint."""
MAX_PIXELS = 50_000_000
MAX_SIDE = 1024
"""Larger pictures are reduced at once: encoders look at 224 to 512 pixels, and a batch must fit into memory."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class BrokenPictureError(Exception):
    """These bytes are no usable picture. Never leaves the feature job: the item counts as one without a picture."""


def open_picture(content: bytes) -> Image.Image:
    """The first frame as RGB of at most 1,024 pixels a side: EXIF orientation applied, transparency over white.

    16-bit grey is scaled to 8 bits. Raises BrokenPictureError.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BrokenPictureError(f"{width} x {height} pixels, over {MAX_PIXELS:,}")
            image.draft(image.mode, (MAX_SIDE, MAX_SIDE))  # JPEG: decode at a fraction; others: nothing
            rgb = _rgb(ImageOps.exif_transpose(image))
    except (BrokenPictureError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes make decoders raise whatever they like
        raise BrokenPictureError(f"does not decode: {type(error).__name__}") from None
    rgb.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
    return rgb


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_grey(np.asarray(image) / 257)
    if image.mode == "F":
        grey = np.asarray(image)
        return _from_grey(grey * 255 if grey.max(initial=0) <= 1 else grey)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _from_grey(grey: np.ndarray) -> Image.Image:
    """Grey values from 0 to 255 as RGB."""
    return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
