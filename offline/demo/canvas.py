"""Antialiased drawing: coverage masks from vector shapes, and a canvas that lays lit, coloured parts over each other.

Coordinates run from 0 to 1, x to the right and y down. A mask is drawn OVERSAMPLE times larger and averaged, so that
its edges are smooth. Uses no font and nothing of the system.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from offline.demo.traits import RGB

SIZE = 256
"""Pixels of a picture's side."""
OVERSAMPLE = 3

Point = tuple[float, float]
Mask = np.ndarray
"""float32[SIZE, SIZE]: how much of a pixel is covered, 0 to 1."""
Volume = Literal["flat", "round", "soft"]
"""How light falls on a part: even, as on an upright cylinder lit from the left, or as on something stuffed."""


def polygon(points: Sequence[Point]) -> Mask:
    return _mask(lambda draw: draw.polygon(_scaled(points), fill=255))


def blob(points: Sequence[Point]) -> Mask:
    """The inside of a smooth closed curve through `points`."""
    return polygon(_smooth(points, closed=True))


def turned(profile: Sequence[tuple[float, float]]) -> Mask:
    """A body of revolution about x = 0.5, from (half width, y) pairs, top to bottom."""
    right = _smooth([(0.5 + half, y) for half, y in profile], closed=False)
    return polygon([*right, *((1 - x, y) for x, y in reversed(right))])


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Mask:
    corners = _scaled([(x - radius_x, y - radius_y), (x + radius_x, y + radius_y)])
    return _mask(lambda draw: draw.ellipse(corners, fill=255))


def box(left: float, top: float, right: float, bottom: float, radius: float = 0.0) -> Mask:
    side = SIZE * OVERSAMPLE
    corners = _scaled([(left, top), (right, bottom)])
    return _mask(lambda draw: draw.rounded_rectangle(corners, radius * side, fill=255))


def stroke(points: Sequence[Point], width: float, *, smooth: bool = True) -> Mask:
    """A line through `points` with round ends; a smooth curve unless told otherwise."""
    side = SIZE * OVERSAMPLE
    path = _scaled(_smooth(points, closed=False) if smooth else points)

    def draw_line(draw: ImageDraw.ImageDraw) -> None:
        draw.line(path, fill=255, width=max(1, round(width * side)), joint="curve")
        radius = width * side / 2
        for x, y in (path[0], path[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)

    return _mask(draw_line)


def turn(points: Sequence[Point], degrees: float, center: Point = (0.5, 0.5)) -> list[Point]:
    """The points rotated clockwise about `center`."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    moved = [(x - center[0], y - center[1]) for x, y in points]
    return [(center[0] + cosine * x - sine * y, center[1] + sine * x + cosine * y) for x, y in moved]


def blur(mask: Mask, pixels: float) -> Mask:
    image = Image.fromarray(np.round(mask * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(pixels)), np.float32) / 255


class Canvas:
    """One product: parts laid over each other, with the coverage of the whole kept for its shadow.

    `cover` is float32[SIZE, SIZE, 3], the colours of the product's patterned material.
    """

    def __init__(self, cover: np.ndarray) -> None:
        self._cover = cover
        self.colour = np.zeros((SIZE, SIZE, 3), np.float32)
        self.coverage = np.zeros((SIZE, SIZE), np.float32)

    def dress(self, mask: Mask, volume: Volume = "flat", tone: float = 1.0) -> None:
        """Lay a part of the patterned material; `tone` below 1 darkens it."""
        self._lay(mask, self._cover * tone, volume)

    def part(self, mask: Mask, colour: RGB, volume: Volume = "flat", opacity: float = 1.0) -> None:
        """Lay a part of one colour."""
        self._lay(mask * opacity, np.array(colour, np.float32), volume, light_of=mask)

    def _lay(self, mask: Mask, colour: np.ndarray, volume: Volume, light_of: Mask | None = None) -> None:
        lit = colour * _light(mask if light_of is None else light_of, volume)[:, :, None]
        keep = (1 - mask)[:, :, None]
        self.colour = self.colour * keep + np.clip(lit, 0, 255) * mask[:, :, None]
        self.coverage = self.coverage * (1 - mask) + mask


def _light(mask: Mask, volume: Volume) -> np.ndarray:
    """float32[SIZE, SIZE]: brightness factors of a part."""
    columns = np.flatnonzero(mask.max(axis=0) > 0.5)
    rows = np.flatnonzero(mask.max(axis=1) > 0.5)
    if not len(columns) or not len(rows):
        return np.ones_like(mask)
    pixels = np.arange(SIZE, dtype=np.float32)
    across = _unit(pixels, columns)[None, :]
    down = _unit(pixels, rows)[:, None]
    edge = 0.86 + 0.14 * np.clip(2 * blur(mask, 1.6) - 1, 0, 1)
    if volume == "round":
        gloss = 0.14 * np.exp(-(((across + 0.45) / 0.16) ** 2))
        return np.asarray(edge * (1.06 - 0.3 * (across + 0.25) ** 2 + gloss - 0.05 * down))
    if volume == "soft":
        return np.asarray(edge * (0.74 + 0.36 * blur(mask, 12)) - 0.07 * down - 0.04 * across)
    return np.asarray(edge * (1.02 - 0.05 * down - 0.02 * across))


def _unit(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """-1 at the first, 1 at the last of the pixels inside a part."""
    middle, half = (inside[0] + inside[-1]) / 2, max((inside[-1] - inside[0]) / 2, 1)
    return np.asarray(np.clip((pixels - middle) / half, -1, 1))


def _mask(paint: Callable[[ImageDraw.ImageDraw], None]) -> Mask:
    image = Image.new("L", (SIZE * OVERSAMPLE, SIZE * OVERSAMPLE))
    paint(ImageDraw.Draw(image))
    return np.asarray(image.reduce(OVERSAMPLE), np.float32) / 255


def _scaled(points: Sequence[Point]) -> list[Point]:
    return [(x * SIZE * OVERSAMPLE, y * SIZE * OVERSAMPLE) for x, y in points]


def _smooth(points: Sequence[Point], *, closed: bool, steps: int = 14) -> list[Point]:
    """Points of the Catmull-Rom spline through `points`."""
    knots = [points[-1], *points, points[0], points[1]] if closed else [points[0], *points, points[-1]]
    curve: list[Point] = []
    for a, b, c, d in zip(knots, knots[1:], knots[2:], knots[3:], strict=False):
        curve.extend(_spline(a, b, c, d, step / steps) for step in range(steps))
    return curve if closed else [*curve, points[-1]]


def _spline(a: Point, b: Point, c: Point, d: Point, t: float) -> Point:
    def along(p: float, q: float, r: float, s: float) -> float:
        return 0.5 * (2 * q + (r - p) * t + (2 * p - 5 * q + 4 * r - s) * t**2 + (3 * q - p - 3 * r + s) * t**3)

    return along(a[0], b[0], c[0], d[0]), along(a[1], b[1], c[1], d[1])
