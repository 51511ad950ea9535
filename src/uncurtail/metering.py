"""Readings in, power out: keeps the energy series and the ledger in step with simulated time."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from uncurtail.core.ending import Spent
from uncurtail.core.fleet import Phase, SiteSection
from uncurtail.core.ledger import J_PER_KWH, Ledger, Segment
from uncurtail.core.microgrid import SHORTEST_S, Flow, Microgrid, Mode, Own
from uncurtail.core.policy import PolicySection, stale_at
from uncurtail.core.signals import Reading, usable
from uncurtail.ports import Feed, OwnPower, Record


@dataclass(frozen=True, slots=True)
class OwnSupply:
    """The sites' own power: what they have, who keeps its account, and when the grid is clean."""

    microgrids: Mapping[str, Microgrid]
    power: OwnPower
    policy: PolicySection

    def mode(self, site: str, reading: Reading | None, t: float) -> Mode:
        """What the site's battery is for at `t`: spared while the grid is known to be clean."""
        value = usable(reading, t, self.policy.stale_after_s)
        return self.microgrids[site].mode(value, self.policy.enter_below_g_per_kwh)


class Meter:
    """Integrates every site's power from `start` on, cut wherever intensity or phase changes.

    What was cut is in the series and the ledger; `phases` draw from the last cut on. Where sites
    have power of their own, it is cut wherever that changes, too.
    """

    def __init__(  # noqa: PLR0913  (parts of the run that are made elsewhere)
        self,
        sites: Mapping[str, SiteSection],
        phases: Mapping[str, Phase],
        feed: Feed,
        record: Record,
        ledger: Ledger,
        start: float,
        own: OwnSupply | None = None,
    ) -> None:
        self._sites = sites
        self._own = own
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

    def next_change(self, now: float) -> float:
        """When the grid or the sun is next heard to change."""
        suns = [] if self._own is None else [m.solar for m in self._own.microgrids.values()]
        changes = (sun.next_change(now) for sun in suns if sun is not None)
        return min((self._feed.next_change(now), *changes))

    def spent(self, now: float) -> Spent:
        """What was emitted and paid up to `now`, the time since the last cut included."""
        if self._own is not None:
            self.cut(now)  # what the grid gives is not what the site draws
        prices = {n: (site.price_eur_per_kwh or 0.0) / J_PER_KWH for n, site in self._sites.items()}
        kg = eur = kg_per_s = eur_per_s = 0.0
        for (name, _), tally in self.ledger.tallies.items():
            kg += tally.emissions_g / 1000.0
            eur += tally.grid_j * prices.get(name, 0.0)
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
        for edge in (*self._edges(until), until):
            self._cut(edge)

    def own(self, now: float) -> dict[str, Own]:
        """What each site with a microgrid has of its own at `now`, the last cut being before."""
        if self._own is None:
            return {}
        found = {}
        for name, microgrid in self._own.microgrids.items():
            soc = self._own.power.soc[name]
            for _, _, flow in self._walk(name, now):
                soc = flow.soc
            site = self._sites[name]
            found[name] = microgrid.own(soc, now, site.train_power_w, site.capped_power_w)
        return found

    def _cut(self, until: float) -> None:
        load_w = {name: site.power_w(self._phases[name]) for name, site in self._sites.items()}
        flows = self._flows(until, load_w)
        grid_w = {name: flows[name].grid_w if name in flows else load_w[name] for name in load_w}
        drawn = self._feed.draw(self.since, until, grid_w)
        segments = [
            Segment(
                name,
                self._phases[name],
                self.since,
                until,
                load_w[name],
                self._value(name),
                flows.get(name),
            )
            for name in self._sites
        ]
        for segment in segments:
            self.ledger.add(segment)
        self._record.power([(segment, drawn[segment.site]) for segment in segments])
        self.since = until

    def _flows(self, until: float, load_w: Mapping[str, float]) -> dict[str, Flow]:
        """Draw on what the sites have of their own, up to `until`."""
        if self._own is None:
            return {}
        names = self._own.microgrids
        modes = {name: self._mode(name, self.since) for name in names}
        return self._own.power.draw(
            self.since, until, {name: load_w[name] for name in names}, modes
        )

    def _edges(self, until: float) -> list[float]:
        """The times before `until` at which any site's own power changes, in whole milliseconds."""
        if self._own is None:
            return []
        edges = {
            round(end, 3) for name in self._own.microgrids for _, end, _ in self._walk(name, until)
        }
        return sorted(edge for edge in edges if self.since < edge < until)

    def _walk(self, name: str, until: float) -> Iterator[tuple[float, float, Flow]]:
        """What a site's own power does from the last cut to `until`, by the reading in force."""
        assert self._own is not None
        microgrid, soc = self._own.microgrids[name], self._own.power.soc[name]
        load_w = self._sites[name].power_w(self._phases[name])
        # A reading goes stale by itself: from then on the grid is unknown.
        stale = stale_at(self._own.policy, self.readings.get(name)) + SHORTEST_S
        turn = min(max(stale, self.since), until)
        if self._mode(name, turn) is self._mode(name, self.since):
            turn = until
        for start, end in ((self.since, turn), (turn, until)):
            for piece in microgrid.walk(soc, load_w, (start, end), self._mode(name, start)):
                soc = piece[2].soc
                yield piece

    def _mode(self, name: str, t: float) -> Mode:
        assert self._own is not None
        reading = self.readings.get(name)
        # A stretch may have begun before its value was told anew: see `_take`.
        return self._own.mode(name, reading, t if reading is None else max(t, reading.t))

    def _value(self, site: str) -> float | None:
        reading = self.readings.get(site)
        if reading is None or reading.value is None or not math.isfinite(reading.value):
            return None
        return reading.value

    def _take(self, after: float, until: float) -> list[Reading]:
        taken = [reading for reading in self._feed.readings(after, until) if self._is_new(reading)]
        for reading in taken:
            before = self.readings.get(reading.site)
            if before is None or before.value != reading.value or self._lapsed(before, reading):
                self.cut(min(reading.t, until))
            self.readings[reading.site] = reading
            self._record.reading(reading)
        self._read_until = max(self._read_until, until)
        return taken

    def _lapsed(self, before: Reading, reading: Reading) -> bool:
        """Whether the grid was unknown to batteries for a while before the same was told anew."""
        return self._own is not None and stale_at(self._own.policy, before) < reading.t

    def _is_new(self, reading: Reading) -> bool:
        """Not one that an earlier coordinator took in."""
        before = self.readings.get(reading.site)
        return before is None or reading.t > before.t
