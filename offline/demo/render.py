"""One product photograph: material, shape, shadow and backdrop."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from offline.demo.canvas import SIZE, Canvas, Mask, blur, box, ellipse
from offline.demo.catalog import Product
from offline.demo.patterns import material
from offline.demo.shapes import FLYING, LYING, SHAPES, Trim
from offline.demo.traits import PALETTES, RGB
from offline.demo.wording import CATEGORIES

JPEG_QUALITY = 90
WALLS: tuple[RGB, ...] = ((240, 238, 234), (232, 234, 238), (244, 242, 240), (228, 226, 222))
_COLOURWAYS = tuple(PALETTES.values())


def render(product: Product, seed: int) -> bytes:
    """JPEG of SIZE x SIZE pixels; depends only on the product and the seed."""
    rng = np.random.default_rng([seed, 4, int(product.item_id[1:])])
    colourways = _COLOURWAYS[product.palette]
    colours = colourways[int(rng.integers(len(colourways)))]
    shape = CATEGORIES[product.category].shape
    canvas = Canvas(material(product.pattern, colours, rng))
    SHAPES[shape](canvas, _trim(colours), rng)
    if rng.random() < 0.5:
        canvas.colour, canvas.coverage = canvas.colour[:, ::-1], canvas.coverage[:, ::-1]
    scene = _backdrop(colours, shape, rng) * (1 - _shadow(canvas.coverage, shape))[:, :, None]
    scene = scene * (1 - canvas.coverage)[:, :, None] + canvas.colour
    return _jpeg(scene)


def _trim(colours: tuple[RGB, RGB, RGB]) -> Trim:
    """Trim that stands out from the base colour of the material."""
    base, second, third = colours
    return Trim(main=third, pale=_mix(second, (255, 255, 255), 0.35), deep=_mix(base, (16, 14, 20), 0.62))


def _backdrop(colours: tuple[RGB, RGB, RGB], shape: str, rng: np.random.Generator) -> np.ndarray:
    """float32[SIZE, SIZE, 3]: a wall, often with a tinted disc or arch, lit from the upper left."""
    wall = WALLS[int(rng.integers(len(WALLS)))]
    tint = _mix(colours[int(rng.integers(3))], (250, 249, 247), 0.72)
    scene: np.ndarray = np.broadcast_to(np.array(wall, np.float32), (SIZE, SIZE, 3))
    kind = int(rng.integers(4))
    if kind == 0:
        scene = np.broadcast_to(np.array(_mix(tint, wall, 0.35), np.float32), (SIZE, SIZE, 3))
    elif kind == 1:
        scene = _over(scene, ellipse(0.5, 0.48, 0.4, 0.4), tint)
    elif kind == 2:
        scene = _over(scene, np.maximum(ellipse(0.5, 0.42, 0.34, 0.34), box(0.16, 0.42, 0.84, 1.02)), tint)
    if shape not in LYING and shape not in FLYING:
        floor = blur(box(-0.1, rng.uniform(0.7, 0.76), 1.1, 1.2), 5)
        scene = scene * (1 - 0.07 * floor)[:, :, None]
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    light = 1.03 - 0.06 * ((axis[None, :] + 0.3) ** 2 + (axis[:, None] + 0.4) ** 2)
    return np.asarray(scene * light[:, :, None], np.float32)


def _shadow(coverage: Mask, shape: str) -> np.ndarray:
    """float32[SIZE, SIZE]: the part of light that the product takes from the backdrop."""
    if shape in LYING:
        return np.asarray(0.3 * blur(np.roll(coverage, (7, 5), (0, 1)), 7))
    if shape in FLYING:
        return np.asarray(0.14 * blur(np.roll(coverage, (20, 14), (0, 1)), 13))
    rows, columns = np.flatnonzero(coverage.max(axis=1) > 0.5), np.flatnonzero(coverage.max(axis=0) > 0.5)
    ground = rows[-1] / SIZE
    middle, half = (columns[0] + columns[-1]) / 2 / SIZE, (columns[-1] - columns[0]) / 2 / SIZE
    contact = 0.38 * blur(ellipse(middle, ground, half * 0.78, 0.02), 4)
    spread = 0.2 * blur(ellipse(middle + 0.05, ground + 0.005, half * 1.15, 0.045), 11)
    return np.asarray(np.maximum(contact, spread) + 0.06 * blur(np.roll(coverage, (4, 12), (0, 1)), 12))


def _over(scene: np.ndarray, mask: Mask, colour: RGB) -> np.ndarray:
    return np.asarray(scene * (1 - mask)[:, :, None] + mask[:, :, None] * np.array(colour, np.float32))


def _mix(colour: RGB, other: RGB, share: float) -> RGB:
    """`share` of the other colour, the rest of the first."""
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _jpeg(scene: np.ndarray) -> bytes:
    pixels = np.clip(np.round(scene), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
