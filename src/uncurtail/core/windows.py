"""What a region's windows are like: how often, how long, when. Pure and vectorised.

The windows are those that `policy.window` would see, were the trace all that is known: hysteresis
at each value, closed where a value is unknown, or older than it may be.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.policy import PolicySection
from uncurtail.core.signals import Trace

HOUR_S = 3600.0
DAY_S = 86_400.0
QUANTILES = (0.10, 0.25, 0.50, 0.75, 0.90)

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows within [since, until), unix seconds: `starts[i]` to `ends[i]`, rising, apart.

    `known_s` is how much of that time the value was known and fresh. A window that was open at
    either edge is cut there.
    """

    since: float
    until: float
    starts: Array
    ends: Array
    known_s: float

    @property
    def lengths_s(self) -> Array:
        """How long each lasted."""
        lengths: Array = self.ends - self.starts
        return lengths


@dataclass(frozen=True, slots=True)
class Statistics:
    """Windows in numbers. Shares are 0-1; None where there is no window, or no whole day.

    Hours and days are local. `hour_profile[h]` is the share of hour h that was curtailed;
    `days_without` the share of whole days that had none.
    """

    days: float
    known_share: float
    curtailed_share: float
    curtailed_h_per_day: float
    windows: int
    windows_per_day: float
    length_quantiles_min: dict[str, float] | None
    length_mean_min: float | None
    longest_min: float | None
    longest_start: float | None
    hour_profile: list[float]
    days_without: float | None


def find(trace: Trace, policy: PolicySection, since: float, until: float) -> Windows:
    """The windows of a trace within [since, until), as far as it reaches.

    Raises:
        ValueError: The trace says nothing there.
    """
    since, until = max(since, float(trace.times[0])), min(until, trace.end)
    if not since < until < np.inf:
        raise ValueError(f"the trace has nothing between {since} and {until}")
    times, values = _with_staleness(trace, policy.stale_after_s, until)
    low = values < policy.opens_below_g_per_kwh
    # A value within the band says nothing new; NaN is within no band.
    says = low | ~(values <= policy.closes_above_g_per_kwh)
    last = np.maximum.accumulate(np.where(says, np.arange(len(says)), -1))
    is_open = np.where(last >= 0, low[last], False)
    edges = np.diff(np.concatenate(([0], is_open.astype(np.int8), [0])))
    bounds = np.append(times, until)
    starts = np.clip(bounds[:-1][edges[:-1] == 1], since, until)
    ends = np.clip(bounds[edges == -1], since, until)
    inside = ends > starts
    held_s = np.diff(np.clip(bounds, since, until))
    return Windows(
        since, until, starts[inside], ends[inside], float(held_s[np.isfinite(values)].sum())
    )


def statistics(windows: Windows, utc_offset_h: float = 0.0) -> Statistics:
    """The numbers of some windows; hours and days are those of this offset from UTC."""
    lengths_min = windows.lengths_s / 60.0
    observed_s = windows.until - windows.since
    days = observed_s / DAY_S
    share = float(windows.lengths_s.sum()) / observed_s
    quantiles = mean = longest = longest_start = None
    if lengths_min.size:
        found = np.quantile(lengths_min, QUANTILES)
        quantiles = {f"q{q * 100:.0f}": float(v) for q, v in zip(QUANTILES, found, strict=True)}
        mean = float(lengths_min.mean())
        longest = float(lengths_min.max())
        longest_start = float(windows.starts[int(lengths_min.argmax())])
    grid = by_day_and_hour(windows, utc_offset_h)
    whole = grid[~np.isnan(grid.sum(axis=1)) & _whole_days(windows, utc_offset_h)]
    return Statistics(
        days=days,
        known_share=windows.known_s / observed_s,
        curtailed_share=share,
        curtailed_h_per_day=share * 24.0,
        windows=int(lengths_min.size),
        windows_per_day=lengths_min.size / days,
        length_quantiles_min=quantiles,
        length_mean_min=mean,
        longest_min=longest,
        longest_start=longest_start,
        hour_profile=_profile(grid),
        days_without=float((whole.sum(axis=1) == 0.0).mean()) if len(whole) else None,
    )


def by_day_and_hour(windows: Windows, utc_offset_h: float = 0.0) -> Array:
    """The curtailed share of each local hour, shape (days, 24); NaN where nothing was observed."""
    first, days = _days(windows, utc_offset_h)
    hours = np.arange(days * 24 + 1, dtype=np.float64)
    edges: Array = first * DAY_S - utc_offset_h * HOUR_S + hours * HOUR_S
    observed_s = np.diff(np.clip(edges, windows.since, windows.until))
    curtailed_s = np.diff(_curtailed_until(windows, edges))
    share = np.full(days * 24, np.nan)
    np.divide(curtailed_s, observed_s, out=share, where=observed_s > 0.0)
    # Differences of sums over a year are exact to microseconds: a share is not more than all.
    grid: Array = np.clip(share, 0.0, 1.0).round(9).reshape(days, 24)
    return grid


def first_day(windows: Windows, utc_offset_h: float = 0.0) -> float:
    """When the first local day of `by_day_and_hour` began, as unix seconds of local midnight."""
    return _days(windows, utc_offset_h)[0] * DAY_S


def _with_staleness(trace: Trace, stale_after_s: float, until: float) -> tuple[Array, Array]:
    """The trace's rows before `until`, and unknown where a value has grown too old to act on."""
    before = trace.times < until
    times = trace.times[before]
    low, high = trace.signal.range
    given = trace.values[before]
    values = np.where((given >= low) & (given <= high), given, np.nan)
    stale = np.flatnonzero(np.diff(np.append(times, until)) > stale_after_s)
    times = np.insert(times, stale + 1, times[stale] + stale_after_s)
    return times, np.insert(values, stale + 1, np.nan)


def _curtailed_until(windows: Windows, t: Array) -> Array:
    """Curtailed seconds before each time."""
    if not windows.starts.size:
        return np.zeros(len(t))
    total = np.cumsum(windows.lengths_s)
    knots = np.ravel([windows.starts, windows.ends], order="F")
    sums = np.ravel([total - windows.lengths_s, total], order="F")
    until: Array = np.interp(t, knots, sums)
    return until


def _days(windows: Windows, utc_offset_h: float) -> tuple[int, int]:
    """The first local day (since 1970), and how many are touched."""
    offset_s = utc_offset_h * HOUR_S
    first = int((windows.since + offset_s) // DAY_S)
    last = int(-(-(windows.until + offset_s) // DAY_S))
    return first, last - first


def _whole_days(windows: Windows, utc_offset_h: float) -> NDArray[np.bool_]:
    first, days = _days(windows, utc_offset_h)
    starts = (first + np.arange(days)) * DAY_S - utc_offset_h * HOUR_S
    whole: NDArray[np.bool_] = (starts >= windows.since) & (starts + DAY_S <= windows.until)
    return whole


def _profile(grid: Array) -> list[float]:
    """The mean of each hour over the days on which it was observed; 0 where it never was."""
    seen = ~np.isnan(grid)
    counts = seen.sum(axis=0)
    sums = np.where(seen, grid, 0.0).sum(axis=0)
    return [float(v) for v in np.divide(sums, counts, out=np.zeros(24), where=counts > 0)]
