"""Which sites should run: hysteresis over known power; unknown power is never green."""

import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from uncurtail.core.ending import RunSection, Spent, stop_reason
from uncurtail.core.forecasts import Experience, Forecast
from uncurtail.core.microgrid import Carried
from uncurtail.core.policy import (
    Always,
    Budget,
    Costs,
    Deadline,
    Lookahead,
    PolicySection,
    Span,
    Threshold,
    Verdict,
    View,
    decide,
    read_policy,
    stale_at,
    window,
)
from uncurtail.core.signals import Reading, Trace

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


COSTS = Costs(train_power_w=2024.0, idle_power_w=468.0, provision_power_w=468.0, provision_s=300.0)


def view(**changes) -> View:
    """A site at NOW that is down, and whose window is closed on known power, unless told."""
    known = {"now": NOW, "value": 50.0, "window_open": False, "since": NOW, "up_since": None}
    return View(**{**known, **changes})


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
    policy = Threshold(min_up_s=600.0)
    up_since = None if up_for_s is None else NOW - up_for_s
    known = view(window_open=window_open, up_since=up_since)
    assert decide(policy, COSTS, known).verdict is verdict


def test_a_hold_says_when_it_ends():
    decision = decide(Threshold(min_up_s=600.0), COSTS, view(up_since=NOW - 100.0))
    assert decision == (Verdict.HOLD, NOW + 500.0)


def test_without_minimum_up_time_a_site_rests_at_once():
    assert decide(Threshold(), COSTS, view(up_since=NOW)).verdict is Verdict.REST


@pytest.mark.parametrize("section", [Threshold(linger_s=600.0), Budget(linger_s=600.0, max_kg=1.0)])
@pytest.mark.parametrize(
    ("closed_for_s", "changes", "verdict"),
    [
        pytest.param(0.0, {"up_since": 0.0}, Verdict.TRAIN, id="just-closed"),
        pytest.param(599.9, {"up_since": 0.0}, Verdict.TRAIN, id="not-long-ago"),
        pytest.param(600.0, {"up_since": 0.0}, Verdict.REST, id="long-enough"),
        pytest.param(0.0, {}, Verdict.REST, id="nobody-is-started-to-linger"),
        pytest.param(0.0, {"up_since": 0.0, "value": None}, Verdict.REST, id="not-on-the-unknown"),
    ],
)
def test_lingering_trains_on_after_a_window_while_power_is_known(
    section, closed_for_s, changes, verdict
):
    decision = decide(section, COSTS, view(since=NOW - closed_for_s, **changes))
    assert decision.verdict is verdict
    if verdict is Verdict.TRAIN:
        assert decision.revisit == NOW - closed_for_s + 600.0


def forecast(*steps, until_min=600.0, edge_sd_s=0.0) -> Forecast:
    """What is said from NOW on: (minutes from NOW, g/kWh) each holding until the next."""
    times, values = (np.array(column, dtype=float) for column in zip(*steps, strict=True))
    until = NOW + until_min * 60.0
    return Forecast("a", NOW, Trace(NOW + times * 60.0, values, until), until, edge_sd_s)


def minutes(decision) -> tuple[str, float]:
    return decision.verdict.value, round((decision.revisit - NOW) / 60.0, 3)


CLEAN, DIRTY = 20.0, 450.0
QUICK = Costs(2024.0, 468.0, 0.0, 300.0)  # a start that draws nothing


@pytest.mark.parametrize(
    ("minutes_left", "verdict"),
    [
        pytest.param(5.0, Verdict.REST, id="over-before-it-has-started"),
        pytest.param(20.0, Verdict.REST, id="too-short-to-pay"),
        pytest.param(28.0, Verdict.REST, id="just-too-short"),
        pytest.param(28.2, Verdict.TRAIN, id="just-long-enough"),
        pytest.param(300.0, Verdict.TRAIN, id="long"),
    ],
)
def test_only_a_window_that_pays_for_a_start_gets_one(minutes_left, verdict):
    # 468 W for 300 s are 5 % of 2,024 W for 23.1 minutes; with the start itself that is 28.1.
    said = forecast((0.0, CLEAN), (minutes_left, DIRTY))
    known = view(window_open=True, forecast=said)
    assert decide(Lookahead(start_share=0.05), COSTS, known).verdict is verdict


def test_a_doubtful_forecast_must_promise_more():
    said = forecast((0.0, CLEAN), (50.0, DIRTY))
    doubtful = forecast((0.0, CLEAN), (50.0, DIRTY), edge_sd_s=1800.0)
    sure = decide(Lookahead(), COSTS, view(window_open=True, forecast=said))
    unsure = decide(Lookahead(), COSTS, view(window_open=True, forecast=doubtful))
    assert (sure.verdict, unsure.verdict) == (Verdict.TRAIN, Verdict.REST)


def test_a_window_that_is_clean_as_far_as_one_sees_gets_a_start():
    said = forecast((0.0, CLEAN), until_min=15.0)
    assert (
        decide(Lookahead(), COSTS, view(window_open=True, forecast=said)).verdict is Verdict.TRAIN
    )


def test_a_site_leaves_before_the_window_ends():
    said = forecast((0.0, CLEAN), (10.0, DIRTY))
    policy = Lookahead(leave_before_s=60.0)
    up = {"window_open": True, "up_since": NOW - 3600.0, "forecast": said}
    assert minutes(decide(policy, COSTS, view(**up))) == ("train", 9.0)
    late = view(**{**up, "now": NOW + 540.0})
    assert decide(policy, COSTS, late).verdict is Verdict.REST


def test_a_doubtful_end_is_waited_for():
    said = forecast((0.0, CLEAN), (0.1, DIRTY), edge_sd_s=1800.0)
    known = view(window_open=True, up_since=NOW - 3600.0, forecast=said)
    assert decide(Lookahead(), COSTS, known).verdict is Verdict.TRAIN


@pytest.mark.parametrize(
    ("gap_min", "costs", "verdict"),
    [
        # 468 W idle at 450 g/kWh emit 3.5 g a minute; a start inside the next window, 0.8 g and
        # the training it displaces: 169 Wh worth 80 g/kWh.
        pytest.param(4.0, COSTS, Verdict.HOLD, id="14-g-against-14.3"),
        pytest.param(4.2, COSTS, Verdict.REST, id="14.7-g-against-14.3"),
        pytest.param(8.0, COSTS._replace(provision_s=900.0), Verdict.HOLD, id="slow-starts"),
        pytest.param(8.0, COSTS, Verdict.REST, id="quick-starts"),
    ],
)
def test_a_short_gap_is_bridged_where_that_is_cheaper_than_another_start(gap_min, costs, verdict):
    said = forecast((0.0, DIRTY), (gap_min, CLEAN))
    known = view(value=DIRTY, up_since=NOW - 3600.0, forecast=said)
    assert decide(Lookahead(), costs, known).verdict is verdict


def test_a_gap_that_may_last_longer_is_not_bridged():
    said = forecast((0.0, DIRTY), (4.0, CLEAN), edge_sd_s=1800.0)
    known = view(value=DIRTY, up_since=NOW - 3600.0, forecast=said)
    assert decide(Lookahead(), COSTS, known).verdict is Verdict.REST


def test_no_gap_is_bridged_to_a_window_that_would_not_pay():
    said = forecast((0.0, DIRTY), (2.0, CLEAN), (7.0, DIRTY))
    known = view(value=DIRTY, up_since=NOW - 3600.0, forecast=said)
    assert decide(Lookahead(), COSTS, known).verdict is Verdict.REST


def test_a_forecast_that_calls_a_closed_window_open_is_not_believed_about_the_next():
    said = forecast((0.0, CLEAN))
    known = view(value=DIRTY, up_since=NOW - 3600.0, forecast=said)
    assert decide(Lookahead(), COSTS, known).verdict is Verdict.REST


def test_a_start_ahead_of_the_window_is_made_where_it_is_cheaper_than_one_inside():
    said = forecast((0.0, DIRTY), (60.0, CLEAN))
    assert minutes(decide(Lookahead(), QUICK, view(value=DIRTY, forecast=said))) == ("rest", 55.0)
    due = view(now=NOW + 55 * 60.0, value=DIRTY, forecast=said)
    assert minutes(decide(Lookahead(), QUICK, due)) == ("ready", 60.0)
    dear = decide(Lookahead(), COSTS, due)
    assert dear.verdict is Verdict.REST, "five minutes at 450 g/kWh cost more than they gain"


def test_without_a_forecast_a_window_must_be_as_old_as_those_that_went_on():
    tens_and_hours = Experience([600.0] * 6 + [7200.0] * 5)
    young = view(window_open=True, since=NOW - 300.0, experience=tens_and_hours)
    assert minutes(decide(Lookahead(), COSTS, young)) == ("rest", 5.0)
    ripe = view(window_open=True, since=NOW - 601.0, experience=tens_and_hours)
    assert decide(Lookahead(), COSTS, ripe).verdict is Verdict.TRAIN


def test_without_a_forecast_and_without_experience_a_window_is_taken_at_once():
    known = view(window_open=True, experience=Experience([60.0] * 3))
    assert decide(Lookahead(), COSTS, known).verdict is Verdict.TRAIN


PLANNED = (
    Span(NOW - 600.0, NOW - 300.0, Verdict.READY),
    Span(NOW - 300.0, NOW + 300.0, Verdict.TRAIN),
    Span(NOW + 900.0, NOW + 1200.0, Verdict.READY),
)


@pytest.mark.parametrize(
    ("at_s", "verdict", "revisit_s"),
    [
        pytest.param(-700.0, Verdict.REST, -600.0, id="before"),
        pytest.param(-600.0, Verdict.READY, -300.0, id="started-for-it"),
        pytest.param(0.0, Verdict.TRAIN, 300.0, id="planned"),
        pytest.param(300.0, Verdict.REST, 900.0, id="between"),
        pytest.param(900.0, Verdict.READY, 1200.0, id="ready"),
        pytest.param(1200.0, Verdict.REST, INF, id="after"),
    ],
)
def test_a_plan_is_followed_whatever_the_window_says(at_s, verdict, revisit_s):
    known = view(now=NOW + at_s, value=DIRTY, spans=PLANNED)
    assert decide(Deadline(deadline_s=60.0), COSTS, known) == (verdict, NOW + revisit_s)


def test_a_plan_waits_for_power_that_became_unknown():
    known = view(value=None, up_since=NOW - 500.0, spans=PLANNED)
    assert decide(Deadline(deadline_s=60.0), COSTS, known).verdict is Verdict.HOLD


def test_without_a_plan_a_deadline_keeps_to_windows():
    policy = Deadline(deadline_s=60.0)
    assert decide(policy, COSTS, view(window_open=True)).verdict is Verdict.TRAIN
    assert decide(policy, COSTS, view()).verdict is Verdict.REST


times = st.floats(NOW - 1e6, NOW + 1e6)
forecasts = st.builds(
    lambda steps, sd, until: Forecast(
        "a",
        NOW,
        Trace(
            NOW + np.arange(len(steps), dtype=np.float64) * 300.0,
            np.array(steps, dtype=np.float64),
            NOW + until,
        ),
        NOW + until,
        sd,
    ),
    st.lists(st.floats(0.0, 2000.0) | st.just(math.nan), min_size=1, max_size=40),
    st.sampled_from([0.0, 1800.0]),
    st.floats(1.0, 20_000.0),
)
views = st.builds(
    View,
    now=times | st.just(NOW),
    value=st.none() | st.floats(0.0, 2000.0),
    window_open=st.booleans(),
    since=times,
    up_since=st.none() | times,
    forecast=st.none() | forecasts,
    experience=st.none() | st.builds(Experience, st.lists(st.floats(1.0, 1e5), max_size=20)),
    spans=st.none() | st.just(()) | st.just(PLANNED),
    carried=st.none() | st.builds(Carried, times, st.booleans()),
)
costs = st.builds(
    Costs, st.floats(0.0, 1e5), st.floats(0.0, 1e4), st.floats(0.0, 1e4), st.floats(0.0, 7200.0)
)
policies = st.sampled_from(
    [
        Threshold(linger_s=600.0, min_up_s=300.0),
        Lookahead(),
        Lookahead(start_share=1.0, leave_before_s=0.0, min_up_s=600.0),
        Deadline(deadline_s=3600.0),
        Budget(max_kg=1.0, linger_s=60.0),
    ]
)


@settings(deadline=None, max_examples=int(os.environ.get("UNCURTAIL_EXAMPLES", "300")))
@given(policies, costs, views)
def test_no_policy_trains_on_unknown_power_or_loses_its_way(policy, costs, known):
    decision, grid = decide(policy, costs, known), known._replace(carried=None)
    assert not math.isnan(decision.revisit)
    if known.carried is not None:  # its own power carries it, whatever the grid is
        full = not known.carried.capped or decide(policy, costs, grid).verdict is Verdict.TRAIN
        assert decision.verdict is (Verdict.TRAIN if full else Verdict.CAPPED)
        return
    if known.value is None:
        assert decision.verdict not in (Verdict.TRAIN, Verdict.CAPPED)
    if not known.window_open and known.spans is None and known.up_since is None:
        assert decision.verdict is not Verdict.TRAIN


@pytest.mark.parametrize(
    ("spent", "reason", "reached"),
    [
        pytest.param(Spent(NOW, 0.5, 1.0, 0.01, 0.01), None, NOW + 50.0, id="goes-on"),
        pytest.param(Spent(NOW, 1.0, 0.0), "emissions", INF, id="exactly-the-limit"),
        pytest.param(Spent(NOW, 0.0, 2.5, 0.0, 0.0), "cost", INF, id="too-dear"),
        pytest.param(Spent(NOW, 0.0, 1.0, 0.0, 0.1), None, NOW + 10.0, id="money-runs-out-first"),
    ],
)
def test_a_budget_ends_with_what_it_limits(spent, reason, reached):
    policy = Budget(max_kg=1.0, max_eur=2.0)
    assert spent.over(policy) == reason
    if reason is None:
        assert spent.over_at(policy) == pytest.approx(reached)


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
        pytest.param({"kind": "budget"}, id="a-budget-of-nothing"),
        pytest.param({"kind": "deadline"}, id="no-deadline"),
        pytest.param({"kind": "lookahead", "linger_s": 3.0}, id="another-kind-of-key"),
        pytest.param({"kind": "lookahead", "start_share": 0.0}, id="no-start-pays"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(section):
    with pytest.raises(ValidationError):
        read_policy(section)


def test_a_policy_from_before_there_were_kinds_is_a_threshold():
    assert read_policy({"min_up_s": 60.0}) == Threshold(min_up_s=60.0)
    assert read_policy(PolicySection().model_dump(mode="json")) == Threshold()


@pytest.mark.parametrize(
    "policy", [Always(), Threshold(), Lookahead(), Deadline(deadline_s=9.0), Budget(max_eur=1.0)]
)
def test_every_policy_reads_back_what_it_wrote(policy):
    assert read_policy(policy.model_dump(mode="json")) == policy
