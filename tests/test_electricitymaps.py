"""Electricity Maps: averages by the hour, called averages, with an age that cannot be faked."""

import pytest

from tests.signalserver import TOKEN, sawtooth, serving
from uncurtail.adapters.electricitymaps import ElectricityMaps
from uncurtail.adapters.http import SourceError

HOUR = 3600.0
MIDNIGHT = 1_790_035_200.0
NOON = MIDNIGHT + 12 * HOUR + 600.0


@pytest.fixture
def server():
    with serving(now=lambda: NOON) as signals:
        yield signals


@pytest.fixture
def maps(server):
    return ElectricityMaps(TOKEN, url=server.url)


def test_the_signal_is_labelled_average(maps):
    assert (maps.signal.kind, maps.signal.unit) == ("average", "gCO2/kWh")
    assert maps.forecast("DE", NOON).trace.signal.kind == "average"


def test_a_forecast_that_does_not_say_when_it_was_made_is_as_old_as_its_first_hour(maps, server):
    assert maps.forecast("DE", NOON + 600.0).made == NOON
    answered = server.answer

    def mute(request):
        status, body = answered(request)
        body.pop("updatedAt")
        return status, body

    server.answer = mute
    server.frozen_at = NOON - 3 * HOUR
    said = maps.forecast("DE", NOON + 600.0)
    assert said.made == (NOON - 3 * HOUR) // HOUR * HOUR
    assert said.trace.times[0] >= NOON - HOUR, "what is over is left out"


def test_the_newest_value_is_published_when_it_was_updated(maps, server):
    point = maps.latest("DE")
    assert (point.t, point.value) == (NOON, sawtooth(MIDNIGHT + 12 * HOUR))
    assert server.asked("/v3/carbon-intensity/latest")[0].query == {"zone": "DE"}


def test_an_hour_that_is_over_says_nothing_about_now_however_often_it_is_updated(maps, server):
    answered = server.answer

    def stuck(request):
        status, body = answered(request)
        return status, {**body, "datetime": "2026-09-21T20:00:00.000Z"}

    server.answer = stuck
    assert maps.latest("DE").t == MIDNIGHT - 3 * HOUR


def test_an_estimate_of_an_hour_to_come_is_as_old_as_its_making(maps, server):
    server.answer = lambda _request: (
        200,
        {
            "datetime": "2026-09-22T13:00:00.000Z",
            "updatedAt": "2026-09-22T12:05:00.000Z",
            "carbonIntensity": 216,
            "isEstimated": True,
        },
    )
    assert maps.latest("DE").t == NOON - 300.0


def test_history_comes_by_ten_days_at_most(maps):
    assert maps.longest_s == 10 * 24 * HOUR
    points = maps.history("DE", MIDNIGHT - maps.longest_s, MIDNIGHT)
    assert len(points) == 240
    assert points[0].t == MIDNIGHT - maps.longest_s


def test_a_plan_without_the_past_gives_the_last_day_and_says_so_beyond(maps, server):
    server.past = False
    assert [p.t for p in maps.history("DE", MIDNIGHT, MIDNIGHT + 2 * HOUR)] == [
        MIDNIGHT,
        MIDNIGHT + HOUR,
    ]
    with pytest.raises(SourceError, match="the last 24 hours: ask for those, or use a plan"):
        maps.history("DE", MIDNIGHT - 48 * HOUR, MIDNIGHT)


def test_a_refusal_names_what_to_check(maps, server):
    with pytest.raises(SourceError, match="Zone 'XX' does not exist: check the zone XX"):
        maps.latest("XX")
    with pytest.raises(SourceError, match=r"401.*Invalid auth-token: check ELECTRICITYMAPS_TOKEN"):
        ElectricityMaps("wrong", url=server.url).latest("DE")
