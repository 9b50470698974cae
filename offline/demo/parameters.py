"""Every number of the simulated shop in one place. Weights are in units of utility, whose noise is standard Gumbel."""

from __future__ import annotations

from dataclasses import dataclass

from model.errors import InvalidInputError


@dataclass(frozen=True)
class DemoParameters:
    """What the demo data is made from; the manifest keeps it."""

    num_items: int = 240
    num_shoppers: int = 1500

    start_s: int = 1_672_531_200
    """First second of the period (2023-01-01 UTC)."""
    num_days: int = 730
    """The period in which people buy; the log is exported days later, when late duplicates have arrived."""

    min_events: int = 5
    mean_further_events: float = 3.1
    """Events of a shopper: `min_events` + Poisson(this), cut at `max_events`."""
    max_events: int = 14
    visit_gap_days: float = 40.0
    """Median days between two purchases of a shopper; the last one lies up to this long before the end."""
    gap_spread: float = 0.6
    """Standard deviation of the logarithm of a gap."""
    basket_probability: float = 0.04
    """A purchase shares the second of the one before it."""
    date_only_share: float = 0.05
    """Shoppers whose events carry a date without time (a shop's older till), so that a day's events tie."""

    established_share: float = 0.45
    """Items on sale from the first day; those neither established nor young launch in between."""
    young_share: float = 0.12
    """Items launched in the last weeks: too young for collaborative filtering."""
    young_days: tuple[float, float] = (10.0, 28.0)
    """A young item launches this many days before the end (shortest, longest)."""
    launches_end_days: float = 120.0
    """All other items launch before this many days from the end."""

    palette_weight: float = 4.5
    pattern_weight: float = 3.2
    taste_concentration: float = 0.2
    """Dirichlet parameter of a shopper's taste over palettes and patterns: small means one clear favourite."""
    drift_share: float = 0.25
    """Shoppers whose palette taste moves to a second, independent one over their history."""
    category_weight: float = 3.0
    """For each of a shopper's 2 to 3 favoured categories."""
    brand_weight: float = 1.5
    """For each of a shopper's 1 to 2 favoured brands."""
    popularity_weight: float = 0.5
    """Times a standard normal draw per item."""
    novelty_weight: float = 1.5
    """For an item on sale for at most `novelty_days`: shops promote new arrivals."""
    novelty_days: float = 30.0
    complement_weight: float = 1.0
    """For categories that go with the one bought last (a teapot after a mug)."""

    missing_image_share: float = 0.03
    missing_brand_share: float = 0.06
    html_share: float = 0.1
    empty_description_share: float = 0.04
    duplicate_event_share: float = 0.02
    unknown_item_share: float = 0.005

    def __post_init__(self) -> None:
        if not 2 <= self.min_events <= self.max_events:
            raise InvalidInputError(
                f"min_events is {self.min_events}: it must be from 2 to max_events, {self.max_events}", "min_events"
            )
        if self.num_established < self.max_events:
            raise InvalidInputError(
                f"num_items is {self.num_items}, of which {self.num_established} are on sale from the first day: a "
                f"shopper may buy {self.max_events} different ones, make more",
                "num_items",
            )
        if self.num_shoppers < 1:
            raise InvalidInputError(f"num_shoppers is {self.num_shoppers}: at least 1 is needed", "num_shoppers")

    @property
    def num_established(self) -> int:
        """Items on sale from the first day, so that whoever comes finds one that they have not bought."""
        return round(self.established_share * self.num_items)
