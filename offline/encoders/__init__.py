"""Frozen encoders of pictures and texts. Each knows its identity and width before a weight is read."""

from offline.encoders.image import ImageEncoder, load_image_encoder
from offline.encoders.text import TextEncoder, load_text_encoder

__all__ = ["ImageEncoder", "TextEncoder", "load_image_encoder", "load_text_encoder"]
