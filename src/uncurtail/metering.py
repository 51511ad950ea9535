"""Readings in, power out: keeps the energy series and the ledger in step with simulated time."""

import math
from collections.abc import Mapping

from uncurtail.core.ending import Spent
from uncurtail.core.fleet import Phase, SiteSection
from uncurtail.core.ledger import J_PER_KWH, Ledger, Segment
from uncurtail.core.signals import Reading
from uncurtail.ports import Feed, Record


class Meter:
    """Integrates every site's power from `start` on, cut wherever intensity or phase changes.

    What was cut is in the series and the ledger; `phases` draw from the last cut on.
    """

    def __init__(
        self,
        sites: Mapping[str, SiteSection],
        phases: Mapping[str, Phase],
        feed: Feed,
        record: Record,
        ledger: Ledger,
        start: float,
    ) -> None:
        self._sites = sites
        self._phases = dict(phases)
        self._feed = feed
        self._record = record
        self.since = start
        self._read_until = start
        self.ledger = ledger
        self.readings: dict[str, Reading] = {}

    def resume(self, readings: Mapping[str, Reading]) -> None:
        """Go on with the readings of an earlier coordinator.

        It may have been killed between two readings of one time: each site goes on behind its own.
        """
        self.readings = dict(readings)
        heard = [readings[site].t for site in self._sites if site in readings]
        self._read_until = min(heard) if len(heard) == len(self._sites) else self.since - 1.0

    def begin(self) -> list[Reading]:
        """Take the value in force at the start."""
        return self._take(self.since - 1.0, self.since)

    def advance(self, now: float) -> list[Reading]:
        """Take every reading up to `now`, each at its own time, however late this tick comes."""
        return self._take(self._read_until, now)

    def spent(self, now: float) -> Spent:
        """What was emitted and paid up to `now`, the time since the last cut included."""
        prices = {n: (site.price_eur_per_kwh or 0.0) / J_PER_KWH for n, site in self._sites.items()}
        kg = eur = kg_per_s = eur_per_s = 0.0
        for (name, _), tally in self.ledger.tallies.items():
            kg += tally.emissions_g / 1000.0
            eur += tally.energy_j * prices.get(name, 0.0)
        for name, site in self._sites.items():
            power_w = site.power_w(self._phases[name])
            kg_per_s += power_w * (self._value(name) or 0.0) / J_PER_KWH / 1000.0
            eur_per_s += power_w * prices[name]
        since_s = max(0.0, now - self.since)
        return Spent(now, kg + kg_per_s * since_s, eur + eur_per_s * since_s, kg_per_s, eur_per_s)

    def change(self, phases: Mapping[str, Phase], now: float) -> None:
        """From `now` on, sites are in these phases."""
        if phases != self._phases:
            self.cut(now)
            self._phases = dict(phases)

    def cut(self, until: float) -> None:
        """Bring series and ledger up to `until`."""
        if until <= self.since:
            return
        power_w = {name: site.power_w(self._phases[name]) for name, site in self._sites.items()}
        drawn = self._feed.draw(self.since, until, power_w)
        segments = [
            Segment(name, self._phases[name], self.since, until, power_w[name], self._value(name))
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

    def _take(self, after: float, until: float) -> list[Reading]:
        taken = [reading for reading in self._feed.readings(after, until) if self._is_new(reading)]
        for reading in taken:
            before = self.readings.get(reading.site)
            if before is None or before.value != reading.value:
                self.cut(min(reading.t, until))
            self.readings[reading.site] = reading
            self._record.reading(reading)
        self._read_until = max(self._read_until, until)
        return taken

    def _is_new(self, reading: Reading) -> bool:
        """Not one that an earlier coordinator took in."""
        before = self.readings.get(reading.site)
        return before is None or reading.t > before.t
