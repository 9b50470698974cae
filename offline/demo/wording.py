"""The words of the catalog: sixteen categories with their materials, uses, care and sizes, and the brands.

A word is chosen without knowledge of how the product looks; `traits.TRAIT_WORDS` may not occur.
"""

from __future__ import annotations

from dataclasses import dataclass

BRANDS = (
    "Halden", "Norvik", "Casa Lume", "Tarn & Wick", "Oberlin", "Maruya", "Pell", "Solvane", "Birkhus", "Ettore",
    "Quill", "Wendover",
)  # fmt: skip


@dataclass(frozen=True)
class Category:
    """One kind of product and what may be said of it."""

    name: str
    shape: str
    """Key of `shapes.SHAPES`."""
    nouns: tuple[str, ...]
    materials: tuple[str, ...]
    uses: tuple[str, ...]
    cares: tuple[str, ...]
    sizes: tuple[str, ...]
    complements: tuple[str, ...]
    """Shapes that shoppers often buy after this one."""


CATEGORIES = (
    Category(
        "Mugs", "mug", ("Mug", "Coffee Mug"), ("Ceramic", "Stoneware", "Porcelain"),
        ("Made for the first coffee of the day.", "The handle leaves room for three fingers.",
         "Stacks with its siblings on a narrow shelf."),
        ("Safe in dishwasher and microwave.", "Wash by hand to keep the glaze smooth."),
        ("Holds 300 ml.", "Holds 350 ml.", "Holds 420 ml."), ("teapot", "bottle"),
    ),
    Category(
        "Teapots", "teapot", ("Teapot", "Tea Pot"), ("Stoneware", "Porcelain", "Enamel"),
        ("Pours without a drip.", "A removable strainer sits under the lid.", "Keeps a long afternoon supplied."),
        ("Rinse with water only.", "Safe in the dishwasher."),
        ("Fills four cups.", "Fills six cups.", "Holds 900 ml."), ("mug", "cushion"),
    ),
    Category(
        "Vases", "vase", ("Vase", "Flower Vase"), ("Glass", "Ceramic", "Stoneware"),
        ("Stands firmly on a small foot.", "For dried branches or a single stem.",
         "At home on a sideboard or a windowsill."),
        ("Wipe with a damp cloth.", "Rinse after each bouquet."),
        ("Height 22 cm.", "Height 28 cm.", "Height 34 cm."), ("lamp", "cushion"),
    ),
    Category(
        "Lamps", "lamp", ("Table Lamp", "Bedside Lamp"), ("Linen", "Cotton", "Paper"),
        ("Sits beside a bed or on a desk.", "The shade spreads a calm glow.", "A dimmer is built into the cord."),
        ("Dust with a dry brush.", "Bulb not included."),
        ("Height 38 cm.", "Height 45 cm.", "Height 52 cm."), ("chair", "cushion"),
    ),
    Category(
        "Chairs", "chair", ("Chair", "Dining Chair"), ("Beech", "Ash", "Upholstered"),
        ("Comfortable through a long dinner.", "The back follows the spine.", "Fits under most tables."),
        ("Tighten the screws once a year.", "Clean with mild soap."),
        ("Seat height 45 cm.", "Seat height 47 cm.", "Carries 120 kg."), ("cushion", "lamp"),
    ),
    Category(
        "Cushions", "cushion", ("Cushion", "Throw Pillow"), ("Cotton", "Linen", "Velvet"),
        ("A hidden zip keeps the cover neat.", "For the sofa or a reading corner.", "Firm enough to lean on."),
        ("Wash the cover at 30 degrees.", "Air it in the shade."),
        ("45 by 45 cm.", "50 by 50 cm.", "40 by 40 cm."), ("chair", "lamp"),
    ),
    Category(
        "Bottles", "bottle", ("Bottle", "Drinking Bottle"), ("Steel", "Glass", "Aluminium"),
        ("Fits the side pocket of a bag.", "The lid closes tight.", "Keeps water fresh on the road."),
        ("Clean with a bottle brush.", "The lid goes into the dishwasher."),
        ("Holds 500 ml.", "Holds 750 ml.", "Holds 1 litre."), ("backpack", "tent"),
    ),
    Category(
        "Backpacks", "backpack", ("Backpack", "Day Pack"), ("Canvas", "Nylon", "Waxed Cotton"),
        ("A padded sleeve takes a laptop.", "For the commute and the weekend.", "Wide straps share the load."),
        ("Spot clean only.", "Brush off dry dirt."),
        ("Volume 18 litres.", "Volume 22 litres.", "Volume 26 litres."), ("bottle", "tent"),
    ),
    Category(
        "Tote Bags", "tote", ("Tote Bag", "Shopper Bag"), ("Canvas", "Cotton", "Jute"),
        ("Carries books, bread and a bottle.", "Folds flat into a drawer.", "Long handles go over the shoulder."),
        ("Wash at 30 degrees.", "Iron on the inside."),
        ("38 by 42 cm.", "40 by 36 cm.", "Carries 10 kg."), ("tshirt", "umbrella"),
    ),
    Category(
        "Sneakers", "sneaker", ("Sneaker", "Low Sneaker"), ("Canvas", "Leather", "Knit"),
        ("A cushioned sole for long walks.", "Easy to slip on.", "Grips on wet pavement."),
        ("Brush clean and let dry in the air.", "Change the insole after a season."),
        ("Sizes 36 to 46.", "Runs true to size.", "Weighs 280 g."), ("tshirt", "beanie"),
    ),
    Category(
        "T-Shirts", "tshirt", ("T-Shirt", "Tee"), ("Cotton", "Jersey", "Hemp"),
        ("Cut straight, with a firm collar.", "Soft from the first day.", "Worn alone or under a jacket."),
        ("Wash inside out at 30 degrees.", "Do not tumble dry."),
        ("Sizes XS to XXL.", "Regular fit.", "Fabric weight 180 g."), ("sneaker", "beanie"),
    ),
    Category(
        "Beanies", "beanie", ("Beanie", "Knit Hat"), ("Wool", "Merino", "Cotton"),
        ("Covers the ears in the wind.", "The cuff can be turned twice.", "Packs into a coat pocket."),
        ("Wash by hand.", "Dry flat."),
        ("One size.", "Fits heads of 54 to 60 cm.", "Weighs 70 g."), ("sneaker", "watch"),
    ),
    Category(
        "Watches", "watch", ("Watch", "Wrist Watch"), ("Leather", "Nylon", "Steel"),
        ("The strap changes without tools.", "Easy to read at a glance.", "Thin enough for any sleeve."),
        ("Splash proof.", "Have the battery changed every three years."),
        ("Case 36 mm.", "Case 38 mm.", "Case 40 mm."), ("tshirt", "backpack"),
    ),
    Category(
        "Umbrellas", "umbrella", ("Umbrella", "Stick Umbrella"), ("Polyester", "Nylon", "Pongee"),
        ("Opens with one hand.", "Eight ribs stand up to gusts.", "The curved handle hooks over a chair."),
        ("Dry it open.", "Store it dry."),
        ("Span 100 cm.", "Span 108 cm.", "Length 88 cm."), ("tote", "sneaker"),
    ),
    Category(
        "Tents", "tent", ("Tent", "Camping Tent"), ("Nylon", "Polyester", "Canvas"),
        ("Pitched by one person in ten minutes.", "The porch keeps boots dry.", "Vents stop condensation."),
        ("Dry completely before packing.", "Treat the seams each spring."),
        ("Sleeps two.", "Sleeps three.", "Packed weight 2.4 kg."), ("kite", "bottle"),
    ),
    Category(
        "Kites", "kite", ("Kite", "Diamond Kite"), ("Nylon", "Ripstop", "Paper"),
        ("Lifts in a gentle breeze.", "A long tail keeps it steady.", "Line and winder are in the bag."),
        ("Rinse off salt after a day at the sea.", "Store the spars apart."),
        ("Span 70 cm.", "Span 90 cm.", "From 6 years."), ("tent", "backpack"),
    ),
)  # fmt: skip
