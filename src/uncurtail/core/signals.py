"""Stage 1: what is known about a site's power, and since when."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

G_PER_KWH = "gCO2/kWh"
EUR_PER_KWH = "EUR/kWh"
WATT = "W"
# No grid emits more than an oil plant's ~1,200 gCO2/kWh at the margin; negative is a broken feed.
PLAUSIBLE_G_PER_KWH = (0.0, 2000.0)


class Kind(StrEnum):
    """What a signal measures. The two intensities answer different questions: never mix them."""

    MARGINAL = "marginal"  # of the plant that one more kWh would run: near 0 during curtailment
    AVERAGE = "average"  # of all plants together: says little about curtailment
    PRICE = "price"
    POWER = "power"


# Markets cap at about 17,000 EUR/MWh: what is beyond was given in another unit.
PLAUSIBLE_EUR_PER_KWH = (-20.0, 20.0)
# What can be true: per kWh, per MWh in any currency (markets cap at about 17,000), in W of a site.
PLAUSIBLE: MappingProxyType[Kind, tuple[float, float]] = MappingProxyType(
    {
        Kind.MARGINAL: PLAUSIBLE_G_PER_KWH,
        Kind.AVERAGE: PLAUSIBLE_G_PER_KWH,
        Kind.PRICE: (-20_000.0, 20_000.0),
        Kind.POWER: (0.0, 1e9),
    }
)


@dataclass(frozen=True, slots=True)
class Signal:
    """What the numbers of a reading or trace mean, and who says them (`source`)."""

    kind: Kind = Kind.MARGINAL
    unit: str = G_PER_KWH
    source: str = ""

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value that can be true."""
        if self.unit == EUR_PER_KWH:
            return PLAUSIBLE_EUR_PER_KWH
        return PLAUSIBLE[self.kind]

    def plausible(self, value: float) -> bool:
        """Whether a value can be true; NaN cannot."""
        low, high = self.range
        return low <= value <= high


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of a site's signal (carbon intensity, unless `signal` says otherwise).

    `t` is when it became known to us, in unix seconds, and it holds from there on; `published` is
    the source's own time for it, None where the two are one. `value` None means that the source
    said it does not know.
    """

    site: str
    t: float
    value: float | None
    published: float | None = None
    signal: Signal = Signal()

    @property
    def as_of(self) -> float:
        """What its age counts from: the publication, or the arrival if a clock put that first."""
        return self.t if self.published is None else min(self.t, self.published)

    def age_s(self, now: float) -> float:
        """Seconds since the value was published; what only came late is not young."""
        return now - self.as_of

    def ahead_s(self, now: float) -> float:
        """How far the value was stamped ahead of the time at which it was known."""
        return (self.t if self.published is None else self.published) - min(self.t, now)


def in_force(readings: Sequence[Reading], t: float) -> Reading | None:
    """The newest of one site's readings, rising in time, that was known at `t`, however old."""
    index = bisect_right(readings, t, key=lambda reading: reading.t) - 1
    return None if index < 0 else readings[index]


def usable(
    reading: Reading | None, now: float, stale_after_s: float, unit: str = G_PER_KWH
) -> float | None:
    """The reading's value if it may be acted on, else None: unknown power is never green.

    Unknown is: no reading, a missing, non-finite or implausible value, one of another unit than
    the caller compares with, one older than `stale_after_s`, or one stamped more than
    `stale_after_s` ahead of its time (a clock that lies; waiting does not make it true).
    """
    if reading is None or reading.value is None or reading.signal.unit != unit:
        return None
    fresh = reading.age_s(now) <= stale_after_s and reading.ahead_s(now) <= stale_after_s
    # An age or a value of NaN fails its comparison, so that it is not usable either.
    return reading.value if fresh and reading.signal.plausible(reading.value) else None


@dataclass(frozen=True, slots=True)
class Trace:
    """A site's signal over time, held stepwise: `values[i]` from `times[i]` on.

    `times` are unix seconds, strictly rising, shape (n,); `values` are in the signal's unit
    (gCO2/kWh), shape (n,), NaN where unknown. The last value holds until `end`, which may be
    infinite; outside [times[0], end) nothing is known, so rows at or after `end` say nothing.

    Raises:
        ValueError: The arrays are empty, of different length or not one-dimensional, times are not
            finite and strictly rising, or `end` is NaN.
    """

    times: NDArray[np.float64]
    values: NDArray[np.float64]
    end: float
    signal: Signal = Signal()

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
