"""What a source forecasts is believed only while it is young, whole and not contradicted."""

import math
from dataclasses import replace

import numpy as np
import pytest

from uncurtail.core.forecasts import climatology, persistence
from uncurtail.core.received import Foretold, Trust, accepted, contradicted, held, refusal
from uncurtail.core.signals import Reading, Trace

T0 = 1_790_078_400.0
SLOT = 300.0
TRUST = Trust(stale_after_s=7200.0, horizon_s=86400.0, edge_sd_s=900.0)


def said(values, made=T0, start=T0) -> Foretold:
    times = start + SLOT * np.arange(len(values))
    return Foretold(made, Trace(times, np.array(values, dtype=float), times[-1] + SLOT))


def test_a_young_whole_forecast_is_taken_with_its_declared_error():
    forecast = accepted("oslo", said([20.0] * 4), T0 + 100.0, TRUST)
    assert forecast is not None
    assert (forecast.site, forecast.issued, forecast.until) == ("oslo", T0 + 100.0, T0 + 4 * SLOT)
    assert forecast.error_s(3600.0) == 900.0


@pytest.mark.parametrize(
    ("foretold", "now", "reason"),
    [
        pytest.param(said([20.0] * 40), T0 + 7201.0, "min old", id="old"),
        pytest.param(said([20.0], made=T0 + 7201.0), T0, "120 min ahead of our clock", id="ahead"),
        pytest.param(said([20.0] * 2), T0 + 2 * SLOT, "says nothing of the time", id="over"),
        pytest.param(said([math.nan, 20.0]), T0, "says nothing of the time", id="nan-now"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(foretold, now, reason):
    assert reason in str(refusal(foretold, now, TRUST.stale_after_s))
    assert accepted("oslo", foretold, now, TRUST) is None


def test_a_forecast_ends_at_its_first_unknown_value():
    forecast = accepted("oslo", said([20.0, 20.0, math.nan, 500.0]), T0, TRUST)
    assert forecast is not None
    assert forecast.until == T0 + 2 * SLOT
    assert forecast.clean_until(T0, 100.0) == forecast.until, "a hole is no end of a window"


def test_it_is_believed_no_further_than_the_horizon():
    forecast = accepted("oslo", said([20.0] * 40), T0, replace(TRUST, horizon_s=600.0))
    assert forecast is not None
    assert forecast.until == T0 + 600.0


@pytest.mark.parametrize(
    ("value", "published", "is_contradicted"),
    [
        pytest.param(500.0, T0, True, id="dirty-where-it-said-clean"),
        pytest.param(110.0, T0, False, id="between"),
        pytest.param(30.0, T0, False, id="agrees"),
        pytest.param(500.0, T0 - SLOT, False, id="from-before"),
        pytest.param(30.0, T0 + SLOT, True, id="clean-where-it-said-dirty"),
        pytest.param(None, T0, False, id="unknown"),
    ],
)
def test_a_reading_outweighs_the_forecast_of_its_own_time(value, published, is_contradicted):
    forecast = accepted("oslo", said([20.0, 400.0]), T0, TRUST)
    assert forecast is not None
    reading = Reading("oslo", T0 + 2 * SLOT, value, published)
    assert contradicted(forecast, reading, 100.0, 120.0) is is_contradicted
    assert not contradicted(forecast, None, 100.0, 120.0)


def test_readings_are_a_trace_of_what_could_be_acted_on():
    rows = [
        Reading("oslo", T0, 20.0),
        Reading("oslo", T0 + 300.0, None),
        Reading("oslo", T0 + 600.0, 30.0, T0 + 500.0),
        Reading("oslo", T0 + 5000.0, 40.0, T0),
    ]
    trace = held(rows, 900.0, T0)
    known = {s: trace.at(T0 + s) for s in (-1, 0, 299, 300, 600, 1399, 1401, 5001)}
    assert known == {
        -1: None, 0: 20.0, 299: 20.0, 300: None, 600: 30.0, 1399: 30.0, 1401: None, 5001: None,
    }  # fmt: skip


def test_without_a_reading_nothing_is_learned():
    trace = held([], 900.0, T0)
    assert persistence(trace, "oslo", T0 + 60.0, 3600.0) is None
    assert climatology(trace, "oslo", T0 + 60.0, 3600.0) is None


def test_persistence_says_nothing_from_a_stale_reading():
    trace = held([Reading("oslo", T0, 20.0)], 900.0, T0)
    assert persistence(trace, "oslo", T0 + 800.0, 3600.0) is not None
    assert persistence(trace, "oslo", T0 + 1000.0, 3600.0) is None


def test_a_newer_forecast_takes_the_place_of_an_older_one_and_a_repeated_one_does_not():
    old, new = said([20.0, 30.0]), said([20.0, 30.0], made=T0 + 60.0)
    assert new.replaces(old, T0 + 60.0)
    assert not old.replaces(new, T0 + 60.0)
    assert not said([20.0, 30.0]).replaces(old, T0)
    assert said([20.0, 40.0]).replaces(old, T0), "it was corrected"
    assert old.replaces(new, T0), "the other was stamped ahead of its time"
