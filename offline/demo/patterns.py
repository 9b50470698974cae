"""The patterned material of a product: a square of colour, from pattern, colourway and a few random choices."""

# H, W pixels at twice the picture's size, averaged at the end so that lines are smooth

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from offline.demo.canvas import SIZE
from offline.demo.traits import PATTERNS, RGB

Ink = tuple[np.ndarray, np.ndarray]
"""Where the second and the third colour lie: two arrays of 0 to 1, float32[H, W]."""


def material(pattern: int, colours: tuple[RGB, RGB, RGB], rng: np.random.Generator) -> np.ndarray:
    """float32[SIZE, SIZE, 3]: values 0 to 255 of the material with pattern number `pattern` of PATTERNS."""
    x, y = np.meshgrid(np.arange(2 * SIZE, dtype=np.float32) / (2 * SIZE), np.arange(2 * SIZE) / (2 * SIZE))
    second, third = _INKS[PATTERNS[pattern]](x, y, rng)
    base_3, second_3, third_3 = (np.array(colour, np.float32) for colour in colours)
    cloth = base_3 + second[:, :, None] * (second_3 - base_3)
    cloth = cloth + third[:, :, None] * (third_3 - cloth)
    return np.asarray(cloth.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3)), np.float32)


def _plain(x: np.ndarray, _y: np.ndarray, _rng: np.random.Generator) -> Ink:
    return np.zeros_like(x), np.zeros_like(x)


def _stripes(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Ink:
    angle = math.radians(float(rng.choice([0, 90, 45])))
    phase = (x * math.sin(angle) + y * math.cos(angle)) / rng.uniform(0.075, 0.11) + rng.random()
    bar = _step(np.abs(phase % 1 - 0.5) * 2, rng.uniform(0.4, 0.55))
    return bar, bar * (np.floor(phase) % 3 == 0)


def _dots(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Ink:
    pitch = rng.uniform(0.085, 0.12)
    row = np.floor(y / (pitch * 0.87))
    column = x / pitch + 0.5 * (row % 2)
    distance = np.hypot(column % 1 - 0.5, (y / (pitch * 0.87) % 1 - 0.5) * 0.87)
    dot = _step(distance, rng.uniform(0.24, 0.32))
    return dot, dot * ((np.floor(column) + 2 * row) % 4 == 0)


def _checks(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Ink:
    """Woven checks: where two bands cross, the colour is full."""
    pitch = rng.uniform(0.085, 0.125)
    across, down = ((axis / pitch % 1 < 0.5).astype(np.float32) for axis in (x, y))
    thin = ((x / pitch + 0.28) % 2 < 0.07) | ((y / pitch + 0.28) % 2 < 0.07)
    return 0.5 * (across + down), 0.8 * thin.astype(np.float32)


def _waves(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Ink:
    height, length = rng.uniform(0.014, 0.02), rng.uniform(0.11, 0.15)
    phase = (y + height * np.sin(2 * np.pi * x / length)) / rng.uniform(0.06, 0.08)
    bar = _step(np.abs(phase % 1 - 0.5) * 2, 0.5)
    return bar, bar * (np.floor(phase) % 3 == 0)


def _triangles(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Ink:
    pitch = rng.uniform(0.1, 0.135)
    row = np.floor(y / pitch)
    column = x / pitch + 0.5 * (row % 2)
    within = y / pitch % 1
    inside = (np.abs(column % 1 - 0.5) < within * 0.46).astype(np.float32) * (within < 0.94)
    return inside, inside * ((np.floor(column) + row) % 3 == 0)


def _step(value: np.ndarray, threshold: float) -> np.ndarray:
    return (value < threshold).astype(np.float32)


_INKS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], Ink]] = {
    "plain": _plain,
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "waves": _waves,
    "triangles": _triangles,
}
