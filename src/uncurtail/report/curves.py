"""The curves that figures draw, as plain arrays; times are simulated unix seconds."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.ledger import J_PER_KWH
from uncurtail.core.signals import Trace
from uncurtail.report.rundata import RunData

Array = NDArray[np.float64]

# More points than this cannot be told apart in a figure a thousand pixels wide.
MAX_POINTS = 2000


def intensity(run: RunData, site: str) -> tuple[Array, Array]:
    """Times (n,) and gCO2/kWh (n,) of a site, NaN where unknown.

    Stepwise: a value holds until the next time. The last point repeats the last value at the
    run's end.
    """
    trace = run.traces.get(site)
    if trace is None or run.end is None or run.end < trace.times[0]:
        return np.empty(0), np.empty(0)
    times = np.append(trace.times, max(run.end, float(trace.times[-1])))
    return times, np.append(trace.values, trace.values[-1])


def highest(run: RunData) -> float:
    """The top of an intensity axis (gCO2/kWh): one for all sites, so that heights compare."""
    known = [np.nanmax(t.values) for t in run.traces.values() if not np.isnan(t.values).all()]
    return 1.12 * max([run.enter_below_g_per_kwh * 1.3, *(float(value) for value in known)])


def power_kw(run: RunData) -> tuple[Array, dict[str, Array]]:
    """Edges (n + 1,) and each site's power (n,) between them, in kW."""
    edges = np.unique(np.array([t for s in run.segments for t in (s.start, s.end)]))
    power = {site: np.zeros(max(0, len(edges) - 1)) for site in run.sites}
    for segment in run.segments:
        first, last = np.searchsorted(edges, (segment.start, segment.end))
        if segment.site in power:
            power[segment.site][first:last] = segment.power_w / 1000.0
    return edges, power


def emissions_kg(run: RunData) -> tuple[Array, Array]:
    """The run's cumulative emissions: times (n,) and kgCO2 (n,), linear in between."""
    edges = np.unique(np.array([t for s in run.segments for t in (s.start, s.end)]))
    rate = np.zeros(max(0, len(edges) - 1))  # kg/s
    for segment in run.segments:
        if segment.intensity_g_per_kwh is not None and segment.end > segment.start:
            first, last = np.searchsorted(edges, (segment.start, segment.end))
            grams_per_s = segment.power_w / J_PER_KWH * segment.intensity_g_per_kwh
            rate[first:last] += grams_per_s / 1000.0
    return edges, np.concatenate([[0.0], np.cumsum(rate * np.diff(edges))])[: len(edges)]


def baseline_kg(run: RunData, site: str) -> tuple[Array, Array]:
    """A site alone and always on: times (n,) and cumulative kgCO2 (n,), linear in between.

    It ends when the work is done, or where the site's readings no longer say.
    """
    trace = run.traces.get(site)
    if trace is None or run.start is None or run.train_s <= 0:
        return np.empty(0), np.empty(0)
    start = run.known_from
    end = start + run.train_s
    inside = trace.times[(trace.times > start) & (trace.times < end)]
    times, total = [start], [0.0]
    for t in [*inside.tolist(), end]:
        value = _known(trace, times[-1], t)
        if value is None:
            break
        grams = run.train_power_w(site) * (t - times[-1]) / J_PER_KWH * value
        times.append(t)
        total.append(total[-1] + grams / 1000.0)
    return np.array(times), np.array(total)


def _known(trace: Trace, start: float, end: float) -> float | None:
    value = trace.at(start)
    return None if value is None or end > trace.end else value


def losses(run: RunData) -> Iterator[tuple[str, Array, Array, Array]]:
    """Each site's (name, times, tokens of the whole run by then, training losses), thinned.

    Tokens are those of every step reported so far by any site: also what no commit counted.
    """
    trained = np.cumsum([report.tokens for _, report in run.steps], dtype=np.float64)
    for site in run.sites:
        own = [i for i, (_, report) in enumerate(run.steps) if report.site == site]
        times = np.array([run.steps[i][0] for i in own])
        loss = np.array([run.steps[i][1].loss for i in own])
        if own:
            yield site, thin(times), thin(trained[own]), thin(loss)


def thin(values: Array) -> Array:
    """At most `MAX_POINTS` values: means of equal stretches."""
    if len(values) <= MAX_POINTS:
        return values
    stretch = math.ceil(len(values) / MAX_POINTS)
    starts = np.arange(0, len(values), stretch)
    counts = np.diff(np.append(starts, len(values)))
    means: Array = np.add.reduceat(values, starts) / counts
    return means
