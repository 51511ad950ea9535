"""Forecasts: reproducible, as wrong as they say, and never wiser than their time of issue."""

import math

import numpy as np
import pytest

from uncurtail.core import grids
from uncurtail.core.forecasts import (
    ErrorModel,
    Experience,
    Forecast,
    Noise,
    climatology,
    noisy,
    perfect,
    persistence,
)
from uncurtail.core.issues import Issues, Issuing
from uncurtail.core.signals import Trace

T0 = 1_768_089_600.0  # midnight UTC
HOUR = 3600.0
DAY = 86400.0


def trace(*steps, end_h=48.0) -> Trace:
    hours, values = (np.array(column, dtype=float) for column in zip(*steps, strict=True))
    return Trace(T0 + hours * HOUR, values, T0 + end_h * HOUR)


TRUTH = trace((0, 400), (2, 20), (3, 400), (5, 30), (9, 500))
GRID = grids.synthetic("windy", seed=3, start=T0, duration_s=60 * DAY)


def said(forecast: Forecast, step_s=300.0):
    return forecast.sample(np.arange(forecast.issued, forecast.until, step_s))


def test_a_perfect_forecast_is_the_truth_as_far_as_it_reaches():
    forecast = perfect(TRUTH, "a", T0 + HOUR, 3 * HOUR)
    assert forecast.clean_from(T0 + HOUR, 100.0) == T0 + 2 * HOUR
    assert forecast.clean_until(T0 + 2.5 * HOUR, 120.0) == T0 + 3 * HOUR
    assert forecast.clean_from(T0 + 3 * HOUR, 100.0) == math.inf, "the next lies beyond its reach"
    assert forecast.mean(T0 + 1.5 * HOUR, T0 + 2.5 * HOUR) == pytest.approx(210.0)
    assert forecast.mean(T0 + 3.5 * HOUR, T0 + 4.5 * HOUR) is None
    assert np.isnan(forecast.sample(np.array([T0 + 4 * HOUR]))).all()


def test_what_is_clean_to_the_end_ends_with_the_forecast():
    forecast = perfect(TRUTH, "a", T0 + 5 * HOUR, HOUR)
    assert forecast.clean_until(T0 + 5.5 * HOUR, 120.0) == T0 + 6 * HOUR
    late = T0 + 7 * HOUR
    assert forecast.clean_until(late, 120.0) == late
    assert forecast.clean_from(late, 100.0) == math.inf


def test_what_is_unknown_is_not_clean():
    forecast = perfect(trace((0, 20), (1, math.nan), (2, 20)), "a", T0, 4 * HOUR)
    assert forecast.clean_until(T0, 120.0) == T0 + HOUR
    assert forecast.mean(T0, T0 + 2 * HOUR) is None


def test_a_forecast_says_how_its_error_grows():
    forecast = Forecast("a", T0, TRUTH, T0 + DAY, edge_sd_s=1800.0)
    leads = [forecast.error_s(hours * HOUR) for hours in (-1, 0, 0.25, 1, 4, 9, 24)]
    assert leads == pytest.approx([0, 0, 900, 1800, 3600, 5400, 5400])


def test_persistence_holds_what_is_and_says_nothing_of_the_unknown():
    forecast = persistence(TRUTH, "a", T0 + 2.5 * HOUR, 4 * HOUR)
    assert forecast is not None
    assert set(said(forecast)) == {20.0}
    assert persistence(trace((0, math.nan)), "a", T0, HOUR) is None


def test_climatology_takes_each_hour_from_the_days_before_and_from_nothing_later():
    times = T0 + np.arange(0.0, 5 * DAY, 300.0)
    hours = ((times - T0) // HOUR) % 24
    values = np.where((hours >= 10) & (hours < 14), 20.0, 400.0)
    values[times >= T0 + 3 * DAY] = 999.0  # what comes after must not matter
    history = Trace(times, values, T0 + 5 * DAY)
    forecast = climatology(history, "a", T0 + 3 * DAY, DAY)
    assert forecast is not None
    by_hour = said(forecast, HOUR)
    assert by_hour.tolist() == [20.0 if 10 <= hour < 14 else 400.0 for hour in range(24)]
    assert climatology(history, "a", T0 + 0.9 * DAY, DAY) is None, "a day must have been seen"


def test_an_hour_that_was_never_known_takes_the_mean_of_all():
    times = T0 + np.arange(0.0, 3 * DAY, HOUR)
    hours = ((times - T0) // HOUR) % 24
    history = Trace(times, np.where(hours == 5, np.nan, 300.0), T0 + 3 * DAY)
    forecast = climatology(history, "a", T0 + 3 * DAY - 1.0, DAY)
    assert forecast is not None
    assert forecast.sample(np.array([T0 + 3 * DAY + 5.5 * HOUR])).tolist() == [300.0]


def test_a_noisy_forecast_is_the_same_whenever_it_is_made():
    issues = T0 + np.arange(0.0, 5 * DAY, 900.0)
    forward = [said(noisy(GRID, "a", t, DAY)) for t in issues]
    for t, before in list(zip(issues, forward, strict=True))[::-7]:
        assert np.array_equal(said(noisy(GRID, "a", float(t), DAY)), before, equal_nan=True)


def test_sites_seeds_and_issues_err_differently():
    base = said(noisy(GRID, "a", T0, DAY))
    others = [
        noisy(GRID, "b", T0, DAY),
        noisy(GRID, "a", T0, DAY, Noise(seed=1)),
        noisy(GRID, "a", T0 + 300.0, DAY),
    ]
    assert not any(np.array_equal(said(other)[:-1], base[: len(said(other)) - 1])
                   for other in others)  # fmt: skip


def test_a_noisy_forecast_without_errors_is_the_truth():
    none = Noise(ErrorModel(edge_sd_s=0.0, miss_share=0.0, level_sd=0.0))
    for t in T0 + np.arange(0.0, 20 * DAY, 6900.0):
        forecast = noisy(GRID, "a", float(t), DAY, none)
        assert said(forecast) == pytest.approx(said(perfect(GRID, "a", float(t), DAY)))


def edge_errors(lead_s, error=None):
    """By how much the end of a window is misplaced that really comes `lead_s` after the issue."""
    truth = trace((0, 20), (24, 400))
    end = T0 + 24 * HOUR
    noise = Noise(error or ErrorModel(miss_share=0.0, level_sd=0.0))
    found = []
    for number in range(1500):
        forecast = noisy(truth, f"s{number}", end - lead_s, 20 * HOUR, noise)
        found.append(forecast.clean_until(forecast.issued, 120.0) - end)
    return np.array(found)


@pytest.mark.parametrize(("lead_h", "median_min"), [(0.25, 10), (1, 20.2), (4, 40.5), (9, 60.7)])
def test_window_ends_are_misplaced_as_stated_no_better_than_20_minutes_an_hour_ahead(
    lead_h, median_min
):
    # Slots of five minutes round a crossing up, which moves the median by less than half of that.
    errors = edge_errors(lead_h * HOUR)
    assert np.median(np.abs(errors)) / 60.0 == pytest.approx(median_min, abs=2.5)
    if lead_h == 1:
        assert np.median(np.abs(errors)) >= 20.0 * 60.0 * 0.95
    assert abs(np.median(errors)) < 0.15 * lead_h**0.5 * 1800.0 + 200.0


def test_some_window_ends_are_missed_altogether():
    model = ErrorModel(edge_sd_s=0.0, miss_share=0.2, level_sd=0.0)
    errors = edge_errors(HOUR, model)
    assert np.mean(errors > 10 * HOUR) == pytest.approx(0.2, abs=0.03)
    assert np.mean(np.abs(errors) <= 300.0) == pytest.approx(0.8, abs=0.03)


def test_levels_start_true_and_drift_to_their_stated_spread():
    flat = trace((0, 400.0))
    model = Noise(ErrorModel(edge_sd_s=0.0, miss_share=0.0, level_sd=0.1, level_hours=6.0))
    rows = np.log([said(noisy(flat, f"s{n}", T0, 40 * HOUR, model)) / 400.0 for n in range(600)])
    assert rows[:, 0] == pytest.approx(0.0, abs=1e-9)
    assert rows[:, -1].std() == pytest.approx(0.1, rel=0.1)
    assert rows[:, 12].std() == pytest.approx(0.1 * math.sqrt(1 - math.exp(-2 / 6)), rel=0.15)


@pytest.mark.parametrize("kind", ["persistence", "climatology"])
def test_a_forecast_from_the_readings_so_far_does_not_know_what_comes(kind):
    issued = T0 + 20 * DAY
    changed = GRID.values.copy()
    changed[GRID.times > issued] = 1234.0
    other = Trace(GRID.times, changed, GRID.end)
    for a, b in zip(*([make(kind, t, issued)] for t in (GRID, other)), strict=True):
        assert np.array_equal(said(a), said(b))


def make(kind, history, issued) -> Forecast:
    found = Issues(Issuing(kind, every_s=900.0), lambda _: history, T0).forecast("a", issued)
    assert found is not None
    return found


def test_a_forecast_is_in_force_until_the_next_is_issued():
    issues = Issues(Issuing("perfect", 2 * HOUR, 900.0), lambda _: TRUTH, T0)
    at = {t: issues.forecast("a", T0 + t) for t in (0.0, 899.0, 900.0, 450.0)}
    assert [f.issued - T0 for f in at.values() if f is not None] == [0.0, 0.0, 900.0, 0.0]
    assert issues.renewed(T0 + 10.0) == T0 + 900.0
    assert Issues(Issuing("none"), lambda _: TRUTH, T0).forecast("a", T0) is None
    assert Issues(Issuing("none"), lambda _: TRUTH, T0).renewed(T0) == math.inf


def test_experience_tells_how_windows_of_an_age_went_on():
    seen = Experience([300.0] * 4 + [3600.0] * 4)
    assert seen.lasts(0.0, 600.0) == 0.5
    assert seen.lasts(300.0, 600.0) == 1.0
    assert seen.lasts(3600.0, 1.0) is None, "none was older"
    seen.add(301.0)
    assert len(seen) == 9
    assert seen.lasts(300.0, 600.0) == 0.8


@pytest.mark.parametrize(
    ("lengths", "more_s", "ripe_s"),
    [
        pytest.param([], 600.0, 0.0, id="nothing-is-known"),
        pytest.param([60.0] * 3, 600.0, 0.0, id="too-little-is-known"),
        pytest.param([60.0] * 9, 600.0, 60.0, id="they-all-ended-early"),
        pytest.param([7200.0] * 9, 600.0, 0.0, id="they-all-went-on"),
        pytest.param([300.0] * 6 + [600.0] * 2 + [7200.0] * 5, 1800.0, 300.0, id="a-mixture"),
    ],
)
def test_a_window_is_ripe_once_most_of_its_age_went_on(lengths, more_s, ripe_s):
    assert Experience(lengths).ripe_s(more_s) == ripe_s
