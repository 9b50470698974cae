"""The visual traits: palettes and patterns. No text of the catalog may name them; a test looks for `TRAIT_WORDS`."""

from __future__ import annotations

RGB = tuple[int, int, int]

# Colourways of a palette: base, second, third colour of a product.
PALETTES: dict[str, tuple[tuple[RGB, RGB, RGB], ...]] = {
    "warm": (
        ((204, 82, 48), (250, 226, 190), (232, 164, 52)),
        ((232, 158, 44), (164, 46, 38), (252, 234, 204)),
        ((178, 44, 44), (248, 196, 132), (236, 122, 60)),
        ((240, 128, 84), (132, 34, 40), (252, 218, 160)),
    ),
    "cool": (
        ((30, 62, 122), (214, 234, 246), (84, 162, 214)),
        ((26, 128, 142), (222, 242, 242), (24, 62, 104)),
        ((92, 164, 216), (20, 54, 108), (236, 246, 250)),
        ((48, 92, 168), (150, 216, 222), (226, 238, 250)),
    ),
    "earth": (
        ((110, 112, 60), (228, 212, 178), (120, 80, 50)),
        ((118, 78, 50), (216, 192, 150), (84, 92, 56)),
        ((186, 150, 106), (82, 58, 42), (236, 224, 200)),
        ((66, 80, 54), (198, 170, 124), (146, 104, 68)),
    ),
    "pastel": (
        ((247, 192, 204), (255, 246, 238), (190, 226, 214)),
        ((184, 228, 208), (252, 244, 206), (206, 196, 238)),
        ((206, 196, 238), (252, 228, 234), (188, 218, 246)),
        ((188, 218, 246), (255, 240, 246), (250, 236, 180)),
    ),
    "neon": (
        ((255, 24, 148), (196, 255, 0), (40, 10, 80)),
        ((176, 255, 0), (130, 20, 255), (0, 230, 255)),
        ((0, 228, 255), (255, 0, 160), (255, 246, 0)),
        ((132, 22, 255), (255, 246, 0), (255, 80, 0)),
    ),
    "mono": (
        ((34, 34, 36), (236, 236, 236), (128, 128, 130)),
        ((238, 238, 238), (40, 40, 42), (150, 150, 152)),
        ((126, 126, 128), (240, 240, 240), (44, 44, 46)),
        ((84, 84, 86), (204, 204, 204), (18, 18, 20)),
    ),
}
PATTERNS = ("plain", "stripes", "dots", "checks", "waves", "triangles")

TRAIT_WORDS = frozenset(
    """
    amber aqua azure beige black blue bright bronze brown burgundy charcoal checked checkered checks colour color
    coloured colored colourful colorful cool copper coral cream crimson cyan dark dot dots dotted earth earthy emerald
    fuchsia geometric gold golden gray green grey indigo ivory jade khaki lavender lemon lilac lime magenta maroon mint
    mono monochrome multicolour multicolor mustard navy neon ochre olive orange palette pastel pattern patterned peach
    pink plaid plain polka print printed purple red rose ruby rust sand sapphire scarlet silver sky slate stripe striped
    stripes tan teal terracotta triangle triangles turquoise umber vermilion violet vivid warm wave waves wavy white
    yellow zigzag
    """.split()  # noqa: SIM905 - a paragraph reads better than a hundred quoted words
)
