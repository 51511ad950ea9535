"""WattTime: one login for many calls, chunks, units, and refusals that say what to do."""

import pytest

from tests.signalserver import LB_PER_MWH_OF_G_PER_KWH, PASSWORD, USER, Fault, sawtooth, serving
from uncurtail.adapters import clock
from uncurtail.adapters import watttime as module
from uncurtail.adapters.http import SourceError
from uncurtail.adapters.watttime import WattTime
from uncurtail.core.signals import Kind

MIDNIGHT = 1_790_035_200.0
NOON = MIDNIGHT + 43_200.0 + 123.0
SLOT = 300.0


@pytest.fixture
def server():
    with serving(now=lambda: NOON) as signals:
        yield signals


@pytest.fixture
def watttime(server, monkeypatch):
    monkeypatch.setattr(clock, "wall", lambda: NOON)
    return WattTime(USER, PASSWORD, url=server.url)


def test_the_newest_value_is_the_first_point_of_a_forecast_of_no_hours(watttime, server):
    point = watttime.latest("CAISO_NORTH")
    assert point.t == NOON // SLOT * SLOT
    assert point.value == pytest.approx(sawtooth(point.t))
    (request,) = server.asked("/v3/forecast")
    assert request.query == {
        "region": "CAISO_NORTH",
        "horizon_hours": "0",
        "signal_type": "co2_moer",
    }


def test_pounds_per_megawatt_hour_become_grams_per_kilowatt_hour(server, watttime):
    server.value = lambda t: 453.592
    assert pytest.approx(1000.0) == 453.592 * LB_PER_MWH_OF_G_PER_KWH
    assert watttime.latest("CAISO_NORTH").value == pytest.approx(453.592)


def test_an_account_without_forecasts_gets_the_last_point_of_the_past_hour(watttime, server):
    server.forecasts = False
    points = [watttime.latest("CAISO_NORTH") for _ in range(3)]
    assert {point.t for point in points} == {NOON // SLOT * SLOT}
    assert len(server.asked("/v3/forecast")) == 1, "what is refused is not asked for again"
    assert len(server.asked("/v3/historical")) == 3


def test_the_average_signal_is_asked_for_and_labelled_as_such(server):
    average = WattTime(USER, PASSWORD, kind=Kind.AVERAGE, url=server.url)
    average.latest("CAISO_NORTH")
    assert server.asked("/v3/forecast")[0].query["signal_type"] == "co2_aoer"
    assert average.signal.kind == "average"


def test_history_holds_its_start_and_not_its_end(watttime):
    points = watttime.history("CAISO_NORTH", MIDNIGHT, MIDNIGHT + 3600.0)
    assert [point.t for point in points] == [MIDNIGHT + n * SLOT for n in range(12)]
    assert [point.value for point in points] == pytest.approx([sawtooth(p.t) for p in points])


def test_a_call_of_history_stays_below_the_longest_that_the_api_takes(watttime, server):
    server.now = lambda: NOON
    start = MIDNIGHT - watttime.longest_s
    assert len(watttime.history("CAISO_NORTH", start, MIDNIGHT)) == 30 * 288


def test_a_forecast_is_a_trace_that_ends_with_its_last_step(watttime):
    said = watttime.forecast("CAISO_NORTH", NOON)
    assert said.made == NOON
    trace = said.trace
    assert len(trace.times) == 24 * 12
    assert trace.end == trace.times[-1] + SLOT
    assert trace.at(NOON) == pytest.approx(sawtooth(NOON))
    assert trace.signal == watttime.signal


def test_a_forecast_reaches_as_far_as_is_asked_for_and_72_hours_at_most(watttime, server):
    assert len(watttime.forecast("CAISO_NORTH", NOON, 5400.0).trace.times) == 2 * 12
    watttime.forecast("CAISO_NORTH", NOON, 1e9)
    assert server.asked("/v3/forecast")[-1].query["horizon_hours"] == "72"


def test_a_slot_that_a_forecast_leaves_out_is_unknown_and_not_bridged(watttime, server):
    missing = NOON // SLOT * SLOT + 2 * SLOT
    server.gaps.add(missing)
    trace = watttime.forecast("CAISO_NORTH", NOON).trace
    assert trace.at(missing) is None
    assert trace.at(missing - 1.0) == pytest.approx(sawtooth(missing - 1.0))
    assert trace.at(missing + SLOT) == pytest.approx(sawtooth(missing + SLOT))


def test_one_login_serves_many_calls(watttime, server):
    for _ in range(5):
        watttime.latest("CAISO_NORTH")
    assert server.logins == 1
    assert len({request.headers["Authorization"] for request in server.asked("/v3/forecast")}) == 1


def test_a_token_is_renewed_before_its_half_hour_is_over(watttime, server, monkeypatch):
    watttime.latest("CAISO_NORTH")
    later = clock.monotonic() + 26 * 60
    monkeypatch.setattr(clock, "monotonic", lambda: later)
    watttime.latest("CAISO_NORTH")
    assert server.logins == 2
    assert module.TOKEN_S < 30 * 60
    assert len(server.asked("/v3/forecast")) == 2, "not a call was refused"


def test_a_token_that_is_refused_is_renewed_once(watttime, server):
    watttime.latest("CAISO_NORTH")
    server.token = "revoked"
    assert watttime.latest("CAISO_NORTH").t == NOON // SLOT * SLOT
    assert server.logins == 2
    server.faults.append(Fault("401"))
    with pytest.raises(SourceError, match="401"):
        watttime.latest("CAISO_NORTH")
    assert server.logins == 3, "and not for ever"


def test_a_wrong_password_names_the_variables_and_not_the_password(server):
    with pytest.raises(SourceError) as refusal:
        WattTime(USER, "another-secret", url=server.url).latest("CAISO_NORTH")
    assert str(refusal.value) == (
        "WattTime refuses the user name or password (403): check WATTTIME_USERNAME and "
        "WATTTIME_PASSWORD"
    )


def test_a_region_beyond_the_account_names_the_one_that_is_free(watttime, server):
    with pytest.raises(SourceError) as refusal:
        watttime.latest("SPP_TX")
    assert str(refusal.value) == (
        "WattTime: this account may not read SPP_TX (403); it may read CAISO_NORTH: a free "
        "account has CAISO_NORTH alone, others need a subscription"
    )
    assert refusal.value.status == 403


def test_a_place_has_a_region_and_an_account_its_regions(watttime):
    assert watttime.region_of(37.4, -122.1) == "CAISO_NORTH"
    assert watttime.readable() == ["CAISO_NORTH"]


def test_another_unit_than_expected_is_refused(watttime, server):
    answered = server.answer
    server.answer = lambda request: (
        (200, {"data": [], "meta": {"units": "percentile"}})
        if "forecast" in request.path
        else answered(request)
    )
    with pytest.raises(SourceError, match="answered in percentile, not in lbs_co2_per_mwh"):
        watttime.latest("CAISO_NORTH")
