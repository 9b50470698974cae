"""How each kind of product is drawn. A shape varies with the random choices it is given, never with its colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from offline.demo.canvas import Canvas, Point, blob, box, ellipse, polygon, stroke, turn, turned
from offline.demo.traits import RGB

METAL: RGB = (196, 198, 204)
WOOD: RGB = (202, 168, 128)
CHALK: RGB = (246, 244, 240)
INK: RGB = (48, 46, 50)


@dataclass(frozen=True)
class Trim:
    """Colours for what is not patterned: handles, lids, soles."""

    main: RGB
    pale: RGB
    deep: RGB


Draw = Callable[[Canvas, Trim, np.random.Generator], None]


def _mug(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    taper = rng.uniform(-0.01, 0.05)
    reach = rng.uniform(0.81, 0.86)
    handle = [(0.63, 0.42), (reach - 0.04, 0.42), (reach, 0.53), (reach - 0.05, 0.65), (0.62, 0.68)]
    canvas.part(stroke(handle, 0.052), trim.main, "soft")
    top, bottom = 0.33, 0.8
    side = [(0.26, top), (0.66, top), (0.66 - taper, bottom - 0.05), (0.62 - taper, bottom)]
    canvas.dress(polygon([*side, (0.3 + taper, bottom), (0.26 + taper, bottom - 0.05)]), "round")
    canvas.part(ellipse(0.46, top, 0.2, 0.04), trim.pale)
    canvas.part(ellipse(0.46, top + 0.006, 0.18, 0.031), trim.deep)


def _teapot(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    width, height = rng.uniform(0.22, 0.25), rng.uniform(0.18, 0.21)
    canvas.part(stroke([(0.32, 0.48), (0.17, 0.46), (0.15, 0.6), (0.3, 0.68)], 0.045), trim.main, "soft")
    spout = [(0.64, 0.66), (0.74, 0.58), (0.8, 0.42), (0.87, 0.4), (0.84, 0.56), (0.72, 0.72)]
    canvas.dress(blob(spout), "soft", tone=0.92)
    canvas.part(box(0.37, 0.76, 0.59, 0.81, 0.015), trim.deep, "round")
    canvas.dress(ellipse(0.48, 0.6, width, height), "round")
    lid_y = 0.6 - height
    canvas.part(ellipse(0.48, lid_y + 0.035, 0.115, 0.035), trim.main, "round")
    canvas.part(ellipse(0.48, lid_y + 0.012, 0.09, 0.032), trim.pale, "round")
    canvas.part(ellipse(0.48, lid_y - 0.03, 0.028, 0.03), trim.main, "soft")


def _vase(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    profiles = (
        [(0.075, 0.36), (0.06, 0.42), (0.15, 0.55), (0.17, 0.68), (0.1, 0.82), (0.085, 0.85)],
        [(0.13, 0.36), (0.1, 0.44), (0.09, 0.52), (0.14, 0.68), (0.15, 0.78), (0.11, 0.85)],
        [(0.05, 0.34), (0.045, 0.46), (0.07, 0.54), (0.19, 0.68), (0.17, 0.79), (0.09, 0.85)],
        [(0.12, 0.38), (0.16, 0.48), (0.165, 0.58), (0.12, 0.74), (0.09, 0.82), (0.1, 0.85)],
    )
    profile = profiles[int(rng.integers(len(profiles)))]
    neck, top = profile[0]
    for lean in rng.uniform(-0.2, 0.2, int(rng.integers(1, 4))):
        tip = (0.5 + lean, 0.09 + abs(lean) * 0.4)
        canvas.part(stroke([(0.5, top + 0.02), (0.5 + lean * 0.3, 0.26), tip], 0.009), WOOD)
        for back in (0.0, 0.3, 0.6):
            bud = (tip[0] - lean * back * 0.6 + 0.012, tip[1] + (top - tip[1]) * back * 0.6)
            canvas.part(ellipse(*bud, 0.017, 0.026), CHALK, "soft")
    canvas.dress(turned(profile), "round")
    canvas.part(ellipse(0.5, top, neck, 0.017), trim.pale)
    canvas.part(ellipse(0.5, top + 0.003, neck * 0.82, 0.011), trim.deep)


def _lamp(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    foot = int(rng.integers(3))
    if foot == 0:
        canvas.part(stroke([(0.5, 0.5), (0.5, 0.82)], 0.026, smooth=False), METAL, "round")
    elif foot == 1:
        belly = [(0.03, 0.5), (0.05, 0.56), (0.115, 0.66), (0.11, 0.75), (0.06, 0.82)]
        canvas.part(turned(belly), trim.main, "round")
    else:
        for x in (0.36, 0.64, 0.5):
            canvas.part(stroke([(0.5, 0.5), (x, 0.84)], 0.022, smooth=False), WOOD, "round")
    if foot != 2:
        canvas.part(box(0.37, 0.81, 0.63, 0.85, 0.02), trim.deep, "round")
    upper, lower = rng.uniform(0.1, 0.19), rng.uniform(0.23, 0.28)
    canvas.dress(polygon([(0.5 - upper, 0.16), (0.5 + upper, 0.16), (0.5 + lower, 0.52), (0.5 - lower, 0.52)]), "round")
    canvas.part(box(0.5 - upper, 0.155, 0.5 + upper, 0.172, 0.006), trim.pale)
    canvas.part(box(0.5 - lower, 0.508, 0.5 + lower, 0.528, 0.006), trim.pale)


def _chair(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    wood = WOOD if rng.random() < 0.5 else trim.deep
    for x, foot, y in ((0.36, 0.34, 0.8), (0.64, 0.66, 0.8)):
        canvas.part(stroke([(x, 0.6), (foot, y)], 0.026, smooth=False), _darker(wood), "round")
    for x, foot in ((0.3, 0.26), (0.7, 0.74)):
        canvas.part(stroke([(x, 0.62), (foot, 0.89)], 0.032, smooth=False), wood, "round")
    back = int(rng.integers(3))
    for x in (0.34, 0.66):
        canvas.part(stroke([(x, 0.24), (x, 0.58)], 0.028, smooth=False), wood, "round")
    if back == 0:
        canvas.dress(box(0.29, 0.13, 0.71, 0.47, 0.05), "soft")
    elif back == 1:
        canvas.dress(ellipse(0.5, 0.29, 0.22, 0.18), "soft")
    else:
        for y in (0.14, 0.265, 0.39):
            canvas.dress(box(0.29, y, 0.71, y + 0.095, 0.03), "soft")
    canvas.dress(blob([(0.28, 0.55), (0.5, 0.535), (0.72, 0.55), (0.77, 0.65), (0.5, 0.685), (0.23, 0.65)]), "soft")


def _cushion(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    height = rng.uniform(0.26, 0.31)
    lean = rng.uniform(-8, 8)
    corners = [(0.17, 0.52 - height), (0.83, 0.52 - height), (0.83, 0.52 + height), (0.17, 0.52 + height)]
    sides = [(0.5, 0.56 - height), (0.8, 0.52), (0.5, 0.48 + height), (0.2, 0.52)]
    outline = turn([point for pair in zip(corners, sides, strict=True) for point in pair], lean)
    edging = int(rng.integers(3))
    if edging == 1:
        for x, y in turn(corners, lean):
            canvas.part(ellipse(x, y, 0.034, 0.034), trim.pale, "soft")
    canvas.dress(blob(outline), "soft")
    if edging == 2:
        canvas.part(stroke([*outline, outline[0]], 0.014), trim.main)


def _bottle(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    bodies = (
        [(0.06, 0.26), (0.065, 0.3), (0.135, 0.4), (0.14, 0.5), (0.14, 0.84), (0.125, 0.88)],
        [(0.11, 0.27), (0.125, 0.3), (0.13, 0.5), (0.115, 0.58), (0.13, 0.68), (0.12, 0.88)],
        [(0.055, 0.27), (0.06, 0.38), (0.13, 0.52), (0.145, 0.62), (0.145, 0.84), (0.13, 0.88)],
    )
    body = bodies[int(rng.integers(len(bodies)))]
    canvas.dress(turned(body), "round")
    neck = body[0][0]
    cap = int(rng.integers(3))
    if cap == 0:
        canvas.part(box(0.5 - neck - 0.012, 0.17, 0.5 + neck + 0.012, 0.275, 0.015), METAL, "round")
    elif cap == 1:
        canvas.part(box(0.5 - neck - 0.008, 0.2, 0.5 + neck + 0.008, 0.275, 0.012), trim.deep, "round")
        canvas.part(box(0.475, 0.13, 0.525, 0.2, 0.014), trim.pale, "round")
    else:
        canvas.part(stroke([(0.46, 0.19), (0.46, 0.1), (0.54, 0.1), (0.54, 0.19)], 0.02), trim.main)
        canvas.part(box(0.5 - neck - 0.012, 0.18, 0.5 + neck + 0.012, 0.275, 0.02), trim.main, "round")
    canvas.part(box(0.5 - neck - 0.006, 0.27, 0.5 + neck + 0.006, 0.288, 0.004), trim.pale, "round")


def _backpack(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    width = rng.uniform(0.22, 0.25)
    left, right = 0.5 - width, 0.5 + width
    canvas.part(stroke([(0.43, 0.19), (0.44, 0.1), (0.56, 0.1), (0.57, 0.19)], 0.028), trim.deep)
    for edge, out in ((left, -0.05), (right, 0.05)):
        canvas.part(stroke([(edge + 0.02, 0.34), (edge + out, 0.5), (edge + 0.02, 0.74)], 0.036), trim.deep)
    canvas.dress(box(left, 0.16, right, 0.86, rng.uniform(0.1, 0.17)), "soft")
    if rng.random() < 0.5:
        canvas.part(stroke([(left + 0.03, 0.4), (0.5, 0.34), (right - 0.03, 0.4)], 0.012), trim.pale)
        canvas.dress(box(left + 0.05, 0.54, right - 0.05, 0.8, 0.05), "soft", tone=0.94)
        canvas.part(box(left + 0.05, 0.6, right - 0.05, 0.614, 0.004), trim.deep)
        canvas.part(box(0.52, 0.6, 0.535, 0.66, 0.006), METAL)
    else:
        flap = [
            (left, 0.3),
            (left + 0.06, 0.17),
            (right - 0.06, 0.17),
            (right, 0.3),
            (right - 0.02, 0.47),
            (left + 0.02, 0.47),
        ]
        canvas.part(blob(flap), trim.main, "soft")
        for x in (0.42, 0.58):
            canvas.part(box(x - 0.014, 0.4, x + 0.014, 0.6, 0.005), trim.deep)
            canvas.part(box(x - 0.022, 0.52, x + 0.022, 0.56, 0.008), METAL)


def _tote(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    wide, drop = rng.uniform(0.25, 0.29), rng.uniform(0.09, 0.17)
    canvas.part(
        stroke([(0.4, 0.38), (0.41, drop + 0.06), (0.5, drop), (0.59, drop + 0.06), (0.6, 0.38)], 0.026), trim.deep
    )
    canvas.dress(polygon([(0.53 - wide, 0.36), (0.47 + wide, 0.36), (0.5 + wide, 0.86), (0.5 - wide, 0.86)]), "flat")
    canvas.part(
        polygon([(0.53 - wide, 0.36), (0.47 + wide, 0.36), (0.473 + wide, 0.4), (0.527 - wide, 0.4)]), trim.main
    )
    front = [(0.37, 0.46), (0.38, drop + 0.1), (0.5, drop + 0.04), (0.62, drop + 0.1), (0.63, 0.46)]
    canvas.part(stroke(front, 0.026), trim.main)
    if rng.random() < 0.4:
        canvas.part(box(0.42, 0.6, 0.58, 0.72, 0.01), trim.pale)


def _sneaker(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    ankle = rng.uniform(0.3, 0.42)
    upper: list[Point] = [
        (0.13, 0.68), (0.12, 0.52), (0.15, ankle), (0.24, ankle + 0.05), (0.34, ankle), (0.42, ankle + 0.08),
        (0.58, 0.52), (0.76, 0.57), (0.89, 0.65), (0.9, 0.72), (0.5, 0.73),
    ]  # fmt: skip
    canvas.dress(blob(upper), "soft")
    canvas.part(blob([(0.75, 0.7), (0.78, 0.6), (0.88, 0.64), (0.905, 0.71)]), trim.pale, "soft")
    canvas.part(stroke([(0.15, ankle + 0.015), (0.24, ankle + 0.065), (0.34, ankle + 0.015)], 0.026), trim.deep)
    canvas.part(blob([(0.12, 0.56), (0.16, 0.5), (0.2, 0.62), (0.18, 0.7), (0.12, 0.7)]), trim.main, "soft")
    for step in range(4):
        x, y = 0.4 + 0.055 * step, ankle + 0.1 + (0.5 - ankle) * 0.25 * step
        canvas.part(stroke([(x - 0.03, y + 0.065), (x + 0.035, y)], 0.018, smooth=False), CHALK)
    thick = rng.uniform(0.06, 0.09)
    canvas.part(box(0.1, 0.69, 0.92, 0.69 + thick, 0.035), CHALK, "round")
    canvas.part(box(0.12, 0.69 + thick - 0.018, 0.9, 0.69 + thick, 0.008), trim.deep)


def _tshirt(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    hem, sleeve = rng.uniform(0.82, 0.87), rng.uniform(0.44, 0.5)
    half: list[Point] = [(0.1, 0.17), (0.2, 0.21), (0.41, sleeve - 0.08), (0.32, sleeve), (0.235, sleeve - 0.08)]
    right = [*half, (0.24, hem)]
    outline = [(0.5 + dx, y) for dx, y in right] + [(0.5 - dx, y) for dx, y in reversed(right)]
    canvas.dress(polygon(outline), "flat")
    for sign in (-1, 1):
        canvas.part(stroke([(0.5 + sign * 0.235, sleeve - 0.08), (0.5 + sign * 0.22, 0.3)], 0.006), INK, opacity=0.3)
    vee = rng.random() < 0.35
    collar: list[Point] = [(0.4, 0.17), (0.5, 0.32 if vee else 0.25), (0.6, 0.17)]
    canvas.part(polygon(collar) if vee else ellipse(0.5, 0.17, 0.1, 0.075), trim.deep)
    canvas.part(stroke(collar, 0.02, smooth=not vee), trim.main)
    if rng.random() < 0.4:
        canvas.part(box(0.56, 0.38, 0.66, 0.49, 0.012), trim.main)


def _beanie(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    crown = rng.uniform(0.2, 0.27)
    if rng.random() < 0.6:
        canvas.part(ellipse(0.5, crown - 0.03, 0.085, 0.085), trim.pale, "soft")
    canvas.dress(
        blob(
            [
                (0.22, 0.68),
                (0.24, 0.44),
                (0.36, crown + 0.04),
                (0.5, crown),
                (0.64, crown + 0.04),
                (0.76, 0.44),
                (0.78, 0.68),
                (0.5, 0.72),
            ]
        ),
        "soft",
    )
    canvas.part(box(0.19, 0.6, 0.81, 0.78, 0.045), trim.main, "round")
    for x in np.linspace(0.22, 0.78, 17):
        canvas.part(stroke([(x, 0.615), (x, 0.765)], 0.007, smooth=False), INK, opacity=0.18)


def _watch(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    strap = rng.uniform(0.1, 0.13)
    canvas.dress(polygon([(0.5 - strap, 0.4), (0.54 - strap, 0.04), (0.46 + strap, 0.04), (0.5 + strap, 0.4)]), "round")
    canvas.dress(polygon([(0.5 - strap, 0.6), (0.54 - strap, 0.96), (0.46 + strap, 0.96), (0.5 + strap, 0.6)]), "round")
    square = rng.random() < 0.35
    canvas.part(box(0.72, 0.475, 0.77, 0.525, 0.01), METAL, "round")
    case = box(0.28, 0.28, 0.72, 0.72, 0.07) if square else ellipse(0.5, 0.5, 0.235, 0.235)
    canvas.part(case, METAL, "soft")
    dial = box(0.315, 0.315, 0.685, 0.685, 0.045) if square else ellipse(0.5, 0.5, 0.195, 0.195)
    pale = rng.random() < 0.6
    canvas.part(dial, CHALK if pale else trim.deep)
    hand = INK if pale else CHALK
    for tick in range(12):
        canvas.part(stroke(turn([(0.5, 0.33), (0.5, 0.352)], 30 * tick), 0.011, smooth=False), hand)
    for length, width, angle in ((0.1, 0.02, rng.uniform(0, 360)), (0.14, 0.014, rng.uniform(0, 360))):
        canvas.part(stroke(turn([(0.5, 0.5), (0.5, 0.5 - length)], angle), width, smooth=False), hand)
    canvas.part(ellipse(0.5, 0.5, 0.016, 0.016), trim.main)


def _umbrella(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    top, rim = rng.uniform(0.13, 0.19), 0.52
    canvas.part(stroke([(0.5, top - 0.06), (0.5, 0.84)], 0.02, smooth=False), METAL, "round")
    hook: list[Point] = [(0.5, 0.74), (0.5, 0.86), (0.56, 0.91), (0.62, 0.86), (0.62, 0.83)]
    canvas.part(stroke(hook, 0.036), WOOD if rng.random() < 0.5 else trim.deep, "soft")
    dome = [(0.08 + 0.84 * t, rim - (rim - top) * (1 - (2 * t - 1) ** 2) ** 0.55) for t in np.linspace(0, 1, 40)]
    scallops = [(0.92 - 0.84 * t, rim - 0.045 * abs(np.sin(np.pi * 4 * t))) for t in np.linspace(0, 1, 60)]
    canvas.dress(polygon([*dome, *scallops]), "round")
    for x in (0.29, 0.5, 0.71):
        rib = [(0.5, top), (0.5 + (x - 0.5) * 0.75, top + 0.14), (x, rim)]
        canvas.part(stroke(rib, 0.007), INK, opacity=0.35)


def _tent(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    peak = rng.uniform(0.2, 0.28)
    for sign in (-1, 1):
        canvas.part(stroke([(0.5 + sign * 0.2, peak + 0.2), (0.5 + sign * 0.44, 0.83)], 0.007, smooth=False), INK)
    if rng.random() < 0.5:
        outline: list[Point] = [(0.5, peak), (0.86, 0.8), (0.14, 0.8)]
        canvas.dress(polygon(outline), "round")
        for sign in (-1, 1):
            canvas.part(
                stroke([(0.5 - sign * 0.025, peak - 0.045), (0.5 + sign * 0.36, 0.8)], 0.015, smooth=False), WOOD
            )
    else:
        arch = [(0.12 + 0.76 * t, 0.8 - (0.8 - peak) * (1 - (2 * t - 1) ** 2) ** 0.6) for t in np.linspace(0, 1, 40)]
        canvas.dress(polygon(arch), "round")
    canvas.part(polygon([(0.5, peak + 0.14), (0.63, 0.8), (0.37, 0.8)]), trim.deep)
    canvas.part(polygon([(0.5, peak + 0.14), (0.63, 0.8), (0.7, 0.8)]), trim.pale)
    canvas.part(polygon([(0.5, peak + 0.14), (0.37, 0.8), (0.3, 0.8)]), trim.pale)


def _kite(canvas: Canvas, trim: Trim, rng: np.random.Generator) -> None:
    lean = rng.uniform(8, 28)
    wide, cross = rng.uniform(0.22, 0.28), rng.uniform(0.28, 0.34)
    top, right, bottom, left = turn(
        [(0.5, 0.07), (0.5 + wide, cross), (0.5, 0.69), (0.5 - wide, cross)], lean, (0.5, 0.4)
    )
    tail: list[Point] = [bottom, (bottom[0] + 0.1, 0.76), (bottom[0] - 0.01, 0.83), (bottom[0] + 0.12, 0.93)]
    canvas.part(stroke(tail, 0.009), INK)
    for x, y in tail[1:]:
        for sign in (-1, 1):
            canvas.part(polygon([(x, y), (x + sign * 0.05, y - 0.03), (x + sign * 0.05, y + 0.03)]), trim.main)
    canvas.dress(polygon([top, right, bottom, left]), "flat")
    canvas.part(polygon([top, right, bottom]), INK, opacity=0.09)
    canvas.part(stroke([top, bottom], 0.012, smooth=False), trim.pale)
    canvas.part(stroke([left, right], 0.012, smooth=False), trim.pale)
    canvas.part(stroke([top, right, bottom, left, top], 0.01, smooth=False), trim.deep)


def _darker(colour: RGB) -> RGB:
    return (colour[0] * 3 // 4, colour[1] * 3 // 4, colour[2] * 3 // 4)


SHAPES: dict[str, Draw] = {
    "mug": _mug,
    "teapot": _teapot,
    "vase": _vase,
    "lamp": _lamp,
    "chair": _chair,
    "cushion": _cushion,
    "bottle": _bottle,
    "backpack": _backpack,
    "tote": _tote,
    "sneaker": _sneaker,
    "tshirt": _tshirt,
    "beanie": _beanie,
    "watch": _watch,
    "umbrella": _umbrella,
    "tent": _tent,
    "kite": _kite,
}
LYING = frozenset({"cushion", "tshirt", "watch", "tote", "beanie"})
"""Photographed from above; the others stand on the floor, but for what flies."""
FLYING = frozenset({"kite", "umbrella"})
