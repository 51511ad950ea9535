"""Readings in, power out: keeps the energy series and the ledger in step with simulated time."""

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from uncurtail.core import pricing
from uncurtail.core.ending import Spent
from uncurtail.core.fleet import Phase, SiteSection
from uncurtail.core.ledger import J_PER_KWH, Ledger, Segment
from uncurtail.core.pricing import Price
from uncurtail.core.signals import Kind, Reading
from uncurtail.ports import Feed, Prices, Record


@dataclass(frozen=True, slots=True)
class Instruments:
    """What a meter reads and writes. `price_stale_after_s`: how old a price may be."""

    feed: Feed
    record: Record
    prices: Prices | None = None
    price_stale_after_s: float = math.inf


class Meter:
    """Integrates every site's power from `start` on, cut wherever its signals or phase change.

    What was cut is in the series and the ledger; `phases` draw from the last cut on.
    """

    def __init__(
        self,
        sites: Mapping[str, SiteSection],
        phases: Mapping[str, Phase],
        instruments: Instruments,
        ledger: Ledger,
        start: float,
    ) -> None:
        self._sites = sites
        self._phases = dict(phases)
        self._with = instruments
        self._feed, self._record = instruments.feed, instruments.record
        self.since = start
        self._read_until = start
        self._priced_until = start - 1.0
        self.ledger = ledger
        self.readings: dict[str, Reading] = {}
        self._prices: dict[str, Reading] = {}

    def resume(self, readings: Mapping[str, Reading], read_until: float) -> None:
        """Go on with the readings of an earlier coordinator."""
        self.readings = dict(readings)
        self._read_until = read_until

    def begin(self) -> list[Reading]:
        """Take the value in force at the start."""
        return self._take(self.since - 1.0, self.since)

    def advance(self, now: float) -> list[Reading]:
        """Take every reading up to `now`, each at its own time, however late this tick comes."""
        return self._take(self._read_until, now)

    def trouble(self, now: float) -> str | None:
        """What is wrong with prices, where there should be any: what fails, and what counts."""
        if self._with.prices is None:
            return None
        counted = pricing.unknown({name: self._price(name, now) for name in self._sites})
        said = [part for part in (self._with.prices.trouble, counted) if part is not None]
        return "; ".join(said) or None

    def spent(self, now: float) -> Spent:
        """What was emitted and paid up to `now`, the time since the last cut included."""
        total = self.ledger.total()
        kg, eur = total.emissions_g / 1000.0, total.cost_eur
        kg_per_s = eur_per_s = 0.0
        for name, site in self._sites.items():
            power_w = site.power_w(self._phases[name])
            kg_per_s += power_w * (self._value(name) or 0.0) / J_PER_KWH / 1000.0
            eur_per_s += power_w * (self._price(name, now).eur_per_kwh or 0.0) / J_PER_KWH
        since_s = max(0.0, now - self.since)
        return Spent(now, kg + kg_per_s * since_s, eur + eur_per_s * since_s, kg_per_s, eur_per_s)

    def change(self, phases: Mapping[str, Phase], now: float) -> None:
        """From `now` on, sites are in these phases."""
        if phases != self._phases:
            self.cut(now)
            self._phases = dict(phases)

    def cut(self, until: float) -> None:
        """Bring series and ledger up to `until`."""
        for stale in sorted({t for t in self._stale_at() if self.since < t < until}):
            self._cut(stale)
        self._cut(until)

    def _cut(self, until: float) -> None:
        if until <= self.since:
            return
        power_w = {name: site.power_w(self._phases[name]) for name, site in self._sites.items()}
        drawn = self._feed.draw(self.since, until, power_w)
        segments = [
            Segment(
                name,
                self._phases[name],
                self.since,
                until,
                power_w[name],
                self._value(name),
                self._price(name, self.since).eur_per_kwh,
            )
            for name in self._sites
        ]
        for segment in segments:
            self.ledger.add(segment)
        self._record.power([(segment, drawn[segment.site]) for segment in segments])
        self.since = until

    def _value(self, site: str) -> float | None:
        reading = self.readings.get(site)
        if reading is None or reading.value is None or not math.isfinite(reading.value):
            return None
        return reading.value

    def _price(self, site: str, now: float) -> Price:
        reading, declared = self._prices.get(site), self._sites[site].price_eur_per_kwh
        return pricing.price_at(reading, now, self._with.price_stale_after_s, declared)

    def _stale_at(self) -> Iterator[float]:
        """When what is known does not count any more: files hold whole milliseconds."""
        for reading in self._prices.values():
            yield reading.as_of + self._with.price_stale_after_s + 0.001

    def _take(self, after: float, until: float) -> list[Reading]:
        taken = self._feed.readings(after, until)
        for reading in heapq.merge(taken, self._news(until), key=_time):
            known = self._prices if reading.signal.kind is Kind.PRICE else self.readings
            before = known.get(reading.site)
            if before is None or before.value != reading.value or self._lapsed(before, reading):
                self.cut(min(reading.t, until))
            known[reading.site] = reading
            if reading.signal.kind is Kind.PRICE:
                self._record.price(reading)
            else:
                self._record.reading(reading)
        self._read_until = max(self._read_until, until)
        return taken

    def _news(self, until: float) -> list[Reading]:
        """The prices that became known since the last call."""
        if self._with.prices is None or until <= self._priced_until:
            return []
        after, self._priced_until = self._priced_until, until
        return self._with.prices.readings(after, until)

    def _lapsed(self, before: Reading, reading: Reading) -> bool:
        """Whether a price was stale for a while before it was renewed."""
        if reading.signal.kind is not Kind.PRICE:
            return False
        return before.as_of + self._with.price_stale_after_s < reading.t


def _time(reading: Reading) -> float:
    return reading.t
