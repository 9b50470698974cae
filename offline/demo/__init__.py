"""A synthetic shop: drawn products and simulated shoppers, written as raw input for `offline.ingest generic`.

Nothing in it is real. What shoppers like about a picture (palette and pattern) is named by no text of the catalog, so
that only an image can tell it; category, brand, popularity, novelty and order matter too. `parameters.py` holds every
number of the simulation, `write.py` is the job, and the rest are its parts:

    traits, wording -> catalog -> render (with canvas, patterns, shapes) -> write
                              \\-> shoppers -> dirt -------------------------^
"""
