"""Readings in, power out: keeps the energy series and the ledger in step with simulated time."""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from uncurtail.core import measured, pricing
from uncurtail.core.ending import Spent
from uncurtail.core.fleet import Phase, SiteSection
from uncurtail.core.ledger import J_PER_KWH, Ledger, Segment
from uncurtail.core.microgrid import SHORTEST_S, Flow, Mode, Own
from uncurtail.core.policy import stale_at
from uncurtail.core.pricing import Price
from uncurtail.core.signals import Kind, Reading
from uncurtail.instruments import Instruments


class Meter:
    """Integrates every site's power from `start` on, cut wherever its signals or phase change.

    What was cut is in the series and the ledger; `phases` draw from the last cut on. Where a fresh
    measurement is known it is what a site draws, else what was declared for its phase. Where sites
    have power of their own, it is cut wherever that changes, too.
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
        self._own = instruments.own
        self.since = start
        self._read_until = start
        self._heard_until = start - 1.0
        self._up_since = dict.fromkeys(sites, start)
        self._phase_since = dict.fromkeys(sites, start)
        self._took_w: dict[tuple[str, Phase], float] = {}  # measured last in that phase
        self.ledger = ledger
        self.readings: dict[str, Reading] = {}
        self._prices: dict[str, Reading] = {}
        self._watts: dict[str, Reading] = {}

    def resume(
        self,
        readings: Mapping[str, Reading],
        prices: Mapping[str, Reading] | None = None,
        watts: Mapping[str, Reading] | None = None,
    ) -> None:
        """Go on with the readings of an earlier coordinator.

        It may have been killed between two readings of one time: each site goes on behind its own.
        """
        self.readings = dict(readings)
        self._prices, self._watts = dict(prices or {}), dict(watts or {})
        heard = [readings[site].t for site in self._sites if site in readings]
        self._read_until = min(heard) if len(heard) == len(self._sites) else self.since - 1.0

    def begin(self) -> list[Reading]:
        """Take the value in force at the start."""
        return self._take(self.since - 1.0, self.since)

    def advance(self, now: float) -> list[Reading]:
        """Take every reading up to `now`, each at its own time, however late this tick comes."""
        return self._take(self._read_until, now)

    def next_change(self, now: float) -> float:
        """When the grid, a price or the sun is next heard to change."""
        return self._with.next_change(now)

    def troubles(self, now: float) -> dict[str, str | None]:
        """What is wrong with prices and measurements, where there should be any; what counts."""
        return {"price": self._price_trouble(now), "power": self._power_trouble(now)}

    def spent(self, now: float) -> Spent:
        """What was emitted and paid up to `now`, the time since the last cut included."""
        if self._own is not None:
            self.cut(now)  # what the grid gives is not what the site draws
        total = self.ledger.total()
        kg, eur = total.emissions_g / 1000.0, total.cost_eur
        kg_per_s = eur_per_s = 0.0
        for name in self._sites:
            power_w, _ = self._power(name, now)
            kg_per_s += power_w * (self._value(name) or 0.0) / J_PER_KWH / 1000.0
            eur_per_s += power_w * (self._price(name, now).eur_per_kwh or 0.0) / J_PER_KWH
        since_s = max(0.0, now - self.since)
        return Spent(now, kg + kg_per_s * since_s, eur + eur_per_s * since_s, kg_per_s, eur_per_s)

    def change(self, phases: Mapping[str, Phase], now: float) -> None:
        """From `now` on, sites are in these phases."""
        if phases == self._phases:
            return
        self.cut(now)
        for name, phase in self._phases.items():
            if phases[name] is not phase:
                self._phase_since[name] = now
            if phase is Phase.RELEASED and phases[name] is not Phase.RELEASED:
                self._up_since[name] = now
        self._phases = dict(phases)

    def cut(self, until: float) -> None:
        """Bring series and ledger up to `until`."""
        edges = {t for t in self._stale_at() if self.since < t < until}
        # What a site's own power does is asked behind each: by then another load may count.
        for stale in (*sorted(edges), until):
            for edge in (*self._edges(stale), stale):
                self._cut(edge)

    def own(self, now: float) -> dict[str, Own]:
        """What each site with a microgrid has of its own at `now`, the last cut being before.

        Where training was measured to take more than was declared, that is what must be carried.
        """
        if self._own is None:
            return {}
        found = {}
        for name, microgrid in self._own.microgrids.items():
            soc = self._own.power.soc[name]
            for _, _, flow in self._walk(name, now):
                soc = flow.soc
            capped = self._sites[name].capped_power_w is not None
            capped_w = self._at_least(name, Phase.CAPPED) if capped else None
            found[name] = microgrid.own(soc, now, self._at_least(name, Phase.TRAINING), capped_w)
        return found

    def _at_least(self, name: str, phase: Phase) -> float:
        """What the site takes in a phase: as declared, or more where that was measured in it."""
        declared_w = self._sites[name].power_w(phase)
        return max(declared_w, self._took_w.get((name, phase), 0.0))

    def _cut(self, until: float) -> None:
        if until <= self.since:
            return
        power = {name: self._power(name, self.since) for name in self._sites}
        flows = self._flows(until, {name: watts for name, (watts, _) in power.items()})
        grid_w = {n: flows[n].grid_w if n in flows else watts for n, (watts, _) in power.items()}
        drawn = self._feed.draw(self.since, until, grid_w)
        segments = [
            Segment(
                name,
                self._phases[name],
                self.since,
                until,
                watts,
                self._value(name),
                flows.get(name),
                self._price(name, self.since).eur_per_kwh,
                power_from,
            )
            for name, (watts, power_from) in power.items()
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
        if self._own is None or until <= self.since:
            return []
        edges = {
            round(end, 3) for name in self._own.microgrids for _, end, _ in self._walk(name, until)
        }
        return sorted(edge for edge in edges if self.since < edge < until)

    def _walk(self, name: str, until: float) -> Iterator[tuple[float, float, Flow]]:
        """What a site's own power does from the last cut to `until`, by what is known in force."""
        assert self._own is not None
        microgrid, soc = self._own.microgrids[name], self._own.power.soc[name]
        # A reading goes stale by itself: from then on the grid is unknown, or declared watts count.
        turns = {stale_at(self._own.policy, self.readings.get(name)) + SHORTEST_S}
        if (watts := self._watts.get(name)) is not None:
            turns.add(self._stale(watts))
        inner = (turn for turn in turns if self.since < turn < until)
        for start, end in self._joined(name, [self.since, *sorted(inner), until]):
            load_w, mode = self._power(name, start)[0], self._mode(name, start)
            for piece in microgrid.walk(soc, load_w, (start, end), mode):
                soc = piece[2].soc
                yield piece

    def _joined(self, name: str, edges: list[float]) -> list[tuple[float, float]]:
        """The stretches between edges; one where load and mode go on as before."""
        joined: list[tuple[float, float]] = []
        before = None
        for start, end in pairwise(edges):
            now = self._power(name, start)[0], self._mode(name, start)
            if now == before:
                joined[-1] = joined[-1][0], end
            else:
                joined.append((start, end))
            before = now
        return joined

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

    def _price(self, site: str, now: float) -> Price:
        reading, declared = self._prices.get(site), self._sites[site].price_eur_per_kwh
        # A stretch may have begun before its value was told anew: see `_take`.
        known = now if reading is None else max(now, reading.t)
        return pricing.price_at(reading, known, self._with.price_stale_after_s, declared)

    def _price_trouble(self, now: float) -> str | None:
        if self._with.prices is None:
            return None
        counted = pricing.unknown({name: self._price(name, now) for name in self._sites})
        said = [part for part in (self._with.prices.trouble, counted) if part is not None]
        return "; ".join(said) or None

    def _power(self, site: str, now: float) -> tuple[float, str]:
        """What a site draws from `now` on (W), and who says so."""
        section, phase = self._sites[site], self._phases[site]
        reading = self._watts.get(site)
        if reading is not None and phase is not Phase.RELEASED:
            stale_s, since = self._with.power_stale_after_s, self._up_since[site]
            known = max(now, reading.t)
            watts = measured.counted_w(reading, known, stale_s, since, section.power_beside_w)
            if watts is not None:
                return watts, reading.signal.source
        return section.power_w(phase), measured.MODEL

    def _power_trouble(self, now: float) -> str | None:
        """Sites get the time that a measurement stays fresh to bring their first."""
        patient_s = self._with.power_stale_after_s
        missing = [
            (name, site.power_from)
            for name, site in self._sites.items()
            if site.power_from != measured.MODEL
            and self._phases[name] is not Phase.RELEASED
            and now - self._up_since[name] > patient_s
            and self._power(name, now)[1] == measured.MODEL
        ]
        counted = measured.unmeasured(missing)
        failing = (signals.trouble for signals in self._with.power)
        said = [part for part in (*failing, counted) if part is not None]
        return "; ".join(said) or None

    def _stale_at(self) -> Iterator[float]:
        """When what is known does not count any more: files hold whole milliseconds."""
        for reading in (*self._prices.values(), *self._watts.values()):
            yield self._stale(reading)

    def _stale(self, reading: Reading) -> float:
        return reading.as_of + self._with.stale_after_s(reading) + 0.001

    def _take(self, after: float, until: float) -> list[Reading]:
        """Each reading ends the stretch before it, unless it says the same as the one in force."""
        taken = [reading for reading in self._feed.readings(after, until) if self._is_new(reading)]
        for reading in heapq.merge(taken, self._news(until), key=_time):
            known, record = self._shelf(reading)
            before = known.get(reading.site)
            if before is None or before.value != reading.value or self._lapsed(before, reading):
                self.cut(min(reading.t, until))
            known[reading.site] = reading
            record(reading)
            if reading.signal.kind is Kind.POWER:
                self._learn(reading)
        self._read_until = max(self._read_until, until)
        return taken

    def _learn(self, reading: Reading) -> None:
        """What a phase takes: a sample from before it says nothing of it."""
        site = reading.site
        watts, power_from = self._power(site, reading.t)
        if power_from != measured.MODEL and reading.as_of >= self._phase_since[site]:
            self._took_w[site, self._phases[site]] = watts

    def _shelf(self, reading: Reading) -> tuple[dict[str, Reading], Callable[[Reading], None]]:
        """Where a reading is kept, and where it is recorded."""
        match reading.signal.kind:
            case Kind.PRICE:
                return self._prices, self._record.price
            case Kind.POWER:
                return self._watts, self._record.watts
            case Kind.MARGINAL | Kind.AVERAGE:
                return self.readings, self._record.reading

    def _news(self, until: float) -> list[Reading]:
        """The prices and measurements that became known since the last call, by time."""
        if until <= self._heard_until:
            return []
        after, self._heard_until = self._heard_until, until
        sources = [*self._with.power, *([self._with.prices] if self._with.prices else [])]
        told = heapq.merge(*(s.readings(after, until) for s in sources), key=_time)
        return [reading for reading in told if self._is_new(reading)]

    def _lapsed(self, before: Reading, reading: Reading) -> bool:
        """Whether what does not count when it is old was so for a while before it was renewed."""
        return before.as_of + self._with.stale_after_s(before) < reading.t

    def _is_new(self, reading: Reading) -> bool:
        """Not one that an earlier coordinator took in."""
        known, _ = self._shelf(reading)
        before = known.get(reading.site)
        return before is None or reading.t > before.t


def _time(reading: Reading) -> float:
    return reading.t
