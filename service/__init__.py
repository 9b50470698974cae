"""The online half: answers over HTTP from the catalog that the offline half published."""

__version__ = "0.1.0"
