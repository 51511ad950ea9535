"""Window statistics: the windows are the policy's, and the numbers are those of the facts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncurtail.core.grids import synthetic
from uncurtail.core.policy import PolicySection, stale_at, window
from uncurtail.core.signals import Reading, Trace
from uncurtail.core.windows import by_day_and_hour, find, first_day, statistics

HOUR, DAY = 3600.0, 86_400.0
YEAR_2026 = 1_767_225_600.0
NAN = math.nan
PLAIN = PolicySection(enter_below_g_per_kwh=100.0, leave_above_g_per_kwh=100.0, stale_after_s=1e9)


def trace(times, values, end):
    return Trace(np.array(times, dtype=float), np.array(values, dtype=float), float(end))


def spans(found):
    return list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))


def test_a_window_opens_below_one_value_and_closes_above_another():
    policy = PolicySection(stale_after_s=1e9)
    held = trace(range(8), [130, 110, 90, 110, 120, 121, 110, 99], 8)
    assert spans(find(held, policy, 0.0, 8.0)) == [(2.0, 5.0), (7.0, 8.0)]


@pytest.mark.parametrize("bad", [NAN, -1.0, 2001.0, math.inf])
def test_an_unknown_or_absurd_value_closes_it(bad):
    found = find(trace([0, 1, 2], [50, bad, 110], 3), PolicySection(), 0.0, 3.0)
    assert spans(found) == [(0.0, 1.0)]
    assert found.known_s == (2.0 if math.isnan(bad) or bad < 0 or bad > 2000 else 3.0)


def test_a_value_that_grows_old_closes_it_and_is_forgotten():
    policy = PolicySection(stale_after_s=900.0)
    found = find(trace([0, 5000, 5300], [50, 110, 50], 5600), policy, 0.0, 1e9)
    assert spans(found) == [(0.0, 900.0), (5300.0, 5600.0)]
    assert found.known_s == 1500.0


def test_windows_are_cut_at_the_edges_of_what_is_asked_for_and_known():
    held = trace([100, 200], [50, 50], 300)
    assert spans(find(held, PLAIN, 0.0, 1e9)) == [(100.0, 300.0)]
    assert spans(find(held, PLAIN, 150.0, 250.0)) == [(150.0, 250.0)]
    with pytest.raises(ValueError, match="nothing between"):
        find(held, PLAIN, 400.0, 500.0)


values = st.one_of(st.just(NAN), st.sampled_from([-5.0, 0.0, 99.9, 100.0, 110.0, 120.0, 120.1]))


@settings(max_examples=300)
@given(
    gaps=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    data=st.data(),
    stale_after_s=st.sampled_from([7.0, 20.0, 1e6]),
)
def test_the_windows_are_those_that_the_policy_sees_reading_by_reading(gaps, data, stale_after_s):
    policy = PolicySection(stale_after_s=stale_after_s)
    times = np.cumsum(gaps).astype(float)
    held = data.draw(st.lists(values, min_size=len(times), max_size=len(times)))
    end = float(times[-1]) + 5.0
    found = find(trace(times, held, end), policy, 0.0, end)
    is_open = np.zeros(int(end), dtype=bool)
    for start, stop in spans(found):
        is_open[int(start) : int(stop)] = True

    was_open, reading, expected = False, None, []
    for second in range(int(end)):
        for t, value in zip(times, held, strict=True):
            if t == second:
                reading = Reading("a", t, value)
        # a value holds until it is stale; at that very moment `find` has closed the window already
        now = second if second < stale_at(policy, reading) else second + 0.5
        was_open = window(policy, reading, was_open=was_open, now=now)
        expected.append(was_open)
    assert is_open.tolist() == expected


@pytest.fixture(scope="module")
def duck():
    """Eight made-up years of "duck", which was fitted to one real month."""
    years = [
        synthetic("duck", seed=seed, start=YEAR_2026, duration_s=365 * DAY) for seed in range(8)
    ]
    return [statistics(find(year, PLAIN, 0.0, math.inf)) for year in years]


@pytest.mark.parametrize(
    ("number", "real", "tolerance"),
    [
        ("curtailed_share", 0.167, 0.02),
        ("windows_per_day", 3.26, 0.4),
        ("curtailed_h_per_day", 4.0, 0.5),
        ("length_mean_min", 74.0, 12.0),
        ("days_without", 0.16, 0.03),
    ],
)
def test_a_made_up_duck_has_the_numbers_of_the_real_one(duck, number, real, tolerance):
    assert np.mean([getattr(year, number) for year in duck]) == pytest.approx(real, abs=tolerance)


@pytest.mark.parametrize(
    ("quantile", "real", "tolerance"),
    [("q10", 5, 1), ("q25", 10, 5), ("q50", 15, 5), ("q75", 45, 20), ("q90", 235, 45)],
)
def test_its_windows_are_as_long_as_the_real_ones(duck, quantile, real, tolerance):
    found = np.mean([year.length_quantiles_min[quantile] for year in duck])
    assert found == pytest.approx(real, abs=tolerance)


def test_its_windows_lie_between_seven_and_eighteen_with_their_peak_before_noon_or_after(duck):
    profile = np.mean([year.hour_profile for year in duck], axis=0)
    assert 10 <= int(profile.argmax()) <= 13
    assert profile[7:18].sum() / profile.sum() > 0.95
    assert 0.4 < profile.max() < 0.65  # the real month's: .52 at 11 h
    assert profile.sum() == pytest.approx(np.mean([year.curtailed_h_per_day for year in duck]))


def test_hours_and_days_are_local():
    noon_in_adelaide = YEAR_2026 + 12 * HOUR - 9.5 * HOUR
    times = [YEAR_2026 - DAY, noon_in_adelaide, noon_in_adelaide + HOUR]
    found = find(trace(times, [500, 50, 500], YEAR_2026 + 2 * DAY), PLAIN, 0.0, math.inf)
    numbers = statistics(found, utc_offset_h=9.5)
    assert [h for h, share in enumerate(numbers.hour_profile) if share > 0] == [12]
    assert numbers.days_without == 0.5, "of two whole days, one had none"
    grid = by_day_and_hour(found, 9.5)
    assert grid.shape == (4, 24)
    assert (first_day(found, 9.5) - YEAR_2026) % DAY == 0.0
    assert np.isnan(grid[0, :9]).all()
    assert not np.isnan(grid[0, 9]), "half of it was seen"


@given(st.lists(st.tuples(st.floats(0, 9e5), st.floats(0, 2000)), min_size=2, max_size=60))
def test_the_hours_of_all_days_add_up_to_the_curtailed_time(rows):
    times = sorted({round(t, 3) for t, _ in rows})
    held = [value for _, value in rows][: len(times)]
    found = find(trace(times, held, times[-1] + 100.0), PLAIN, 0.0, math.inf)
    grid = by_day_and_hour(found)
    edges = np.clip(np.arange(grid.size + 1) * HOUR + first_day(found), found.since, found.until)
    seconds = np.nansum(grid.ravel() * np.diff(edges))
    assert seconds == pytest.approx(found.lengths_s.sum(), abs=0.01)


def test_where_there_is_no_window_there_is_no_length():
    coal = synthetic("coal", seed=1, start=YEAR_2026, duration_s=10 * DAY)
    numbers = statistics(find(coal, PLAIN, 0.0, math.inf))
    assert (numbers.curtailed_share, numbers.windows, numbers.days_without) == (0.0, 0, 1.0)
    assert numbers.length_quantiles_min is None
    assert numbers.longest_min is None
    assert set(numbers.hour_profile) == {0.0}


def test_an_hour_has_no_whole_day():
    short = synthetic("duck", seed=1, start=YEAR_2026 + HOUR, duration_s=HOUR)
    assert statistics(find(short, PLAIN, 0.0, math.inf)).days_without is None
