"""Stage 1: synthetic sunshine, seeded: what solar panels at a site yield, by latitude and clouds.

The sun's height and the loss in clouds follow Kasten & Czeplak (1980): clear sky yields
910 sin(height) - 30 W/m2, and a cover of c lets 1 - 0.75 c^3.4 of it through. The panels are taken
as flat. Clouds are made up: nothing is fitted to a place.
"""

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.signals import Kind, Signal, Trace

SLOT_S = 300
_HOURS = 24
_DAY_S = 86_400.0
_TILT_DEG = 23.44
# Cover is this much on average; a day deviates by the first, its hours by the second.
_COVER_MEAN, _COVER_DAY_SD, _COVER_HOUR_SD = 0.45, 0.3, 0.15

WATTS = Signal(Kind.POWER, "W", "synthetic")
Array = NDArray[np.float64]


def sunshine(
    peak_w: float,
    *,
    seed: int,
    start: float,
    duration_s: float,
    latitude: float = 35.0,
    utc_offset_h: float = 0.0,
) -> Trace:
    """What panels of `peak_w` yield (W) over [start, start + duration_s), every five minutes.

    The value at an absolute time depends on the other arguments alone, so two calls agree
    wherever they overlap; local noon is at 12 h by `utc_offset_h`.
    """
    first = math.floor(start / SLOT_S)
    last = math.ceil((start + duration_s) / SLOT_S)
    times = np.arange(first, last, dtype=np.float64) * SLOT_S
    local = times + utc_offset_h * 3600.0
    clear = np.maximum(0.0, 910.0 * _height_sine(local, latitude) - 30.0) / 880.0
    through = 1.0 - 0.75 * _cover(local, seed) ** 3.4
    values = (peak_w * clear * through).round(3)
    times[0] = start
    return Trace(times, values, start + duration_s, WATTS)


def _height_sine(local: Array, latitude: float) -> Array:
    """The sine of the sun's height over the horizon."""
    year = 2.0 * math.pi * (local / _DAY_S + 10.0) / 365.25  # 1970 began with January
    declination = -math.radians(_TILT_DEG) * np.cos(year)
    hour = 2.0 * math.pi * (local % _DAY_S) / _DAY_S - math.pi
    north = math.radians(latitude)
    sine: Array = np.sin(north) * np.sin(declination) + np.cos(north) * np.cos(
        declination
    ) * np.cos(hour)
    return sine


def _cover(local: Array, seed: int) -> Array:
    """The share of the sky in clouds: a level for each day, and noise between its hours."""
    days = np.floor(local / _DAY_S).astype(np.int64)
    first, last = int(days[0]), int(days[-1])
    entropy = np.random.SeedSequence([seed, zlib.crc32(b"sunshine")])
    key = np.asarray(entropy.generate_state(2, np.uint64), dtype=np.uint64)
    drawn = np.stack([_day(key, day) for day in range(first, last + 2)])
    hours = drawn[:, 1:].ravel()
    at = local / 3600.0 - first * _HOURS
    below = np.floor(at).astype(np.int64)
    part = at - below
    hourly = hours[below] * (1.0 - part) + hours[below + 1] * part
    cover = _COVER_MEAN + _COVER_DAY_SD * drawn[days - first, 0] + _COVER_HOUR_SD * hourly
    clipped: Array = np.clip(cover, 0.0, 1.0)
    return clipped


def _day(key: NDArray[np.uint64], day: int) -> Array:
    """One local day's normals: its own, then one for each hour."""
    bits = np.random.Philox(key=key, counter=[0, 0, 0, day % 2**63])
    return np.random.Generator(bits).standard_normal(1 + _HOURS)
