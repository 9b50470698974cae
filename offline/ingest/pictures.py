"""Whether some bytes are a usable picture, and finding the ones that lie beside an items file. Knows no network."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image, UnidentifiedImageError

_EXTENSION_OF = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
EXTENSIONS = tuple(_EXTENSION_OF.values())


@dataclass(frozen=True)
class PictureLimits:
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    """Checked before anything is decoded: a small file can claim a picture that fills the memory."""
    min_side: int = 8
    """Pixels. Smaller ones are place holders and tracking dots."""


class BadPictureError(Exception):
    """Not usable. `reason` groups, `detail` shows what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_picture(content: bytes, limits: PictureLimits) -> str:
    """The file extension that fits these bytes, after decoding the whole first frame. Raises BadPictureError."""
    if len(content) > limits.max_bytes:
        raise BadPictureError("too many bytes", f"{len(content):,}, over {limits.max_bytes:,}")
    try:
        with Image.open(io.BytesIO(content), formats=list(_EXTENSION_OF)) as picture:
            width, height = picture.size
            if width * height > limits.max_pixels:
                raise BadPictureError("too many pixels", f"{width} x {height}, over {limits.max_pixels:,}")
            if min(width, height) < limits.min_side:
                raise BadPictureError("too small", f"{width} x {height}, under {limits.min_side} a side")
            picture.load()
            return _EXTENSION_OF[str(picture.format)]
    except (BadPictureError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPictureError("too many pixels", str(error)) from None
    except UnidentifiedImageError:
        raise BadPictureError("not a picture", f"{len(content):,} bytes that start with {content[:24]!r}") from None
    except Exception as error:  # noqa: BLE001 - hostile bytes make decoders raise whatever they like
        raise BadPictureError("does not decode", f"{type(error).__name__}: {error}") from None


def local_path(base: Path, name: str) -> Path:
    """The path of picture `name` below the folder `base`, links resolved. Raises BadPictureError for other places."""
    try:
        path = (base / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise BadPictureError("unusable path", f"{name!r}: {error}") from None
    if not path.is_relative_to(base.resolve()):
        raise BadPictureError("outside the folder", f"{name!r} leads out of the folder of the items file")
    return path


def read_local(base: Path, name: str, limits: PictureLimits) -> tuple[Path, str]:
    """Path and extension of a local picture that is usable. Raises BadPictureError."""
    path = local_path(base, name)
    try:
        if not path.is_file():
            raise BadPictureError("no such file", name)
        if path.stat().st_size > limits.max_bytes:
            raise BadPictureError("too many bytes", f"{name}: {path.stat().st_size:,}, over {limits.max_bytes:,}")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise BadPictureError("unreadable", f"{name!r}: {error}") from None
    try:
        return path, check_picture(content, limits)
    except BadPictureError as bad:
        raise BadPictureError(bad.reason, f"{name}: {bad.detail}") from None


def place(source: Path, images: Path, item_id: str, extension: str) -> str:
    """Put a picture into the folder `images` under a name made from the item's id; returns `images/<name>`.

    A hard link where the file system allows it, else a copy.
    """
    target = images / f"{sha256(item_id.encode()).hexdigest()[:32]}.{extension}"
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return f"{images.name}/{target.name}"
