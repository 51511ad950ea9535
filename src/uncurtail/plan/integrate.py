"""From what sites did to joules and grams: exact integrals over stepwise intensities."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.ledger import J_PER_KWH, Energy
from uncurtail.core.signals import Trace

Array = NDArray[np.float64]
Spans = tuple[Array, Array]  # starts and ends, each (n,), rising and without overlap


class Integral:
    """Integrals of a stepwise series over time, as running totals at its own change points."""

    def __init__(self, trace: Trace, rows: slice, clean_below: float) -> None:
        """`rows` are the part of the trace that matters; before it and after its end is unknown."""
        times, values = trace.times[rows], trace.values[rows]
        ends = np.append(times[1:], min(trace.end, _LAST))
        held = np.maximum(ends - times, 0.0)
        known = np.isfinite(values)
        amounts = np.where(known, values, 0.0)
        self._times = np.append(times, ends[-1])
        self._totals = [
            np.append(0.0, np.cumsum(series * held))
            for series in (amounts, known & (values < clean_below), known)
        ]

    def over(self, spans: Spans) -> tuple[float, float, float]:
        """(value * s, seconds below the threshold, seconds known) summed over the spans."""
        total, clean, known = (
            float((np.interp(spans[1], self._times, t) - np.interp(spans[0], self._times, t)).sum())
            for t in self._totals
        )
        return total, clean, known

    def energy(self, spans: Spans, power_w: float, prices: "Integral | None" = None) -> Energy:
        """What a constant load over the spans takes and emits."""
        if not len(spans[0]) or power_w == 0.0:
            return Energy()
        total, clean, known = self.over(spans)
        seconds = float((spans[1] - spans[0]).sum())
        return Energy(
            energy_j=seconds * power_w,
            emissions_g=total * power_w / J_PER_KWH,
            clean_j=clean * power_w,
            unpriced_j=max(0.0, seconds - known) * power_w,
            cost_eur=0.0 if prices is None else prices.over(spans)[0] * power_w / J_PER_KWH,
        )


# A trace without an end holds its last value until here (year 2286).
_LAST = 1e10


def rows_between(trace: Trace, start: float, until: float) -> slice:
    """The rows in force somewhere in [start, until)."""
    first = max(int(trace.times.searchsorted(start, side="right")) - 1, 0)
    last = int(trace.times.searchsorted(until, side="left"))
    return slice(first, max(last, first + 1))


def together(trained: Sequence[Spans]) -> Spans:
    """When at least two sites train."""
    starts = np.concatenate([np.empty(0), *(spans[0] for spans in trained)])
    ends = np.concatenate([np.empty(0), *(spans[1] for spans in trained)])
    times = np.concatenate([starts, ends])
    steps = np.concatenate([np.ones(len(starts)), -np.ones(len(ends))])
    order = np.argsort(times, kind="stable")
    times, count = times[order], np.cumsum(steps[order])
    settled = np.append(times[1:] > times[:-1], True) if len(times) else np.empty(0, dtype=bool)
    times, many = times[settled], count[settled] >= 2
    before = np.append(False, many[:-1]) if len(many) else many
    return times[many & ~before], times[~many & before]


def intersect(left: Spans, right: Spans) -> Spans:
    """The time that lies in both."""
    if not len(left[0]) or not len(right[0]):
        return np.empty(0), np.empty(0)
    starts = np.concatenate([left[0], right[0]])
    ends = np.concatenate([left[1], right[1]])
    starts.sort()
    ends.sort()
    # Each side is free of overlap, so two are in force exactly between the k-th start and the
    # (k - 1)-th end.
    begin, end = starts[1:], ends[:-1]
    some = begin < end
    return begin[some], end[some]
