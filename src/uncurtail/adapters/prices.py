"""What a kWh costs at each site: columns of a file, or queries that are asked as the run goes."""

import heapq
import math
from collections.abc import Mapping

import numpy as np

from uncurtail.adapters.livefeed import Follower
from uncurtail.adapters.poller import Poller
from uncurtail.core.signals import EUR_PER_KWH, Reading, Signal, Trace, usable


class PriceTraces:
    """A `ports.Prices` over traces that are known; a price holds until the next, or its end."""

    trouble: str | None = None  # a trace does not fail

    def __init__(self, traces: Mapping[str, Trace], start: float) -> None:
        """Nothing is told of times before `start`; what is in force there is told as of it."""
        self._traces = dict(traces)
        self._start = start

    def readings(self, after: float, until: float) -> list[Reading]:
        """What became known at times in (after, until], by time."""
        if until < self._start:
            return []
        first = [self._start] if after < self._start else []
        told = (
            [
                Reading(name, t, trace.at(t), signal=trace.signal)
                for t in [*first, *trace.changes(max(after, self._start), until).tolist()]
            ]
            for name, trace in self._traces.items()
        )
        return list(heapq.merge(*told, key=lambda reading: reading.t))

    def next_change(self, now: float) -> float:
        """When a price changes next; infinite when never."""
        return min((t.next_change(now) for t in self._traces.values()), default=math.inf)

    def expected(self, site: str, now: float) -> Trace | None:
        """All that the file says: it is taken as known in advance."""
        return self._traces[site]


class LivePrices(Follower):
    """A `ports.Prices` over a poller; of the time to come it knows the newest price alone."""

    def __init__(
        self,
        sites: Mapping[str, str],
        poller: Poller,
        signal: Signal,
        start: float,
        stale_after_s: float,
    ) -> None:
        """See `Follower`; a price that is older than `stale_after_s` is expected no more."""
        super().__init__(sites, poller, signal, start)
        self._stale_after_s = stale_after_s

    def expected(self, site: str, now: float) -> Trace | None:
        """The newest price for ever; None before the first, and where it is unknown."""
        rows = self.told(site)
        value = usable(rows[-1], now, self._stale_after_s, EUR_PER_KWH) if rows else None
        if value is None:
            return None
        return Trace(np.array([rows[-1].t]), np.array([value]), math.inf, rows[-1].signal)
