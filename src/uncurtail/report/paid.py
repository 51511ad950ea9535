"""What a run's power cost by its own record: prices that were read, or else were declared."""

import math

import numpy as np

from uncurtail.core.fleet import Phase
from uncurtail.core.ledger import J_PER_KWH
from uncurtail.core.pricing import PriceSection, price_at
from uncurtail.core.signals import Trace, in_force
from uncurtail.report.rundata import RunData


def price_traces(run: RunData) -> dict[str, Trace]:
    """Each site's price in EUR/kWh as it was counted, stretch by stretch; none for no price."""
    found: dict[str, Trace] = {}
    for site in run.sites:
        rows = [segment for segment in run.segments if segment.site == site]
        told = [row.price_eur_per_kwh for row in rows]
        if any(price is not None for price in told):
            values = np.array([np.nan if price is None else price for price in told])
            found[site] = Trace(np.array([row.start for row in rows]), values, rows[-1].end)
    return found


def declared_note(run: RunData) -> str | None:
    """How much was counted at declared prices though a price signal was asked for; None if none."""
    asked = run.config.get("energy", {}).get("price")
    if not asked:
        return None
    stale_s = PriceSection.model_validate(asked).stale_s
    told = run.folder.read_prices()
    energy_j = 0.0
    for site in run.sites:
        rows = [reading for reading in told if reading.site == site]
        for segment in run.segments:
            if segment.site != site or segment.phase == Phase.RELEASED:
                continue
            reading = in_force(rows, segment.start)
            price = price_at(reading, segment.start, stale_s, math.nan)
            if price.declared and segment.price_eur_per_kwh is not None:
                energy_j += segment.grid_w * (segment.end - segment.start)
    if energy_j <= 0.0:
        return None
    return f"{energy_j / J_PER_KWH:.3g} kWh are counted at declared prices: no signal knew them"
