"""Which sites should run: hysteresis over known power; unknown power is never green."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from uncurtail.core.policy import (
    PolicySection,
    RunSection,
    Verdict,
    decide,
    stale_at,
    stop_reason,
    window,
)
from uncurtail.core.signals import Reading

NOW = 1_000_000.0
BANDS = PolicySection(enter_below_g_per_kwh=100.0, leave_above_g_per_kwh=120.0, stale_after_s=900.0)
INF = math.inf


@pytest.mark.parametrize(
    ("value", "was_open", "is_open"),
    [
        pytest.param(0.0, False, True, id="no-carbon-at-all-opens"),
        pytest.param(99.9, False, True, id="just-below-enter-opens"),
        pytest.param(100.0, False, False, id="exactly-enter-does-not-open"),
        pytest.param(110.0, False, False, id="between-the-bands-does-not-open"),
        pytest.param(110.0, True, True, id="between-the-bands-stays-open"),
        pytest.param(120.0, True, True, id="exactly-leave-stays-open"),
        pytest.param(120.1, True, False, id="just-above-leave-closes"),
        pytest.param(2000.0, True, False, id="the-dirtiest-plausible-grid-closes"),
    ],
)
def test_a_window_opens_below_one_band_and_closes_above_the_other(value, was_open, is_open):
    assert window(BANDS, Reading("a", NOW, value), was_open=was_open, now=NOW) is is_open


@pytest.mark.parametrize("was_open", [False, True])
@pytest.mark.parametrize(
    "reading",
    [
        pytest.param(None, id="none"),
        pytest.param(Reading("a", NOW, None), id="source-does-not-know"),
        pytest.param(Reading("a", NOW, math.nan), id="nan"),
        pytest.param(Reading("a", NOW, -INF), id="minus-infinity"),
        pytest.param(Reading("a", NOW, -0.001), id="negative"),
        pytest.param(Reading("a", NOW, 2000.1), id="absurd"),
        pytest.param(Reading("a", NOW - 900.1, 5.0), id="stale"),
        pytest.param(Reading("a", NOW + 900.1, 5.0), id="from-the-future"),
        pytest.param(Reading("a", math.nan, 5.0), id="published-at-no-time"),
    ],
)
def test_unknown_power_never_opens_a_window_and_always_closes_it(reading, was_open):
    assert window(BANDS, reading, was_open=was_open, now=NOW) is False


readings = st.builds(
    Reading,
    site=st.just("a"),
    t=st.floats(allow_nan=True, allow_infinity=True)
    | st.floats(min_value=NOW - 2000, max_value=NOW + 2000),
    value=st.none() | st.floats() | st.floats(min_value=-50, max_value=2500),
)
bands = st.tuples(st.floats(0.1, 2500), st.floats(0.1, 2500), st.floats(1, 1e6)).map(
    lambda edges: PolicySection(
        enter_below_g_per_kwh=min(edges[:2]),
        leave_above_g_per_kwh=max(edges[:2]),
        stale_after_s=edges[2],
    )
)


@settings(deadline=None)
@given(bands, st.none() | readings, st.booleans())
def test_an_open_window_always_rests_on_a_fresh_plausible_number(policy, reading, was_open):
    if window(policy, reading, was_open=was_open, now=NOW):
        assert reading is not None
        assert reading.value is not None
        assert 0.0 <= reading.value <= min(policy.leave_above_g_per_kwh, 2000.0)
        assert abs(NOW - reading.t) <= policy.stale_after_s


@settings(deadline=None)
@given(bands, readings)
def test_what_opens_a_closed_window_keeps_an_open_one_open(policy, reading):
    if window(policy, reading, was_open=False, now=NOW):
        assert window(policy, reading, was_open=True, now=NOW)


@settings(deadline=None)
@given(readings)
def test_a_window_is_closed_from_the_moment_that_stale_at_names(reading):
    after = math.nextafter(stale_at(BANDS, reading), INF)
    if math.isfinite(after):
        assert not window(BANDS, reading, was_open=True, now=after + 0.001)


def test_without_a_reading_nothing_goes_stale():
    assert stale_at(BANDS, None) == INF


@pytest.mark.parametrize("reading", [None, Reading("a", NOW, 900.0), Reading("a", 0.0, math.nan)])
def test_the_baseline_that_never_waits_is_open_whatever_is_read(reading):
    assert window(Always(), reading, was_open=False, now=NOW)


@pytest.mark.parametrize(
    ("window_open", "up_for_s", "verdict"),
    [
        pytest.param(True, None, Verdict.TRAIN, id="curtailed-and-down"),
        pytest.param(True, 10.0, Verdict.TRAIN, id="curtailed-and-up"),
        pytest.param(False, None, Verdict.REST, id="nothing-to-hold"),
        pytest.param(False, 0.0, Verdict.HOLD, id="just-started"),
        pytest.param(False, 599.9, Verdict.HOLD, id="short-spike-is-held"),
        pytest.param(False, 600.0, Verdict.REST, id="held-long-enough"),
    ],
)
def test_a_site_that_was_just_paid_for_is_held_but_never_trains(window_open, up_for_s, verdict):
    policy = PolicySection(min_up_s=600.0)
    up_since = None if up_for_s is None else NOW - up_for_s
    assert decide(policy, window_open=window_open, up_since=up_since, now=NOW) is verdict


@settings(deadline=None)
@given(st.none() | st.floats(0, 1e10), st.floats(0, 1e7), st.floats(0, 1e10))
def test_outside_a_window_no_site_ever_trains(up_since, min_up_s, now):
    policy = PolicySection(min_up_s=min_up_s)
    verdict = decide(policy, window_open=False, up_since=up_since, now=now)
    assert verdict in (Verdict.HOLD, Verdict.REST)


def test_without_minimum_up_time_a_site_rests_at_once():
    assert decide(BANDS, window_open=False, up_since=NOW, now=NOW) is Verdict.REST


@pytest.mark.parametrize(
    ("tokens", "elapsed_s", "asked", "reason"),
    [
        pytest.param(99, 59.0, False, None, id="goes-on"),
        pytest.param(100, 0.0, False, "budget", id="exactly-the-budget"),
        pytest.param(101, 99.0, True, "budget", id="budget-before-everything"),
        pytest.param(0, 60.0, False, "duration", id="exactly-the-duration"),
        pytest.param(99, 61.0, True, "duration", id="duration-before-the-user"),
        pytest.param(99, 59.0, True, "user", id="asked"),
    ],
)
def test_a_run_winds_down_for_its_budget_its_duration_or_its_user(tokens, elapsed_s, asked, reason):
    run = RunSection(duration_s=60.0)
    got = stop_reason(run, tokens=tokens, budget_tokens=100, elapsed_s=elapsed_s, asked=asked)
    assert got == reason


def test_a_run_without_duration_has_no_end_in_time():
    run = RunSection()
    assert stop_reason(run, tokens=0, budget_tokens=1, elapsed_s=1e12, asked=False) is None


@pytest.mark.parametrize(
    "section",
    [
        pytest.param({"enter_below_g_per_kwh": 120.0, "leave_above_g_per_kwh": 100.0}, id="flaps"),
        pytest.param({"enter_below_g_per_kwh": 0.0}, id="never-opens"),
        pytest.param({"enter_below_g_per_kwh": math.nan}, id="nan"),
        pytest.param({"leave_above_g_per_kwh": INF}, id="never-closes"),
        pytest.param({"stale_after_s": 0.0}, id="always-stale"),
        pytest.param({"stale_after_s": INF}, id="never-stale"),
        pytest.param({"min_up_s": -1.0}, id="negative-time"),
        pytest.param({"kind": "never"}, id="unknown-kind"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(section):
    with pytest.raises(ValidationError):
        PolicySection.model_validate(section)
