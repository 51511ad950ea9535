"""Synthetic grids: they behave as documented, and every stretch is a window into one series."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncurtail.core.grids import PRESETS, synthetic

YEAR_2026 = 1_767_225_600.0
DAY_S = 86_400.0
YEAR_S = 365 * DAY_S
SEEDS = range(8)
CURTAILED_BELOW = 100.0


@dataclass(frozen=True)
class Behaviour:
    share: float
    windows_per_day: float
    median_min: float
    mean_min: float
    q90_min: float
    days_without: float


def curtailed(preset, seed):
    values = synthetic(preset, seed=seed, start=YEAR_2026, duration_s=YEAR_S).values
    return values < CURTAILED_BELOW


def behaviour(years):
    """Of several years, pooled."""
    edges = [np.diff(np.concatenate(([0], year.astype(int), [0]))) for year in years]
    slots = np.concatenate([np.flatnonzero(e == -1) - np.flatnonzero(e == 1) for e in edges])
    minutes = slots * 5.0
    days = np.concatenate([year.reshape(-1, 288) for year in years])
    return Behaviour(
        share=float(days.mean()),
        windows_per_day=len(minutes) / len(days),
        median_min=float(np.median(minutes)),
        mean_min=float(minutes.mean()),
        q90_min=float(np.quantile(minutes, 0.9)),
        days_without=float((~days.any(axis=1)).mean()),
    )


# What the presets were made to do; the q90 of solar and windy are what they happen to do. The
# tolerances cover the spread of eight years pooled: one year of "duck" varies by .011 in share and
# 5 min in mean length, one of "windy" by .04 and 36 min.
TARGETS = {
    "duck": Behaviour(0.167, 3.26, 15, 74, 235, 0.16),
    "solar": Behaviour(0.366, 1.8, 150, 292, 700, 0.05),
    "windy": Behaviour(0.258, 1.7, 25, 221, 720, 0.35),
}
TOLERANCES = {
    "duck": Behaviour(0.02, 0.4, 5, 12, 45, 0.03),
    # Lengths are a whole day or a flicker: the median of a year lies anywhere in 15..520 min.
    "solar": Behaviour(0.04, 0.25, 370, 40, 60, 0.04),
    "windy": Behaviour(0.05, 0.3, 10, 45, 90, 0.06),
}


@pytest.mark.parametrize("preset", TARGETS)
@pytest.mark.parametrize("quantity", Behaviour.__dataclass_fields__)
def test_windows_of_a_preset_have_the_documented_statistics(preset, quantity, measured):
    target = getattr(TARGETS[preset], quantity)
    tolerance = getattr(TOLERANCES[preset], quantity)
    assert getattr(measured[preset], quantity) == pytest.approx(target, abs=tolerance)


@pytest.fixture(scope="module")
def measured():
    return {name: behaviour([curtailed(name, seed) for seed in SEEDS]) for name in TARGETS}


@pytest.mark.parametrize(
    ("preset", "inside", "outside"),
    [("duck", 50.0, 418.0), ("solar", 0.0, 839.0), ("windy", 23.0, 645.0), ("coal", None, 750.0)],
)
def test_intensity_sits_on_the_clean_plateau_inside_windows_and_the_fossil_one_outside(
    preset, inside, outside
):
    years = [synthetic(preset, seed=s, start=0.0, duration_s=YEAR_S).values for s in range(3)]
    values = np.concatenate(years)
    clean = values[values < CURTAILED_BELOW]
    assert (clean.mean() if clean.size else None) == pytest.approx(inside, abs=3.0)
    assert values[values >= CURTAILED_BELOW].mean() == pytest.approx(outside, abs=5.0)


def test_solar_windows_of_a_duck_lie_around_local_noon_whatever_the_zone():
    for offset in (-8.0, 0.0, 9.5):
        trace = synthetic("duck", seed=1, start=0.0, duration_s=YEAR_S, utc_offset_h=offset)
        hours = (trace.times[trace.values < CURTAILED_BELOW] / 3600 + offset) % 24
        assert np.mean((hours > 7) & (hours < 18)) > 0.97


starts = st.floats(min_value=-1e8, max_value=4e9, allow_nan=False)
lengths = st.floats(min_value=1.0, max_value=5 * DAY_S)


@settings(deadline=None, max_examples=60)
@given(
    preset=st.sampled_from(sorted(PRESETS)),
    seed=st.integers(0, 2**40),
    quarters=st.integers(-48, 56),
    a=starts,
    shift=st.floats(-3 * DAY_S, 3 * DAY_S),
    lengths=st.tuples(lengths, lengths),
)
def test_two_stretches_of_a_grid_agree_bit_for_bit_where_they_overlap(
    preset, seed, quarters, a, shift, lengths
):
    b = a + shift
    first, second = (
        synthetic(preset, seed=seed, start=t, duration_s=d, utc_offset_h=quarters / 4)
        for t, d in zip((a, b), lengths, strict=True)
    )
    low, high = max(a, b), min(first.end, second.end)
    shared = [t for t in {low, *first.times, *second.times} if low <= t < high]
    assert [first.at(t) for t in shared] == [second.at(t) for t in shared]


def test_a_day_is_the_same_in_a_year_as_alone():
    year = synthetic("duck", seed=7, start=YEAR_2026, duration_s=YEAR_S, utc_offset_h=-8)
    day = synthetic(
        "duck", seed=7, start=YEAR_2026 + 200 * DAY_S, duration_s=DAY_S, utc_offset_h=-8
    )
    inside = np.isin(year.times, day.times)
    np.testing.assert_array_equal(year.values[inside], day.values)


def test_a_trace_covers_what_was_asked_for_and_publishes_on_round_times():
    trace = synthetic("duck", seed=1, start=1000.5, duration_s=700.0)
    assert trace.times.tolist() == [1000.5, 1200.0, 1500.0]
    assert trace.end == 1700.5


def test_a_coarser_step_publishes_every_kth_value_of_the_same_series():
    fine = synthetic("windy", seed=1, start=0.0, duration_s=DAY_S)
    hourly = synthetic("windy", seed=1, start=0.0, duration_s=DAY_S, step_s=3600.0)
    np.testing.assert_array_equal(hourly.values, fine.values[::12])


def test_sites_of_one_preset_differ_by_seed_and_presets_draw_unrelated_noise():
    a, b = (synthetic("coal", seed=s, start=0.0, duration_s=YEAR_S).values for s in (1, 2))
    windy = synthetic("windy", seed=1, start=0.0, duration_s=YEAR_S).values
    fossil = windy >= CURTAILED_BELOW
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.2
    assert abs(np.corrcoef(a[fossil], windy[fossil])[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": "ducks"}, "did you mean 'duck'"),
        ({"preset": "nuclear"}, "choose one of duck, solar, windy, coal"),
        ({"seed": -1}, "seed"),
        ({"start": float("nan")}, "start"),
        ({"duration_s": 0.0}, "duration_s"),
        ({"duration_s": float("inf")}, "duration_s"),
        ({"step_s": 60.0}, "multiple of 300"),
        ({"utc_offset_h": 15.0}, "utc_offset_h"),
        ({"utc_offset_h": float("nan")}, "utc_offset_h"),
    ],
)
def test_a_wrong_argument_is_named(wrong, message):
    arguments = {"preset": "duck", "seed": 1, "start": 0.0, "duration_s": 600.0, **wrong}
    with pytest.raises(ValueError, match=message):
        synthetic(arguments.pop("preset"), **arguments)
