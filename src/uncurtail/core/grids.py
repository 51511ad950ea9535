"""Stage 1: synthetic grids, seeded: carbon intensity that behaves like a real region's.

A latent surplus of renewable power follows the hour of day, the weather of the day and fast noise;
while it is positive the region is curtailed and its marginal intensity sits on a clean plateau,
else on a fossil one. Any stretch of a grid is a window into one endless series: see `synthetic`.
"""

import difflib
import math
import zlib
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from uncurtail.core.signals import Trace

SLOT_S = 300
_SLOTS = 86_400 // SLOT_S
# Noise remembers this many days; what is forgotten is below 1e-6 of its standard deviation at the
# slowest rho of the presets (.89 ** 128, .98 ** (3 * 288)), so every day is a finite computation.
_WEATHER_DAYS = 128
_FAST_DAYS = 3
# Plateaus wander slowly: at .98 per slot the 5-min changes of "duck" match the real month's.
_PLATEAU_RHO = 0.98
# A clean plateau stays clearly below any sensible threshold, an intermediate slot clearly above:
# with Gaussian tails a window would flicker for reasons that no real grid has.
_CLEAN_MAX = 90.0
_MID_RANGE = (0.25, 0.65)

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A grid's behaviour: surplus(t) > 0 iff curtailed, in units of its own; time in 5-min slots.

    surplus = level + (amplitude + weather) * shape + (fast + jitter) * shape, where shape is a
    Gaussian of the local hour (`center_h`, `width_h`), weather an AR(1) over days, fast an AR(1)
    over slots, jitter white. With `solar` False, weather (interpolated between midnights) and fast
    act at every hour. Plateaus are (mean, standard deviation) in gCO2/kWh. `mid_share` of the
    window ends pass through one intermediate slot.
    """

    center_h: float = 0.0
    width_h: float = 1.0
    level: float
    amplitude: float = 0.0
    day_sd: float = 0.0
    day_rho: float = 0.0
    fast_sd: float = 0.0
    fast_rho: float = 0.9
    jitter_sd: float = 0.0
    mid_share: float = 0.0
    solar: bool = True
    clean_g_per_kwh: tuple[float, float] = (0.0, 0.0)
    fossil_g_per_kwh: tuple[float, float]


PRESETS: MappingProxyType[str, Preset] = MappingProxyType(
    {
        "duck": Preset(
            center_h=12.3, width_h=5.29, level=-0.677, amplitude=0.698, day_sd=0.20, day_rho=0.45,
            fast_sd=0.15, fast_rho=0.954, jitter_sd=0.009, mid_share=0.28,
            clean_g_per_kwh=(50.0, 15.0), fossil_g_per_kwh=(420.0, 14.0),
        ),
        "solar": Preset(
            center_h=12.8, width_h=4.52, level=-0.915, amplitude=1.6, day_sd=0.53, day_rho=0.89,
            fast_sd=0.088, fast_rho=0.95, jitter_sd=0.028, mid_share=0.35,
            fossil_g_per_kwh=(840.0, 35.0),
        ),
        "windy": Preset(
            center_h=2.0, width_h=4.86, level=-1.4, amplitude=1.5, day_sd=0.98, day_rho=0.82,
            fast_sd=0.11, fast_rho=0.922, jitter_sd=0.009, solar=False,
            clean_g_per_kwh=(22.0, 18.0), fossil_g_per_kwh=(645.0, 12.0),
        ),
        "coal": Preset(level=-3.0, fossil_g_per_kwh=(750.0, 18.0)),
    }
)  # fmt: skip


def synthetic(
    preset: str,
    *,
    seed: int,
    start: float,
    duration_s: float,
    step_s: float = SLOT_S,
    utc_offset_h: float = 0.0,
) -> Trace:
    """A made-up region's marginal carbon intensity (gCO2/kWh) over [start, start + duration_s).

    "duck" is fitted to summary statistics of one real month (a Californian summer: share of time
    curtailed, windows a day and their lengths). "solar", "windy" and "coal" are only tuned to
    plausible targets: read nothing about a real grid from them. Entries jump in one slot, and
    only exits may pass through an intermediate one, so fewer slots lie between the plateaus than
    in the real month (about 0.3 % of the time against 2.8 %, at 100-300 g).

    The value in force at an absolute time depends on (preset, seed, utc_offset_h, step_s) alone:
    two calls agree bit for bit wherever they overlap, with one numpy version and kind of CPU.
    Values are published on multiples of `step_s` of unix time and at `start`; a coarser step
    publishes every k-th value of the same series. Presets draw unrelated noise from equal seeds.

    Args:
        preset: A key of `PRESETS`.
        seed: Not negative. Two sites of one preset need two seeds, or they are one grid.
        start: Unix seconds.
        duration_s: Length, more than 0.
        step_s: A multiple of 300: the grid has no finer detail.
        utc_offset_h: Local time, for the daily shape: quarter hours, -12 to 14.

    Raises:
        ValueError: An argument is none of the above; the message names it.
    """
    grid = _preset(preset)
    _check(seed, start, duration_s, step_s, utc_offset_h)
    step = int(step_s)
    end = start + duration_s
    first, last = math.floor(start) // step, (math.ceil(end) - 1) // step
    times = np.arange(first, last + 1, dtype=np.float64) * step
    slots = (times + utc_offset_h * 3600.0).astype(np.int64) // SLOT_S
    first_day, last_day = int(slots[0]) // _SLOTS, int(slots[-1]) // _SLOTS
    entropy = np.random.SeedSequence([seed, zlib.crc32(preset.encode())])
    key = np.asarray(entropy.generate_state(2, np.uint64), dtype=np.uint64)
    values = _series(grid, key, first_day, last_day)[slots - first_day * _SLOTS]
    times[0] = start
    return Trace(times, values, end)


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(PRESETS)}"
        raise ValueError(f"no grid preset {name!r}: {hint}")
    return PRESETS[name]


def _check(seed: int, start: float, duration_s: float, step_s: float, utc_offset_h: float) -> None:
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if not math.isfinite(start):
        raise ValueError(f"start must be finite unix seconds, got {start}")
    if not start < start + duration_s < math.inf:
        raise ValueError(f"duration_s must be finite and more than 0, got {duration_s}")
    if not 0.0 < step_s < math.inf or step_s % SLOT_S:
        raise ValueError(f"step_s must be a multiple of {SLOT_S}, got {step_s}")
    if not -12.0 <= utc_offset_h <= 14.0 or utc_offset_h % 0.25:
        raise ValueError(f"utc_offset_h must be quarter hours in -12..14, got {utc_offset_h}")


def _series(grid: Preset, key: NDArray[np.uint64], first_day: int, last_day: int) -> Array:
    """Every slot of the local days first_day..last_day."""
    # One day more in front, so that a window that ends at midnight has its intermediate slot.
    days = range(first_day - 1, last_day + 1)
    weather = _weather(key, days, grid)
    noise = [_draw(key, day) for day in range(days[0] - _FAST_DAYS, days[-1] + 1)]
    fast, plateau = (
        _ar1(np.stack([n[0][row] for n in noise]), rho)
        for row, rho in ((0, grid.fast_rho), (1, _PLATEAU_RHO))
    )
    jitter = np.concatenate([n[0][2] for n in noise[_FAST_DAYS:]])
    lot = np.concatenate([n[1] for n in noise[_FAST_DAYS:]])

    hours = np.arange(_SLOTS) * SLOT_S / 3600.0
    distance = (hours - grid.center_h + 12.0) % 24.0 - 12.0
    shape = np.tile(np.exp(-0.5 * (distance / grid.width_h) ** 2), len(days))
    always = shape if grid.solar else 1.0
    surplus = grid.level + grid.amplitude * shape + grid.jitter_sd * jitter * shape
    surplus += (weather + grid.fast_sd * fast) * always
    return _intensity(grid, surplus > 0.0, plateau, lot)[_SLOTS:]


def _intensity(grid: Preset, curtailed: NDArray[np.bool_], plateau: Array, lot: Array) -> Array:
    (clean, clean_sd), (fossil, fossil_sd) = grid.clean_g_per_kwh, grid.fossil_g_per_kwh
    low = np.clip(clean + clean_sd * plateau, 0.0, _CLEAN_MAX)
    high = fossil + fossil_sd * plateau
    values = np.where(curtailed, low, high)
    ends = np.flatnonzero(curtailed[:-1] & ~curtailed[1:]) + 1
    ends = ends[lot[ends] < grid.mid_share]
    # Given that it is below mid_share, lot / mid_share is uniform again: one draw serves twice.
    between = _MID_RANGE[0] + (_MID_RANGE[1] - _MID_RANGE[0]) * lot[ends] / (grid.mid_share or 1.0)
    values[ends] = low[ends] + (high[ends] - low[ends]) * between
    rounded: Array = values.round(3)
    return rounded


def _day(key: NDArray[np.uint64], day: int) -> np.random.Generator:
    """A generator for one local day alone: Philox is addressed by (key, counter)."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, day % 2**63]))


def _draw(key: NDArray[np.uint64], day: int) -> tuple[Array, Array]:
    """One day's normals (fast, plateau, jitter), and its lots: uniform in [0, 1)."""
    generator = _day(key, day)
    generator.standard_normal()  # the day's weather, which `_weather` reads
    return generator.standard_normal((3, _SLOTS)), generator.random(_SLOTS)


def _weather(key: NDArray[np.uint64], days: range, grid: Preset) -> Array:
    """Each slot's weather: held through the day under the sun, else interpolated to the next."""
    drawn = range(days[0] - _WEATHER_DAYS + 1, days[-1] + 2)
    shocks = np.array([_day(key, day).standard_normal() for day in drawn])
    scale = grid.day_sd * math.sqrt(1.0 - grid.day_rho**2)
    by_day = scale * _recent(shocks, grid.day_rho, _WEATHER_DAYS)
    today, tomorrow = by_day[:-1, None], by_day[1:, None]
    part = 0.0 if grid.solar else np.arange(_SLOTS) / _SLOTS
    return (today + (tomorrow - today) * part * np.ones(_SLOTS)).ravel()


def _ar1(shocks: Array, rho: float) -> Array:
    """A unit-variance AR(1) over all slots but the first `_FAST_DAYS` days; shocks by day."""
    powers: Array = np.power(rho, np.arange(_SLOTS))
    within: Array = np.cumsum(shocks / powers, axis=1) * powers
    carried = _recent(within[:-1, -1], rho**_SLOTS, _FAST_DAYS)
    path: Array = within[_FAST_DAYS:] + carried[:, None] * (powers * rho)
    unit: Array = math.sqrt(1.0 - rho**2) * path.ravel()
    return unit


def _recent(shocks: Array, rho: float, memory: int) -> Array:
    """sum(rho**k * shocks[n - k] for k < memory), for n >= memory - 1.

    Added in this order whatever the length: a convolution may round otherwise by position.
    """
    total = np.zeros(len(shocks) - memory + 1)
    for k in range(memory):
        total += rho**k * shocks[memory - 1 - k : len(shocks) - k]
    return total
