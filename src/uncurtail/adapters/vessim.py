"""Vessim as software in the loop: one microgrid a site, stepped by our tick.

Each site is a consumer behind a grid connection, with the region's carbon intensity as the grid's
signal. No thread, no process, no clock of its own: the same calls serve real and virtual time.
"""

import heapq
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from uncurtail.core.signals import Reading, Trace

INTENSITY = "intensity_g_per_kwh"
# Vessim keeps offsets as 64-bit nanoseconds, at most 292 years, and has no infinity.
_LONGEST_S = 1e9

GridSignals = dict[str, Any]  # Vessim's own signals, or plain numbers, by name


class VessimFeed:
    """What the sites' grids say, and what the sites draw from them.

    Times are unix seconds, powers W. Unknown stays ours: Vessim is given finite values only, and a
    microgrid has no signal while its intensity is unknown, so an unknown value cannot come back as
    a number.

    Importing Vessim takes half a second, and the constructor does it.
    """

    trouble: str | None = None  # a trace does not fail

    def __init__(self, traces: Mapping[str, Trace], start: float) -> None:
        """One microgrid for each site of `traces`; nothing is told or drawn before `start`.

        Raises:
            ValueError: `start` is not finite.
        """
        self._start = start
        # The stretch in which nothing is published, as last found: most calls fall into it.
        self._quiet = (math.inf, -math.inf)
        self._microgrids = Microgrids(traces, start)
        self._sites = {name: _Site(trace, start) for name, trace in traces.items()}

    def readings(self, after: float, until: float) -> list[Reading]:
        """Everything published at times in (after, until], by time, then in the order of sites.

        With `after` before the start, each site's value in force at the start comes first, told at
        the start and as old as it is. A value that becomes unknown is a Reading of None at that
        time. A value published again is told again, because it renews the reading's age. Asking
        twice gives the same.
        """
        if until < self._start or (self._quiet[0] <= after and until < self._quiet[1]):
            return []
        first = [self._start] if after < self._start else []
        since = max(after, self._start)
        told = (
            [
                Reading(name, t, site.published(t), site.row_time(t), site.trace.signal)
                for t in [*first, *site.trace.changes(since, until).tolist()]
            ]
            for name, site in self._sites.items()
        )
        # merge is stable: sites that publish at once stay in their order.
        return list(heapq.merge(*told, key=lambda reading: reading.t))

    def next_change(self, now: float) -> float:
        """When `readings` has something new after `now`; infinity when nothing ever will."""
        if now < self._start:
            return self._start
        if not self._quiet[0] <= now < self._quiet[1]:
            changes = (site.trace.next_change(now) for site in self._sites.values())
            self._quiet = (now, min(changes, default=math.inf))
        return self._quiet[1]

    def draw(self, start: float, end: float, power_w: Mapping[str, float]) -> dict[str, float]:
        """Advance every microgrid over [start, end): see `Microgrids.draw`."""
        signals = {name: site.signals_at(start) for name, site in self._sites.items()}
        return self._microgrids.draw(start, end, power_w, signals)


class _Site:
    """A site's trace, and what it is to Vessim: elapsed seconds since the feed's start."""

    def __init__(self, trace: Trace, start: float) -> None:
        self.trace = trace
        self._start = start
        self._signals = _grid_signals(trace, start)

    def published(self, t: float) -> float | None:
        """The intensity that the microgrid's grid shows at `t`; None where the trace knows none."""
        if self._signals is None or self.trace.at(t) is None:
            return None
        return float(self._signals[INTENSITY].at(t - self._start))

    def row_time(self, t: float) -> float | None:
        """When the value in force at `t` was published, if there is one and that was before."""
        if self.trace.at(t) is None:
            return None
        row = int(np.searchsorted(self.trace.times, t, side="right")) - 1
        before = row >= 0 and float(self.trace.times[row]) < t
        return float(self.trace.times[row]) if before else None

    def signals_at(self, t: float) -> GridSignals | None:
        """The grid's signals while the intensity is known, else None."""
        return None if self.trace.at(t) is None else self._signals


class Microgrids:
    """Each site as a consumer behind a grid connection, advanced over time that has no holes."""

    def __init__(self, sites: Iterable[str], start: float) -> None:
        """Nothing is drawn before `start` (unix seconds).

        Raises:
            ValueError: `start` is not finite.
        """
        if not math.isfinite(start):
            raise ValueError(f"start must be finite unix seconds, got {start}")
        self._drawn_until = start
        self._microgrids = {name: _Microgrid(name, start) for name in sites}

    def draw(
        self,
        start: float,
        end: float,
        power_w: Mapping[str, float],
        signals: Mapping[str, GridSignals | None],
    ) -> dict[str, float]:
        """Advance every microgrid over [start, end), its site drawing a constant power.

        The calls tile the time from the start on; one of no length does nothing and returns the
        powers as Vessim last reported them.

        Args:
            start: The end of the call before, or the start.
            end: Not before `start`.
            power_w: Consumption of each site in W, not negative; 0 for a site that is off.
            signals: Each site's grid signals, known at `start`; None while nothing is known.

        Returns:
            The average power in W that each site drew from its grid, consumption positive.

        Raises:
            ValueError: The times leave a hole, overlap or run backwards, or the powers are not
                one finite, non-negative number a site. No microgrid was advanced.
        """
        if start != self._drawn_until or not start <= end < math.inf:
            until = self._drawn_until
            raise ValueError(
                f"draw over [{start}, {end}) does not follow on {until}: tile the time"
            )
        if power_w.keys() != self._microgrids.keys():
            wrong = sorted(power_w.keys() ^ self._microgrids.keys())
            raise ValueError(f"draw needs the power of exactly this feed's sites: see {wrong}")
        for name, watts in power_w.items():
            if not 0.0 <= watts < math.inf:
                raise ValueError(f"power of {name} must be finite and not negative, got {watts} W")
        if end > start:
            for name, microgrid in self._microgrids.items():
                microgrid.advance(start, end, power_w[name], signals[name])
            self._drawn_until = end
        return {name: microgrid.import_w() for name, microgrid in self._microgrids.items()}


class _Microgrid:
    """One of Vessim's; its elapsed time is seconds since `start`."""

    def __init__(self, name: str, start: float) -> None:
        import vessim

        self._start = start
        self._demand = vessim.StaticSignal(0.0)
        self._microgrid = vessim.Microgrid(
            # Actors are sampled at multiples of this: each whole second, see `advance`.
            step_size=1,
            actors=[vessim.Consumer("site", self._demand)],
            dispatchables=[vessim.GridConnection()],
            policy=vessim.DefaultDispatchPolicy(),
            name=name,
        )

    def advance(self, start: float, end: float, watts: float, signals: GridSignals | None) -> None:
        begin, until = start - self._start, end - self._start
        self._microgrid.grid_signals = signals
        self._demand.set_value(watts)
        # Vessim samples at whole seconds only; the demand is constant, so the second is free.
        self._microgrid.sample(int(begin))
        self._microgrid.advance(begin, duration=end - start)
        self._microgrid.finish(until)

    def import_w(self) -> float:
        # Vessim counts import negative; adding zero turns its -0.0 into 0.0.
        return -float(self._microgrid.state()["p_grid"]) + 0.0


def _grid_signals(trace: Trace, start: float) -> GridSignals | None:
    """The known rows in force from `start` on, as Vessim's own trace; None if there are none.

    It bridges unknown stretches, since Vessim refuses NaN: nobody may ask it there, and nobody
    does (`_Site`). Offsets are whole microseconds, the resolution at which Vessim looks them up.
    """
    import pandas as pd  # type: ignore[import-untyped]  # Vessim's data type; ships no types
    import vessim

    known = np.isfinite(trace.values) & (trace.times < trace.end)
    if not known.any() or trace.end <= start:
        return None
    offsets, values = trace.times[known] - start, trace.values[known]
    in_force = max(int(np.searchsorted(offsets, 0.0, side="right")) - 1, 0)
    offsets, values = offsets[in_force:], values[in_force:]
    offsets[0] = 0.0
    last = min(trace.end - start, offsets[-1] + _LONGEST_S)
    micros = np.round(np.append(offsets, last) * 1e6).astype("timedelta64[us]")
    values = np.append(values, values[-1])
    # Rows within one microsecond are one to Vessim: the last of them holds.
    distinct = np.append(micros[1:] > micros[:-1], True)
    series = pd.Series(values[distinct], index=pd.TimedeltaIndex(micros[distinct]))
    return {INTENSITY: vessim.Trace(series)}
