"""Stage 6: phases and power to energy, emissions and cost, by site and phase.

Intensity is held stepwise: each value holds until the next, however late that comes. A policy calls
a value unknown once it is stale; what a site draws until it is gone is priced by the last one
heard. Every phase counts, and time of which no value was heard, or of which the source said that it
knows none, counts as energy without emissions (`unpriced_j`), never as zero.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.microgrid import Flow
from uncurtail.core.signals import Trace

J_PER_KWH = 3.6e6

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time in which a site's phase, power and intensity did not change.

    `power_w` is what its machines drew; `flow` says from where, None: all of it from the grid.
    """

    site: str
    phase: str
    start: float
    end: float
    power_w: float
    intensity_g_per_kwh: float | None
    flow: Flow | None = None
    price_eur_per_kwh: float | None = None
    power_from: str = "model"  # or what measured it

    @property
    def grid_w(self) -> float:
        """All that the grid gave."""
        return self.power_w if self.flow is None else self.flow.grid_w

    def with_power(self, power_w: float, until: float) -> "Segment":
        """The same up to `until`, at another power."""
        return replace(self, end=until, power_w=power_w)


@dataclass(slots=True, kw_only=True)
class Energy:
    """Energy, where it came from, and what it emitted and cost. `clean_j`: below the threshold.

    Of `energy_j`, the site's own sun and battery gave `solar_j` and `battery_j`, which emit and
    cost nothing and count as clean; `stored_j` is what the grid gave the battery on top, and
    `grid_j` all that the grid gave. Emissions and costs are the grid's alone: of a stored joule, at
    the time it was stored. `unpriced_j` is the grid's energy of unknown intensity.
    """

    energy_j: float = 0.0
    emissions_g: float = 0.0
    clean_j: float = 0.0
    unpriced_j: float = 0.0
    solar_j: float = 0.0
    battery_j: float = 0.0
    stored_j: float = 0.0
    cost_eur: float = 0.0

    @property
    def grid_j(self) -> float:
        """All that the grid delivered."""
        return self.energy_j - self.solar_j - self.battery_j + self.stored_j

    def add(self, other: Self) -> None:
        """Count another's as well."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass(slots=True, kw_only=True)
class Tally(Energy):
    """What one site drew in one phase. `uncosted_j` is the grid's energy of unknown price."""

    duration_s: float = 0.0
    uncosted_j: float = 0.0


def own_kwh(total: Energy) -> dict[str, float]:
    """Where the power of a site with a microgrid came from.

    `stored_kwh` went from the grid into the battery, and is part of what the grid gave.
    """
    return {
        "solar_kwh": total.solar_j / J_PER_KWH,
        "battery_kwh": total.battery_j / J_PER_KWH,
        "grid_kwh": total.grid_j / J_PER_KWH,
        "stored_kwh": total.stored_j / J_PER_KWH,
    }


def tally(segment: Segment, clean_below_g_per_kwh: float) -> Tally:
    """What one segment amounts to."""
    duration_s = segment.end - segment.start
    found = Tally(duration_s=duration_s, energy_j=segment.power_w * duration_s)
    if segment.flow is not None:
        flow = segment.flow
        found.solar_j, found.battery_j = flow.solar_w * duration_s, flow.battery_w * duration_s
        found.stored_j = flow.grid_charge_w * duration_s
    grid_j = segment.grid_w * duration_s
    if segment.price_eur_per_kwh is None:
        found.uncosted_j = grid_j
    else:
        found.cost_eur = grid_j / J_PER_KWH * segment.price_eur_per_kwh
    if segment.intensity_g_per_kwh is None:
        found.unpriced_j = grid_j
        found.clean_j = found.solar_j + found.battery_j
        return found
    found.emissions_g = grid_j / J_PER_KWH * segment.intensity_g_per_kwh
    is_clean = segment.intensity_g_per_kwh < clean_below_g_per_kwh
    found.clean_j = found.energy_j if is_clean else found.solar_j + found.battery_j
    return found


class Ledger:
    """Energy and emissions so far, by (site, phase); a plain value that grows by segments."""

    def __init__(self, clean_below_g_per_kwh: float) -> None:
        self.clean_below_g_per_kwh = clean_below_g_per_kwh
        self.tallies: dict[tuple[str, str], Tally] = {}

    def add(self, segment: Segment) -> None:
        """Count one segment. Empty ones change nothing.

        Raises:
            ValueError: The segment ends before it starts.
        """
        duration_s = segment.end - segment.start
        if duration_s < 0:
            raise ValueError(f"a segment of {segment.site} ends {-duration_s} s before it starts")
        if duration_s == 0:
            return
        total = self.tallies.setdefault((segment.site, segment.phase), Tally())
        total.add(tally(segment, self.clean_below_g_per_kwh))

    def total(self, *, site: str | None = None, phase: str | None = None) -> Tally:
        """The sum over everything that matches."""
        total = Tally()
        for (of_site, of_phase), found in self.tallies.items():
            if site in (None, of_site) and phase in (None, of_phase):
                total.add(found)
        return total

    def to_json(self) -> dict[str, Any]:
        """{site: {phase: tally}}, as a commit holds it."""
        body: dict[str, Any] = {}
        for (site, phase), found in sorted(self.tallies.items()):
            body.setdefault(site, {})[phase] = asdict(found)
        return body

    @classmethod
    def from_json(
        cls, body: Mapping[str, Mapping[str, Any]], clean_below_g_per_kwh: float
    ) -> "Ledger":
        """The ledger of a commit."""
        ledger = cls(clean_below_g_per_kwh)
        for site, phases in body.items():
            for phase, found in phases.items():
                ledger.tallies[site, phase] = Tally(**found)
        return ledger

    @classmethod
    def from_segments(cls, segments: Iterable[Segment], clean_below_g_per_kwh: float) -> "Ledger":
        """The ledger of these segments."""
        ledger = cls(clean_below_g_per_kwh)
        for segment in segments:
            ledger.add(segment)
        return ledger


def integrate(trace: Trace, starts: Array, ends: Array) -> tuple[Array, Array]:
    """What a trace adds up to over each stretch [start, end), and for how long it was known.

    Args:
        trace: Held stepwise.
        starts: Unix seconds, shape (n,).
        ends: Unix seconds, none before its start.

    Returns:
        (value times seconds, known seconds), each of shape (n,).
    """
    inside = trace.times < trace.end
    if not inside.any() or not starts.size:
        return np.zeros(starts.size), np.zeros(starts.size)
    # Sums of unix seconds lose digits; those of seconds since the first do not.
    origin = float(trace.times[0])
    times, values = trace.times[inside] - origin, trace.values[inside]
    last = min(trace.end - origin, max(float(ends.max()) - origin, float(times[-1])) + 1.0)
    knots = np.append(times, last)
    known = np.isfinite(values)
    lengths = np.diff(knots)
    amounts = np.append(0.0, np.cumsum(np.where(known, values, 0.0) * lengths))
    seconds = np.append(0.0, np.cumsum(np.where(known, lengths, 0.0)))

    def over(sums: Array) -> Array:
        # Outside the knots np.interp stands still: nothing is known there.
        return np.interp(ends - origin, knots, sums) - np.interp(starts - origin, knots, sums)

    return over(amounts), over(seconds)


def emissions_g(trace: Trace, start: float, end: float, power_w: float) -> float | None:
    """Emissions of a constant load over [start, end); None where the trace does not know."""
    amounts, known_s = integrate(trace, np.array([start]), np.array([end]))
    if known_s[0] < (end - start) * (1.0 - 1e-9):  # the sums round
        return None
    return power_w / J_PER_KWH * float(amounts[0])


def baselines_kg(
    traces: Mapping[str, Trace], start: float, train_s: float, train_power_w: Mapping[str, float]
) -> dict[str, float | None]:
    """What each site alone, always on from the run's start, would emit for the same training.

    The method of arXiv:2602.22760: the same site-hours at training power, nothing for starting
    or idling. None where the run's own readings do not reach that far.
    """
    result: dict[str, float | None] = {}
    for site, trace in traces.items():
        grams = emissions_g(trace, start, start + train_s, train_power_w[site])
        result[site] = None if grams is None else grams / 1000.0
    return result
