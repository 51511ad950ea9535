"""Stage 1: what is believed about a site's power to come: forecasts, and how long windows last.

A forecast is a value: what was said at one time (`issued`) about one site. Its makers are pure, so
a forecast of any time can be made again, in any order, and is the same to the last bit.
"""

import bisect
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.signals import Trace

Array = NDArray[np.float64]
ForecastKind = Literal["none", "persistence", "climatology", "perfect", "noisy"]

HOUR_S = 3600.0
SLOT_S = 300.0
# Fewer windows than this say nothing about the next.
FEWEST_WINDOWS = 4
# Climatology looks back so far: a season, not a year.
MEMORY_S = 28 * 86400.0


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """How wrong a forecast is; see `noisy` for what each number does.

    `edge_sd_s` is the standard deviation of a predicted window end one hour ahead. 1,800 s makes
    the median error 20 minutes there, and 60 a day ahead, where the growth ends.
    """

    edge_sd_s: float = 1800.0
    edge_correlation: float = 0.5
    miss_share: float = 0.05
    level_sd: float = 0.1
    level_hours: float = 6.0


# A window's end nine hours ahead is as uncertain as it gets.
LONGEST_GROWTH_H = 9.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was said at `issued` about a site's carbon intensity over [issued, until).

    `trace` holds it stepwise in gCO2/kWh, NaN where nothing is said; what it holds from `until` on
    does not count. `edge_sd_s` is its own word on its quality: the standard deviation of a window's
    predicted end one hour ahead.
    """

    site: str
    issued: float
    trace: Trace
    until: float
    edge_sd_s: float = 0.0

    def error_s(self, lead_s: float) -> float:
        """Standard deviation of a window's end that is predicted so far ahead, in seconds."""
        hours = min(max(lead_s / HOUR_S, 0.0), LONGEST_GROWTH_H)
        return self.edge_sd_s * math.sqrt(hours)

    def clean_until(self, now: float, above: float) -> float:
        """From `now` on, the first time that is above so many g/kWh or unknown; `until` if none."""
        first, values = self._from(now)
        dirty = ~(values <= above)
        if not dirty.size:
            return max(now, self.until)
        at = int(dirty.argmax())
        if not dirty[at]:
            return self.until
        return max(now, float(self.trace.times[first + at]))

    def clean_from(self, now: float, below: float) -> float:
        """From `now` on, the first time that is below so many g/kWh; infinite if none is seen."""
        first, values = self._from(now)
        clean = values < below
        if not clean.size:
            return math.inf
        at = int(clean.argmax())
        return max(now, float(self.trace.times[first + at])) if clean[at] else math.inf

    def mean(self, start: float, end: float) -> float | None:
        """The mean over [start, end) in g/kWh; None where any of it is not said."""
        if not start < end or end > self.until:
            return None
        first, values = self._from(start)
        if not values.size or self.trace.times[first] > start:
            return None
        edges = np.clip(np.append(self.trace.times[first : first + len(values)], end), start, end)
        value = float(np.dot(values, np.diff(edges))) / (end - start)
        return value if math.isfinite(value) else None

    def sample(self, times: Array) -> Array:
        """The values at these times, NaN where nothing is said."""
        at = np.searchsorted(self.trace.times, times, side="right") - 1
        said = (at >= 0) & (times < min(self.until, self.trace.end))
        return np.where(said, self.trace.values[np.maximum(at, 0)], np.nan)

    def steps(self) -> list[list[float]]:
        """[seconds after `issued`, g/kWh to 0.1] wherever the value changes, up to `until`."""
        first, values = self._from(self.issued)
        rows: list[list[float]] = []
        for t, value in zip(self.trace.times[first:], np.round(values, 1), strict=False):
            if not rows or rows[-1][1] != value:
                rows.append([round(max(0.0, float(t) - self.issued), 3), float(value)])
        return rows

    def _from(self, now: float) -> tuple[int, Array]:
        """The values in force from `now` to the end of the forecast, and where they begin."""
        times, until = self.trace.times, min(self.until, self.trace.end)
        first = max(int(times.searchsorted(now, side="right")) - 1, 0)
        last = int(times.searchsorted(until, side="left"))
        if now >= until:
            last = first
        return first, self.trace.values[first:last]


def perfect(truth: Trace, site: str, issued: float, horizon_s: float) -> Forecast:
    """What really comes: for traces that are known in advance."""
    return Forecast(site, issued, truth, min(issued + horizon_s, truth.end))


def tariff(eur_per_kwh: float, start: float) -> Trace:
    """A price (EUR/kWh) that holds from `start` on."""
    return Trace(np.array([start]), np.array([eur_per_kwh]), math.inf)


def persistence(history: Trace, site: str, issued: float, horizon_s: float) -> Forecast | None:
    """It stays as it is: the value at `issued` for all of the horizon; None if it is unknown."""
    value = history.at(issued)
    if value is None:
        return None
    until = issued + horizon_s
    return Forecast(site, issued, Trace(np.array([issued]), np.array([value]), until), until)


def climatology(history: Trace, site: str, issued: float, horizon_s: float) -> Forecast | None:
    """Each hour of the day as it was on average so far: the mean intensity of that UTC hour.

    `history` is read before `issued` only, at most four weeks back. An hour that was not seen yet
    takes the mean of all. The mean of a bimodal grid lies between its plateaus: good for choosing
    among hours (`deadline`), useless for telling a window's end; see `Experience` for that. None
    with less than a day of readings.
    """
    times, values = history.times, history.values
    last = int(times.searchsorted(issued, side="right"))
    first = int(times.searchsorted(issued - MEMORY_S, side="left"))
    edges = np.append(times[first:last], issued)
    held, seen = np.diff(edges), values[first:last]
    known = np.isfinite(seen)
    if float(held[known].sum()) < 86400.0:
        return None
    hours = (edges[:-1] // HOUR_S).astype(np.int64) % 24
    weight = np.bincount(hours[known], held[known], minlength=24)
    total = np.bincount(hours[known], (held * seen)[known], minlength=24)
    overall = float(total.sum() / weight.sum())
    by_hour = np.where(weight > 0, total / np.maximum(weight, 1e-9), overall)
    until = issued + horizon_s
    whole = np.arange(math.floor(issued / HOUR_S), math.ceil(until / HOUR_S), dtype=np.int64)
    starts = np.maximum(whole * HOUR_S, issued)
    return Forecast(site, issued, Trace(starts, by_hour[whole % 24], until), until, 2 * HOUR_S)


@dataclass(frozen=True, slots=True)
class Noise:
    """What makes a forecast wrong: the error model, its seed, and what counts as clean (g/kWh)."""

    error: ErrorModel = ErrorModel()
    seed: int = 0
    clean_below: float = 100.0


def noisy(
    truth: Trace, site: str, issued: float, horizon_s: float, noise: Noise | None = None
) -> Forecast:
    """The truth with errors that grow with the lead, as a real forecast's do.

    Error model. *Ends*: every time at which the truth crosses `clean_below` is moved by a Gaussian
    of standard deviation `edge_sd_s` * sqrt(lead in hours), at most nine hours' worth, correlated
    by `edge_correlation` from one to the next; values are stretched to fit, and stretches whose
    ends cross vanish. *Misses*: with probability `miss_share` a crossing is not seen, and what was
    before it lasts until the next. *Levels*: values are multiplied by exp(x), with x an AR(1)
    along the horizon that starts at 0, forgets within `level_hours` and settles at `level_sd`.
    The value at `issued` is the truth's, but for the misplaced crossings.

    All of it is drawn from (seed, site, issued) alone: any issue can be made again, in any order,
    and two issues err independently. Slots are 5 minutes.
    """
    noise = noise or Noise()
    error, until = noise.error, min(issued + horizon_s, truth.end)
    entropy = [noise.seed, zlib.crc32(site.encode()), int(issued * 1000.0)]
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    slots = np.arange(issued, until, SLOT_S)
    if not slots.size:
        return Forecast(site, issued, truth, issued, error.edge_sd_s)
    edges = _crossings(truth, issued, until, noise.clean_below)
    sources = _moved(slots, edges, until, random, error)
    at = np.searchsorted(truth.times, sources, side="right") - 1
    values = np.where(at >= 0, truth.values[np.maximum(at, 0)], np.nan)
    values *= np.exp(_levels(len(slots), random, error))
    return Forecast(site, issued, Trace(slots, values, until), until, error.edge_sd_s)


def _crossings(truth: Trace, start: float, until: float, below: float) -> Array:
    first = max(int(truth.times.searchsorted(start, side="right")) - 1, 0)
    last = int(truth.times.searchsorted(until, side="left"))
    clean = truth.values[first:last] < below
    return truth.times[first + 1 + np.flatnonzero(clean[1:] != clean[:-1])]


def _moved(
    slots: Array, edges: Array, until: float, random: np.random.Generator, error: ErrorModel
) -> Array:
    """For each slot the true time whose value is predicted for it."""
    count = len(edges)
    if not count:
        return slots
    shocks, lots = random.standard_normal(count), random.random(count)
    rho = error.edge_correlation
    for i in range(1, count):
        shocks[i] = rho * shocks[i - 1] + math.sqrt(1.0 - rho**2) * shocks[i]
    lead_h = np.minimum((edges - slots[0]) / HOUR_S, LONGEST_GROWTH_H)
    predicted = edges + error.edge_sd_s * np.sqrt(lead_h) * shocks
    predicted = np.clip(np.maximum.accumulate(predicted), slots[0], until)
    knots = np.concatenate([[slots[0]], predicted, [until]])
    truths = np.concatenate([[slots[0]], edges, [until]])
    part = np.searchsorted(predicted, slots, side="right")  # 0: before the first crossing
    left, right = knots[part], knots[part + 1]
    share = (slots - left) / np.maximum(right - left, 1e-9)
    sources: Array = truths[part] + np.clip(share, 0.0, 1.0) * (truths[part + 1] - truths[part])
    # Rounding must not carry a slot over the crossing it lies before.
    sources = np.minimum(sources, np.nextafter(truths[part + 1], -np.inf))
    missed = lots < error.miss_share
    missed[1:] &= ~missed[:-1]  # two in a row would hide a whole stretch and show the next
    unseen = np.append(False, missed)[part]
    before = np.nextafter(truths[part], -np.inf)
    return np.where(unseen, before, sources)


def _levels(count: int, random: np.random.Generator, error: ErrorModel) -> Array:
    rho = math.exp(-SLOT_S / (HOUR_S * error.level_hours))
    shocks = random.standard_normal(count) * error.level_sd * math.sqrt(1.0 - rho**2)
    shocks[0] = 0.0
    steps = np.arange(count)
    # sum of rho**(n - k) * shock[k], by blocks: rho**-n would overflow on long horizons.
    path = np.empty(count)
    carried, size = 0.0, 256
    for start in range(0, count, size):
        block = shocks[start : start + size]
        powers = rho ** steps[: len(block)]
        path[start : start + size] = (np.cumsum(block / powers) + carried * rho) * powers
        carried = float(path[start + len(block) - 1])
    return path


class Experience:
    """How long a site's windows lasted so far: a plain value that grows by whole windows.

    Windows that ended because power became unknown are not told to it: nobody saw their end.
    """

    def __init__(self, lengths_s: Sequence[float] = ()) -> None:
        """The lengths of the windows that ended, in seconds."""
        self._lengths = sorted(lengths_s)
        self._ripe: dict[float, float] = {}

    def add(self, length_s: float) -> None:
        """One more window came to its end."""
        bisect.insort(self._lengths, length_s)
        self._ripe.clear()

    def __len__(self) -> int:
        return len(self._lengths)

    def lasts(self, age_s: float, more_s: float) -> float | None:
        """The share of windows older than `age_s` that went on for `more_s`; None if unknown."""
        older = len(self._lengths) - bisect.bisect_right(self._lengths, age_s)
        if older < FEWEST_WINDOWS:
            return None
        return (len(self._lengths) - bisect.bisect_left(self._lengths, age_s + more_s)) / older

    def ripe_s(self, more_s: float) -> float:
        """The age from which a window more likely than not goes on for `more_s`.

        At most the age beyond which too few windows are known to say so.
        """
        if more_s not in self._ripe:
            self._ripe[more_s] = self._find_ripe(more_s)
        return self._ripe[more_s]

    def _find_ripe(self, more_s: float) -> float:
        lengths = np.array([0.0, *self._lengths])
        count = len(self._lengths)
        older = count - np.searchsorted(lengths[1:], lengths, side="right")
        lasting = count - np.searchsorted(lengths[1:], lengths + more_s, side="left")
        ripe = (2 * lasting >= older) | (older < FEWEST_WINDOWS)
        return float(lengths[int(ripe.argmax())])
