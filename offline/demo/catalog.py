"""The products: text and latent visual traits, drawn independently of each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offline.demo.parameters import DemoParameters
from offline.demo.traits import PALETTES, PATTERNS
from offline.demo.wording import BRANDS, CATEGORIES, Category


@dataclass(frozen=True)
class Product:
    """One item of the shop. Indices refer to CATEGORIES, BRANDS, PALETTES (in order) and PATTERNS."""

    item_id: str
    title: str
    description: str
    category: int
    brand: int
    palette: int
    pattern: int
    popularity: float
    """Standard normal."""
    launch_day: float
    """Days after the start of the period; 0 for what was on sale before."""
    young: bool


def make_catalog(parameters: DemoParameters, seed: int) -> list[Product]:
    """All products of the shop, ordered by item_id. Every trait is balanced within every category."""
    rng = np.random.default_rng([seed, 1])
    num = parameters.num_items
    category = _balanced(rng, len(CATEGORIES), num)
    brand, palette, pattern = (np.empty(num, np.int64) for _ in range(3))
    for members in (np.flatnonzero(category == c) for c in range(len(CATEGORIES))):
        brand[members] = _balanced(rng, len(BRANDS), len(members))
        palette[members] = _balanced(rng, len(PALETTES), len(members))
        pattern[members] = _balanced(rng, len(PATTERNS), len(members))
    popularity = rng.standard_normal(num)
    launch_day, young = _launches(rng, parameters)
    numbers = rng.permutation(num) + 1
    products = []
    for i in range(num):
        kind = CATEGORIES[category[i]]
        material = _pick(rng, kind.materials)
        products.append(
            Product(
                item_id=f"p{i + 1:04d}",
                title=f"{BRANDS[brand[i]]} {material} {_pick(rng, kind.nouns)} No. {numbers[i]}",
                description=_describe(rng, kind, material),
                category=int(category[i]),
                brand=int(brand[i]),
                palette=int(palette[i]),
                pattern=int(pattern[i]),
                popularity=float(popularity[i]),
                launch_day=float(launch_day[i]),
                young=bool(young[i]),
            )
        )
    return products


def _balanced(rng: np.random.Generator, num_kinds: int, count: int) -> np.ndarray:
    """int64[count] in random order; every kind occurs equally often, up to one."""
    rounds = [rng.permutation(num_kinds) for _ in range(-(-count // num_kinds))]
    return rng.permutation(np.concatenate(rounds)[:count]) if rounds else np.empty(0, np.int64)


def _launches(rng: np.random.Generator, parameters: DemoParameters) -> tuple[np.ndarray, np.ndarray]:
    """float64[N] launch days and bool[N] which items are young."""
    num = parameters.num_items
    order = rng.permutation(num)
    num_young = round(parameters.young_share * num)
    young, established = order[:num_young], order[num_young : num_young + parameters.num_established]
    launch_day = rng.uniform(0, parameters.num_days - parameters.launches_end_days, num)
    launch_day[established] = 0
    shortest, longest = parameters.young_days
    launch_day[young] = parameters.num_days - rng.uniform(shortest, longest, num_young)
    is_young = np.zeros(num, bool)
    is_young[young] = True
    return launch_day, is_young


def _describe(rng: np.random.Generator, kind: Category, material: str) -> str:
    """Two or three sentences on material, use, care and size."""
    noun = kind.nouns[0].lower()
    opening = _pick(
        rng,
        (
            f"A {noun} in {material.lower()}, made in small batches.",
            f"Our {material.lower()} {noun}, finished by hand.",
            f"This {noun} pairs {material.lower()} with careful work.",
        ),
    )
    closing = [_pick(rng, kind.uses), _pick(rng, kind.cares), _pick(rng, kind.sizes)]
    kept = rng.permutation(3)[: rng.integers(1, 3)]
    return " ".join([opening, *(closing[k] for k in sorted(kept))])


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
