"""When a site's window opens and closes, found in a whole trace at once."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.policy import Always, PolicySection, uncapped
from uncurtail.core.signals import PLAUSIBLE_G_PER_KWH, Trace

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Changes:
    """The times at which a site's state changes, and the state from each on; all shape (n,).

    `known`: the power is known. `open`: so is its window, which is never so on unknown power.
    `dim`: it is open for capped power only.
    """

    times: list[float]
    known: list[bool]
    open: list[bool]
    dim: list[bool]


def find_changes(policy: PolicySection, trace: Trace, start: float, until: float) -> Changes:
    """What `policy.window` says of each reading in [start, until), and between them.

    The value in force at `start` counts as read then, as a feed tells it. A reading goes stale by
    itself. Time at which nothing changes is left out; the first time is `start`.
    """
    times, values = readings(trace, start, until)
    times, values = _gone_stale(times, values, policy.stale_after_s, until)
    low, high = PLAUSIBLE_G_PER_KWH
    known = (values >= low) & (values <= high)
    is_open = _opened(policy, values, known)
    dim = np.zeros_like(is_open)
    if policy.cap_below_g_per_kwh is not None:
        dim = is_open & ~_opened(uncapped(policy), values, known)
    differs = [series[1:] != series[:-1] for series in (known, is_open, dim)]
    changed = np.append(True, np.logical_or.reduce(differs))
    return Changes(times[changed].tolist(), *(s[changed].tolist() for s in (known, is_open, dim)))


def _opened(policy: PolicySection, values: Array, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the window is open from each reading on."""
    if isinstance(policy, Always):
        return np.ones(len(values), dtype=bool)
    enters = known & (values < policy.opens_below_g_per_kwh)
    leaves = ~known | (values > policy.closes_above_g_per_kwh)
    # In between, hysteresis: the last that was decided holds; closed at first.
    said = np.where(enters | leaves, np.arange(len(values)), -1)
    last = np.maximum.accumulate(said)
    return np.asarray(np.where(last >= 0, enters[np.maximum(last, 0)], False))


def readings(trace: Trace, start: float, until: float) -> tuple[Array, Array]:
    """Times and values (g/kWh, NaN unknown) from `start` on, as a feed publishes them."""
    first = int(trace.times.searchsorted(start, side="right"))
    last = int(trace.times.searchsorted(min(until, trace.end), side="left"))
    now = trace.at(start)
    times = np.append(start, trace.times[first:last])
    values = np.append(math.nan if now is None else now, trace.values[first:last])
    if start < trace.end < until:
        times, values = np.append(times, trace.end), np.append(values, math.nan)
    return times, values


def _gone_stale(
    times: Array, values: Array, stale_after_s: float, until: float
) -> tuple[Array, Array]:
    """With a row of unknown power wherever a reading is not renewed in time."""
    held = np.append(times[1:], until) - times
    stale = np.flatnonzero((held > stale_after_s) & np.isfinite(values))
    if not stale.size:
        return times, values
    return (
        np.insert(times, stale + 1, times[stale] + stale_after_s),
        np.insert(values, stale + 1, math.nan),
    )
