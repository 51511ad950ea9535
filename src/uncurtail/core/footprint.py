"""Stage 6, the whole account: what a run drew, emitted, cost and used up, by site and phase.

The ledger counts what a run's policy acted on. This counts the rest from the same segments: power
where it was measured, other signals, the data centre around the machines (PUE), the network, and
the machines themselves. Every function is pure. Unknown is None, or told beside what is known.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from uncurtail.core.ledger import J_PER_KWH, Segment, integrate
from uncurtail.core.measured import MODEL
from uncurtail.core.section import Section
from uncurtail.core.signals import Trace

HOUR_S = 3600.0
YEAR_H = 8766.0
MILLION = 1e6


class Basis(StrEnum):
    """What a kilowatt-hour is multiplied by: two intensities never to be mixed, and a price."""

    MARGINAL = "marginal"  # consequential: what the grid emitted because this load was there
    AVERAGE = "average"  # attributional: this load's share of what the grid emitted
    PRICE = "price"  # per kWh, in the declared currency


class FootprintSection(Section):
    """What is declared about a run's footprint. The defaults change no other figure.

    The files are CSV traces with a column for each site (or its region): `average_path` and
    `price_path` beside the signal that the policy acts on, `power_path` in W, measured.
    """

    pue: float = Field(default=1.0, ge=1.0, le=5.0)  # facility energy / machine energy
    site_pue: dict[str, Annotated[float, Field(ge=1.0, le=5.0)]] = Field(default_factory=dict)
    # Aslan et al. 2018 (doi:10.1111/jiec.12630) for 2015, fixed lines; they find it halves about
    # every two years, so this errs upwards.
    network_kwh_per_gb: float = Field(default=0.06, ge=0)
    gpus: int = Field(default=4, ge=0)  # of each site; the power model's default is a 4xA100 node
    site_gpus: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    # An A100 is 181 kg (Hubblo/ADEME, the card) to 318 kg (Chien et al. 2023, with its share of
    # the server): the higher one.
    embodied_kg_per_gpu: float = Field(default=318.0, ge=0)
    gpu_life_years: float = Field(default=5.0, gt=0)
    average_path: str | None = None
    price_path: str | None = None
    power_path: str | None = None
    currency: str = Field(default="EUR", min_length=1)

    def pue_of(self, site: str) -> float:
        """Facility energy over machine energy at a site."""
        return self.site_pue.get(site, self.pue)

    def gpus_of(self, site: str) -> int:
        """How many GPUs a site has."""
        return self.site_gpus.get(site, self.gpus)


@dataclass(frozen=True, slots=True)
class Draw:
    """Power of a site's machines over a stretch: `measured`, else declared for its phase.

    `own_w` of it came from the site's own sun and battery; `charge_w` went from the grid into the
    battery on top.
    """

    site: str
    phase: str
    start: float
    end: float
    power_w: float
    measured: bool
    own_w: float = 0.0
    charge_w: float = 0.0

    def grid_w(self, pue: float) -> float:
        """What the facility takes from the grid: its overhead is not what the microgrid carries."""
        return max(0.0, self.power_w * pue - self.own_w) + self.charge_w


@dataclass(slots=True)
class Account:
    """What one site drew in one phase, at the meter of its facility.

    `amounts` are g (both intensities) or currency (price), over the energy for which they were
    known; `unknown_j` is the rest, by basis.
    """

    duration_s: float = 0.0
    energy_j: float = 0.0
    measured_j: float = 0.0
    amounts: dict[str, float] = field(default_factory=dict)
    unknown_j: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Account") -> None:
        """Count another one in."""
        self.duration_s += other.duration_s
        self.energy_j += other.energy_j
        self.measured_j += other.measured_j
        for mine, theirs in ((self.amounts, other.amounts), (self.unknown_j, other.unknown_j)):
            for basis, value in theirs.items():
                mine[basis] = mine.get(basis, 0.0) + value

    def amount(self, basis: Basis) -> float | None:
        """In g or currency; None when nothing of its energy could be priced."""
        if basis not in self.amounts or 0 < self.energy_j <= self.unknown_j[basis]:
            return None
        return self.amounts[basis]


Signals = Mapping[Basis, Mapping[str, Trace]]
Accounts = dict[tuple[str, str], Account]


def draws(segments: Iterable[Segment], measured: Mapping[str, Trace] | None = None) -> list[Draw]:
    """The segments with the power that was measured (W, by site), where there is any.

    A segment is cut where the measurement changes; a stretch that it does not know keeps its watts,
    and says whether the run measured or declared them.
    """
    found: list[Draw] = []
    for segment in segments:
        trace, flow = (measured or {}).get(segment.site), segment.flow
        own = (0.0, 0.0) if flow is None else (flow.solar_w + flow.battery_w, flow.grid_charge_w)
        inner = [] if trace is None else trace.changes(segment.start, segment.end).tolist()
        edges = [segment.start, *(t for t in inner if t < segment.end), segment.end]
        for start, end in pairwise(edges):
            watts = None if trace is None else trace.at(start)
            power_w = segment.power_w if watts is None else watts
            is_measured = watts is not None or segment.power_from != MODEL
            found.append(Draw(segment.site, segment.phase, start, end, power_w, is_measured, *own))
    return found


def account(drawn: Sequence[Draw], signals: Signals, pue: Mapping[str, float]) -> Accounts:
    """Energy, and what every signal makes of it, by (site, phase).

    Args:
        drawn: What the machines drew.
        signals: For each basis, each site's trace; a site without one is unknown in that basis.
        pue: Facility energy over machine energy, by site; 1 where none is named.
    """
    accounts: Accounts = {}
    by_site: dict[str, list[Draw]] = {}
    for draw in drawn:
        by_site.setdefault(draw.site, []).append(draw)
    for site, rows in by_site.items():
        starts, ends = np.array([r.start for r in rows]), np.array([r.end for r in rows])
        known = {
            basis: integrate(traces[site], starts, ends) if site in traces else None
            for basis, traces in signals.items()
        }
        for i, row in enumerate(rows):
            watts = row.power_w * pue.get(site, 1.0)
            seconds = row.end - row.start
            one = Account(seconds, watts * seconds, watts * seconds if row.measured else 0.0)
            grid_w = row.grid_w(pue.get(site, 1.0))
            for basis, sums in known.items():
                amount, known_s = (0.0, 0.0) if sums is None else (sums[0][i], sums[1][i])
                one.amounts[basis] = grid_w * float(amount) / J_PER_KWH
                # What is left of rounding is not unknown.
                missing_s = seconds - float(known_s)
                one.unknown_j[basis] = grid_w * missing_s if missing_s > 1e-6 * seconds else 0.0
            accounts.setdefault((site, row.phase), Account()).add(one)
    return accounts


def total(accounts: Accounts, *, site: str | None = None) -> Account:
    """The sum over a site's phases, or over everything."""
    everything = Account()
    for (of_site, _), one in accounts.items():
        if site in (None, of_site):
            everything.add(one)
    return everything


@dataclass(frozen=True, slots=True)
class Embodied:
    """Carbon of making the GPUs, amortised over their life: for hours used, and hours reserved."""

    used_gpu_h: float
    used_kg: float
    reserved_gpu_h: float
    reserved_kg: float


def embodied(section: FootprintSection, used_s: Mapping[str, float], reserved_s: float) -> Embodied:
    """A run's part of the making of its GPUs.

    Args:
        section: GPUs of each site, kg of each, years of life.
        used_s: How long each site was provisioned, starts included.
        reserved_s: How long the run lasted: nobody else had those GPUs meanwhile.
    """
    used_gpu_h = sum(section.gpus_of(site) * s for site, s in used_s.items()) / HOUR_S
    reserved_gpu_h = sum(section.gpus_of(site) for site in used_s) * reserved_s / HOUR_S
    kg_per_gpu_h = section.embodied_kg_per_gpu / (section.gpu_life_years * YEAR_H)
    return Embodied(
        used_gpu_h, used_gpu_h * kg_per_gpu_h, reserved_gpu_h, reserved_gpu_h * kg_per_gpu_h
    )


@dataclass(frozen=True, slots=True)
class Network:
    """What moving models and updates took."""

    gb: float
    kwh: float
    kg: float | None


def network(section: FootprintSection, num_bytes: float, g_per_kwh: float | None) -> Network:
    """Bytes moved to energy, and at an intensity to emissions (None where that is unknown)."""
    gb = num_bytes / 1e9
    kwh = gb * section.network_kwh_per_gb
    return Network(gb, kwh, None if g_per_kwh is None else kwh * g_per_kwh / 1000.0)


def carbon_intensity(operational_kg: float, embodied_kg: float, tokens: int) -> float | None:
    """The Software Carbon Intensity (E*I + M) / R in kgCO2 per million tokens; None without any."""
    return (operational_kg + embodied_kg) / (tokens / MILLION) if tokens > 0 else None


def to_json(one: Account) -> dict[str, Any]:
    """An account in the units of reports: h, kWh, kg, currency; shares 0-1; unknown is None."""
    body: dict[str, Any] = {
        "hours": one.duration_s / HOUR_S,
        "energy_kwh": one.energy_j / J_PER_KWH,
        "measured_share": one.measured_j / one.energy_j if one.energy_j > 0 else None,
    }
    for basis in Basis:
        amount = one.amount(basis)
        name = "cost" if basis is Basis.PRICE else f"{basis}_kg"
        divisor = 1.0 if basis is Basis.PRICE else 1000.0
        body[name] = None if amount is None else amount / divisor
        unknown_j = one.unknown_j.get(basis, one.energy_j)
        body[f"{basis}_known_share"] = 1.0 - unknown_j / one.energy_j if one.energy_j > 0 else None
    return body
