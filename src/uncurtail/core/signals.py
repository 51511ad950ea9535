"""Stage 1: what is known about a site's power, and since when."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# No grid emits more than an oil plant's ~1,200 gCO2/kWh at the margin; negative is a broken feed.
PLAUSIBLE_G_PER_KWH = (0.0, 2000.0)


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of a site's carbon intensity (gCO2/kWh) as published at `t` (unix seconds).

    `value` None means that the source said it does not know.
    """

    site: str
    t: float
    value: float | None

    def age_s(self, now: float) -> float:
        """Seconds since the value was published."""
        return now - self.t


def usable(reading: Reading | None, now: float, stale_after_s: float) -> float | None:
    """The reading's value if it may be acted on, else None: unknown power is never green.

    Unknown is: no reading, a missing, non-finite or implausible value, one older than
    `stale_after_s`, or one more than `stale_after_s` in the future (a clock that lies).
    """
    if reading is None or reading.value is None or not math.isfinite(reading.value):
        return None
    low, high = PLAUSIBLE_G_PER_KWH
    # "not <=" rather than ">": an age of NaN is not fresh either.
    if not low <= reading.value <= high or not abs(reading.age_s(now)) <= stale_after_s:
        return None
    return reading.value


@dataclass(frozen=True, slots=True)
class Trace:
    """A site's carbon intensity over time, held stepwise: `values[i]` from `times[i]` on.

    `times` are unix seconds, strictly rising, shape (n,); `values` are gCO2/kWh, shape (n,), NaN
    where unknown. The last value holds until `end`, which may be infinite; outside
    [times[0], end) nothing is known, so rows at or after `end` say nothing.

    Raises:
        ValueError: The arrays are empty, of different length or not one-dimensional, times are not
            finite and strictly rising, or `end` is NaN.
    """

    times: NDArray[np.float64]
    values: NDArray[np.float64]
    end: float

    def __post_init__(self) -> None:
        if self.times.ndim != 1 or self.times.shape != self.values.shape or not self.times.size:
            shapes = f"{self.times.shape} and {self.values.shape}"
            raise ValueError(f"times and values must be (n,) with equal n > 0, got {shapes}")
        if not (np.isfinite(self.times).all() and (np.diff(self.times) > 0).all()):
            raise ValueError("times must be finite and strictly rising: sort, drop duplicates")
        if math.isnan(self.end):
            raise ValueError("end must be unix seconds or infinity, got NaN")

    def at(self, t: float) -> float | None:
        """The value in force at `t`, or None where nothing is known."""
        index = int(np.searchsorted(self.times, t, side="right")) - 1
        if index < 0 or t >= self.end or not math.isfinite(self.values[index]):
            return None
        return float(self.values[index])

    def changes(self, after: float, until: float) -> NDArray[np.float64]:
        """The times in (after, until] at which something is published, rising.

        These are `times` before `end`, and `end` itself where a known value becomes unknown there.
        A repeated value counts: it is news, since it renews the reading's age.
        """
        first, last = np.searchsorted(self.times, (after, until), side="right")
        # `first` exceeds `last` when until < after: the slice is then empty, as it should be.
        inside = self.times[first : min(int(last), self._rows_before_end())]
        end = self._end_of_knowledge()
        return np.append(inside, end) if after < end <= until and end < math.inf else inside

    def next_change(self, now: float) -> float:
        """The first of `changes` after `now`, or infinity when nothing more is published."""
        index = int(np.searchsorted(self.times, now, side="right"))
        if index < self._rows_before_end():
            return float(self.times[index])
        end = self._end_of_knowledge()
        return end if now < end else math.inf

    def _rows_before_end(self) -> int:
        return int(np.searchsorted(self.times, self.end, side="left"))

    def _end_of_knowledge(self) -> float:
        """`end` if a known value ends there, else infinity: nothing known can end."""
        count = self._rows_before_end()
        return self.end if count and math.isfinite(self.values[count - 1]) else math.inf
