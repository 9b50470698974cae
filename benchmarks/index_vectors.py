"""Item and user vectors as training makes them, in any number, from a seed.

Calibrated on the demo's trained vectors (237 items, 200 users, P = 64): a part has norm 1.7 (quartiles 1.56 to 1.93),
of which about half is an offset common to all items; its spectrum is that of 8 to 14 equal directions; 4 % of the items
have no CF, so that this part is zero and the others count double; users have norm 2.6, point away from the common
offset (mean score -1.1, standard deviation 1.5) and reach a cosine of about 0.5 with their best item.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Geometry = Literal["trained", "hard"]

NUM_PARTS = 3
NUM_CLUSTERS = 2000
NUM_LATENT = 16
BLOCK = 50_000
SHARE_WITHOUT_CF = 0.04


@dataclass(frozen=True)
class World:
    """Items and users of one catalog.

    `trained`: items lie in clusters of Zipf sizes on a curved surface of few dimensions, the same cluster seen through
    three projectors; users stand where a few items of one or two clusters meet, seen through other projectors.
    `hard`: the same items with norms spread by a factor of ten, and users that are distributed like no item at all:
    normal in all directions.
    """

    width: int = 192
    geometry: Geometry = "trained"
    seed: int = 0

    def items(self, num_items: int) -> Iterator[Floats]:
        """float32 [up to 50,000, width] blocks of the first `num_items`; a prefix of any larger catalog."""
        for number, start in enumerate(range(0, num_items, BLOCK)):
            yield self._block(number)[: num_items - start]

    def users(self, num_users: int) -> Floats:
        """float32 [num_users, width]"""
        rng = np.random.default_rng((self.seed, 2))
        if self.geometry == "hard":
            return rng.standard_normal((num_users, self.width), np.float32)
        tastes = self._latent(num_users, rng) + 0.5 * self._latent(num_users, rng)
        part_width = self.width // NUM_PARTS
        noise = rng.standard_normal((num_users, self.width), np.float32)
        seen = self._projected(tastes) + 0.5 * noise / part_width**0.5 - np.tile(0.8 * self._offset, NUM_PARTS)
        return 1.1 * seen

    def _block(self, number: int) -> Floats:
        rng = np.random.default_rng((self.seed, 3, number))
        vectors = self._projected(self._latent(BLOCK, rng)) + np.tile(0.8 * self._offset, NUM_PARTS)
        part_width = self.width // NUM_PARTS
        vectors += 0.15 * rng.standard_normal(vectors.shape, np.float32) / part_width**0.5
        parts = vectors.reshape(BLOCK, NUM_PARTS, part_width)
        spread = 0.5 if self.geometry == "hard" else 0.15
        parts *= rng.lognormal(0.0, spread, (BLOCK, NUM_PARTS, 1)).astype(np.float32)
        young = rng.random(BLOCK) < SHARE_WITHOUT_CF
        parts[young] *= np.array([2, 0, 2], np.float32)[:, None]
        return vectors

    def _latent(self, num: int, rng: np.random.Generator) -> Floats:
        """float32 [num, NUM_LATENT]: a cluster's place and one's own place in it."""
        sizes = 1 / np.arange(1, NUM_CLUSTERS + 1) ** 0.8
        clusters = rng.choice(NUM_CLUSTERS, num, p=sizes / sizes.sum())
        return self._places[clusters] + 0.5 * rng.standard_normal((num, NUM_LATENT), np.float32)

    def _projected(self, latent: Floats) -> Floats:
        """float32 [num, width]: each part a small network of its own, its output about 1.35 long."""
        parts = [np.tanh(latent @ first) @ second for first, second in self._networks]
        parts = [part * (1.35 / float(np.linalg.norm(part, axis=1).mean())) for part in parts]
        return np.concatenate(parts, axis=1)

    @cached_property
    def _places(self) -> Floats:
        return np.random.default_rng((self.seed, 0)).standard_normal((NUM_CLUSTERS, NUM_LATENT), np.float32)

    @cached_property
    def _offset(self) -> Floats:
        direction = np.random.default_rng((self.seed, 1)).standard_normal(self.width // NUM_PARTS, np.float32)
        return direction / np.linalg.norm(direction)

    @cached_property
    def _networks(self) -> list[tuple[Floats, Floats]]:
        rng = np.random.default_rng((self.seed, 4))
        part_width = self.width // NUM_PARTS
        shapes = ((NUM_LATENT, 2 * part_width), (2 * part_width, part_width))
        return [
            tuple(rng.standard_normal(shape, np.float32) / shape[0] ** 0.5 for shape in shapes)  # type: ignore[misc]
            for _ in range(NUM_PARTS)
        ]
