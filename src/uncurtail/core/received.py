"""Stage 1: what a source forecasts, and the readings so far: how much of either is believed.

A forecast is checked as a reading is: one that is old, stamped ahead of its time, or silent about
now is refused; from its first unknown value on it says nothing. What is left never outweighs a
reading, and with nothing left policies do what they do without a forecast.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from uncurtail.core.events import iso
from uncurtail.core.forecasts import Forecast
from uncurtail.core.signals import Reading, Trace, usable


@dataclass(frozen=True, slots=True)
class Foretold:
    """What a source expected at `made` (unix): `trace` in its unit, NaN where it does not say."""

    made: float
    trace: Trace

    def later(self, seconds: float) -> "Foretold":
        """The same by a clock that is so many seconds ahead."""
        trace = self.trace
        moved = Trace(trace.times + seconds, trace.values, trace.end + seconds, trace.signal)
        return Foretold(self.made + seconds, moved)

    def replaces(self, older: "Foretold", now: float) -> bool:
        """Whether it is newer, or corrected; one that was stamped after `now` holds nobody up.

        Told again, the same forecast may begin later: what is over by then is left out.
        """
        if self.made != older.made:
            return self.made > older.made or older.made > now
        mine, theirs = self.trace, older.trace
        same = np.array_equal(mine.values, theirs.values[-len(mine.values) :], equal_nan=True)
        return not same or mine.end != theirs.end


@dataclass(frozen=True, slots=True)
class Trust:
    """How long, how far and how much a source's forecast is believed.

    `edge_sd_s` (see `Forecast`) is declared, not learned: a run sees a few windows a day, and a
    spread that was learned from four of them would be worth less than a word on it.
    """

    stale_after_s: float
    horizon_s: float
    edge_sd_s: float


def refusal(said: Foretold, now: float, stale_after_s: float) -> str | None:
    """Why a forecast cannot be used at all, or None."""
    age_s = now - said.made
    if not abs(age_s) <= stale_after_s:  # NaN fails it, too
        when = f"{abs(age_s) / 60:.0f} min {'old' if age_s > 0 else 'ahead of our clock'}"
        return f"is of {iso(said.made)}, {when}"
    return None if _until(said.trace, now) > now else "says nothing of the time from now on"


def accepted(site: str, said: Foretold, now: float, trust: Trust) -> Forecast | None:
    """The forecast as policies see it, known from `now` on; None where `refusal` has a reason."""
    if refusal(said, now, trust.stale_after_s) is not None:
        return None
    until = min(_until(said.trace, now), now + trust.horizon_s)
    return Forecast(site, now, said.trace, until, trust.edge_sd_s)


def contradicted(forecast: Forecast, reading: Reading | None, clean: float, dirty: float) -> bool:
    """Whether a reading was below `clean` g/kWh where the forecast said above `dirty`, or reverse.

    Both are compared at the time for which the reading was published.
    """
    if reading is None or reading.value is None:
        return False
    said = forecast.trace.at(reading.as_of)
    if said is None:
        return False
    low, high = sorted((said, reading.value))
    return low < clean and high > dirty


def _until(trace: Trace, now: float) -> float:
    """Up to where a trace says something without a break; `now` or before where it does not."""
    first = max(int(trace.times.searchsorted(now, side="right")) - 1, 0)
    unknown = np.flatnonzero(~np.isfinite(trace.values[first:]))
    return float(trace.times[first + unknown[0]]) if unknown.size else trace.end


def held(readings: Iterable[Reading], stale_after_s: float, start: float) -> Trace:
    """One site's readings, rising in time, as a trace of what could be acted on: NaN where not."""
    rows = list(readings)
    times, values = [start], [np.nan]
    for reading, until in zip(rows, [*(row.t for row in rows[1:]), np.inf], strict=False):
        if reading.t <= times[-1]:  # two at one time: the later holds
            times.pop(), values.pop()
        value = usable(reading, reading.t, stale_after_s)
        times.append(reading.t)
        values.append(np.nan if value is None else value)
        stale = reading.as_of + stale_after_s
        if value is not None and stale < until:
            times.append(max(stale, float(np.nextafter(reading.t, np.inf))))
            values.append(np.nan)
    return Trace(np.array(times), np.array(values), np.inf)


def gaps_as_unknown(
    times: Sequence[float], values: Sequence[float], period_s: float
) -> tuple[list[float], list[float]]:
    """The rows with a NaN where the next is missing, one period after the last before the gap."""
    told_times, told_values = list(times[:1]), list(values[:1])
    for (t, after), value in zip(pairwise(times), values[1:], strict=True):
        if after - t > 1.5 * period_s:
            told_times.append(t + period_s)
            told_values.append(float("nan"))
        told_times.append(after)
        told_values.append(value)
    return told_times, told_values
