"""The energy feed of a run in real time: what a source publishes, as it arrives.

Windows, the ledger and the record go by what was known when, so a value counts from the tick that
first sees it; its age counts from its publication. A source that freezes, falls silent or fails
therefore goes stale by itself, whatever it answers.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping

from uncurtail.adapters import clock
from uncurtail.adapters.poller import Arrival, Poller
from uncurtail.adapters.sources import Point
from uncurtail.adapters.vessim import INTENSITY, GridSignals, Microgrids
from uncurtail.core.signals import Reading, Signal, in_force

# A request that is due may be answered any moment: look again so soon.
LOOK_AGAIN_S = 1.0


class Follower:
    """A `ports.Signals` over a `Poller`, in simulated time that runs as fast as the wall clock.

    No call waits for the source. Simulated time may lag behind the wall clock (it stands still
    while no coordinator runs); publication times are shifted alike, so ages stay what they are.
    """

    def __init__(
        self,
        sites: Mapping[str, str],
        poller: Poller,
        signal: Signal,
        start: float,
        wall: Callable[[], float] = clock.wall,
    ) -> None:
        """`sites` names each site's region; nothing is told before `start` (simulated)."""
        self._regions = dict(sites)
        self.poller = poller
        self._signal = signal
        self._wall = wall
        self._start = start
        self._told: dict[str, list[Reading]] = {name: [] for name in sites}
        self._newest: dict[str, Arrival] = {}
        self._answered_until = -math.inf

    @property
    def trouble(self) -> str | None:
        """What fails at the source now, or None."""
        return self.poller.trouble

    def readings(self, after: float, until: float) -> list[Reading]:
        """What became known at times in (after, until], by time; `until` is the simulated now.

        What arrived since the last call becomes known at `until`. Level-triggered: asking again
        for the same times gives the same, and nothing is told of a time that was answered for.
        """
        if until >= self._start and until > max(after, self._answered_until):
            self._absorb(until)
        told = (rows[_after(rows, after) : _after(rows, until)] for rows in self._told.values())
        return list(heapq.merge(*told, key=_time))

    def next_change(self, now: float) -> float:
        """When the source is asked next, the earliest that something new can be known."""
        due_in_s = self.poller.due_in_s()
        return now + max(due_in_s, LOOK_AGAIN_S)

    def close(self) -> None:
        """Ask the source no more."""
        self.poller.close()

    def told(self, site: str) -> list[Reading]:
        """Everything that this feed told of a site so far, by time."""
        return self._told[site]

    def _absorb(self, now: float) -> None:
        lag_s = self._wall() - now
        for arrival in self.poller.take():
            for name, region in self._regions.items():
                if region == arrival.region and _is_news(self._newest.get(name), arrival):
                    self._newest[name] = arrival
                    self._tell(name, now, arrival.point, lag_s)
        self._answered_until = now

    def _tell(self, name: str, now: float, point: Point, lag_s: float) -> None:
        value = point.value if self._signal.plausible(point.value) else None
        rows = self._told[name]
        if rows and rows[-1].t == now:  # two arrivals within a tick: the later holds
            rows.pop()
        rows.append(Reading(name, now, value, round(point.t - lag_s, 3), self._signal))


class LiveFeed(Follower):
    """A `ports.Feed`: the intensities that a source publishes, and microgrids that draw by them."""

    def __init__(
        self,
        sites: Mapping[str, str],
        poller: Poller,
        signal: Signal,
        start: float,
        wall: Callable[[], float] = clock.wall,
    ) -> None:
        """`sites` names each site's region, `start` is when drawing begins (simulated).

        Raises:
            ValueError: `start` is not finite.
        """
        super().__init__(sites, poller, signal, start, wall)
        self._microgrids = Microgrids(sites, start)

    def draw(self, start: float, end: float, power_w: Mapping[str, float]) -> dict[str, float]:
        """Advance every microgrid over [start, end): see `Microgrids.draw`."""
        signals = {name: self._signals_at(name, start) for name in self._told}
        return self._microgrids.draw(start, end, power_w, signals)

    def _signals_at(self, name: str, t: float) -> GridSignals | None:
        reading = in_force(self._told[name], t)
        return None if reading is None or reading.value is None else {INTENSITY: reading.value}


def _is_news(newest: Arrival | None, arrival: Arrival) -> bool:
    """A newer publication, or another value for the newest one; never an older one again.

    Unless the newest was stamped ahead of our clock: then whatever is stamped otherwise is news, or
    one wrong stamp would keep all that is right out for as long as it was wrong.
    """
    if newest is None or arrival.point.t > newest.point.t:
        return True
    if arrival.point.t == newest.point.t:
        old, new = newest.point.value, arrival.point.value
        return old != new and not (math.isnan(old) and math.isnan(new))
    return newest.point.t > newest.wall_s


def _after(rows: list[Reading], t: float) -> int:
    return bisect_right(rows, t, key=_time)


def _time(reading: Reading) -> float:
    return reading.t
