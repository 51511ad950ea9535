"""Stage 1: what a kWh costs at each site: by a price signal, or else as declared for the site."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from uncurtail.core.section import Section
from uncurtail.core.signals import EUR_PER_KWH, Kind, Reading, Signal, Trace, usable


class PriceSection(Section):
    """Where prices in EUR/kWh come from, beside what each site declares for when nobody knows.

    A file has a column for each site, or for its region; what it says of the time to come is taken
    as known, as day-ahead prices are. Prometheus is asked in real time alone.
    """

    source: Literal["csv", "prometheus"]
    path: str | None = None
    allow_gaps: bool = False
    prometheus_query: str | None = None  # in EUR/kWh, at energy.prometheus_url; {region} as there
    # Two hourly prices that were missed. A file says itself until when a price holds.
    stale_after_s: float = Field(default=7200.0, gt=0)
    poll_wall_s: float = Field(default=60.0, gt=0)

    @property
    def stale_s(self) -> float:
        """How old a price may be."""
        return math.inf if self.source == "csv" else self.stale_after_s

    @model_validator(mode="after")
    def _a_source_has_what_it_needs(self) -> Self:
        if self.source == "csv" and self.path is None:
            raise ValueError("source 'csv' needs path: --set energy.price.path=FILE")
        if self.source == "prometheus" and self.prometheus_query is None:
            raise ValueError("source 'prometheus' needs prometheus_query")
        return self


class Price(NamedTuple):
    """EUR/kWh, None where nobody says; `declared`: the site's own word, for want of a signal."""

    eur_per_kwh: float | None
    declared: bool


def signal(source: str) -> Signal:
    """What the numbers of a price are."""
    return Signal(Kind.PRICE, EUR_PER_KWH, source)


def price_at(
    reading: Reading | None, now: float, stale_after_s: float, declared: float | None
) -> Price:
    """The price in force: what was read if that is fresh and can be, else what was declared."""
    value = usable(reading, now, stale_after_s, EUR_PER_KWH)
    return Price(declared, declared=True) if value is None else Price(value, declared=False)


def filled(trace: Trace, declared: float | None, start: float, until: float) -> Trace:
    """A price over [start, until), with what was declared wherever the trace does not know."""
    other = np.nan if declared is None else declared
    inside = (trace.times > start) & (trace.times < min(trace.end, until))
    now = trace.at(start)
    times = [start, *trace.times[inside].tolist()]
    values = [np.nan if now is None else now, *trace.values[inside].tolist()]
    if start < trace.end < until:
        times.append(trace.end)
        values.append(np.nan)
    filled_values = [value if np.isfinite(value) else other for value in values]
    return Trace(np.array(times), np.array(filled_values), until, trace.signal)


def unknown(prices: Mapping[str, Price]) -> str | None:
    """Which sites' prices are not known by a signal, and what counts instead; None for none."""
    declared = [
        f"{site} at its declared {price.eur_per_kwh:g} EUR/kWh"
        for site, price in prices.items()
        if price.declared and price.eur_per_kwh is not None
    ]
    nothing = [site for site, price in prices.items() if price.eur_per_kwh is None]
    counted = f"no price: {', '.join(declared)}" if declared else ""
    lacking = f"{', '.join(nothing)} without a price: their cost is not known" if nothing else ""
    return "; ".join(part for part in (counted, lacking) if part) or None
