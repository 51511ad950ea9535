"""The source's own forecast in a real run: fetched beside the readings, and never above them."""

import math
import re
from typing import Any

import pytest

from tests.signalserver import PASSWORD, TOKEN, USER, Fault, serving
from tests.virtual import experiment as virtual_experiment
from uncurtail import config, sourcing
from uncurtail.adapters import clock
from uncurtail.adapters.electricitymaps import ElectricityMaps
from uncurtail.adapters.foresight import Bands, SourceForecasts
from uncurtail.adapters.livefeed import LiveFeed
from uncurtail.adapters.poller import LAST_RETRY_S, Foresight, Poller
from uncurtail.adapters.watttime import WattTime
from uncurtail.config import ConfigError
from uncurtail.core.events import RoundSkipped
from uncurtail.core.received import Trust
from uncurtail.core.signals import Reading
from uncurtail.runfolder import Journal, RunFolder

START = 1_790_078_400.0
LAG_S = 4.0
HOUR = 3600.0


class World:
    """A wall clock that we turn, and two sites of one region."""

    def __init__(self, monkeypatch):
        self.wall = START
        self.kept = []
        monkeypatch.setattr(clock, "monotonic", lambda: self.wall)
        monkeypatch.setattr(clock, "wall", lambda: self.wall)

    @property
    def now(self):
        return self.wall - LAG_S

    def follow(self, source, region="CAISO_NORTH"):
        sites = {"oslo": region, "rome": region}
        self.poller = Poller(
            source, [region], every_wall_s=60.0, stale_after_s=900.0, seed=0,
            wall=lambda: self.wall,
        )  # fmt: skip
        self.poller.foresee(Foresight(900.0, 86400.0, 7200.0))
        self.feed = LiveFeed(sites, self.poller, source.signal, self.now, wall=lambda: self.wall)
        self.forecasts = SourceForecasts(
            sites,
            self.feed,
            Trust(7200.0, 86400.0, 0.0),
            Bands(100.0, 120.0),
            lambda forecast, made: self.kept.append((forecast, made)),
            wall=lambda: self.wall,
        )

    def run(self, seconds, every=30.0):
        end = self.wall + seconds
        while self.wall < end:
            before, self.wall = self.now, min(end, self.wall + every)
            self.poller.poll()
            self.feed.readings(before, self.now)
            self.newest = self.forecasts.forecast("oslo", self.now)
        return self.newest


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


@pytest.fixture
def server(world):
    with serving(now=lambda: world.wall, value=lambda _t: 30.0) as signals:
        yield signals


@pytest.fixture
def told(world, server):
    """A run that has a forecast: clean for an hour, then not."""
    server.value = lambda t: 30.0 if t < START + HOUR else 500.0
    world.follow(WattTime(USER, PASSWORD, url=server.url, read_s=0.3))
    assert world.run(60.0) is not None
    return world


def test_the_forecast_is_in_simulated_time_and_known_to_every_site_of_its_region(told):
    for site in ("oslo", "rome"):
        forecast = told.forecasts.forecast(site, told.now)
        assert forecast.site == site
        assert forecast.clean_until(told.now, 120.0) == START + HOUR - LAG_S
        assert forecast.until == pytest.approx(told.now + 86400.0, abs=400.0)
    assert [forecast.site for forecast, _ in told.kept] == ["oslo", "rome"]


def test_it_is_asked_for_every_so_often_and_each_is_kept_once(told, server):
    told.run(HOUR - 120.0)
    fetched = [r for r in server.requests if r.query.get("horizon_hours") == "24"]
    assert 4 <= len(fetched) <= 5
    values = len(server.asked("/v3/forecast")) - len(fetched)
    assert values > 10 * len(fetched), "readings come as often as before"
    made = [made for forecast, made in told.kept if forecast.site == "oslo"]
    assert len(made) == len(fetched)
    assert made == sorted(set(made))


FAULTS = {
    "503": r"no forecast: WattTime fails \(503\)",
    "403": "no forecast: WattTime: this account may not read",
    "slow": "no forecast: WattTime does not answer in time",
    "truncated": "no forecast: WattTime broke off its answer",
    "not-json": "no forecast: .* no JSON",
    "nonsense": "no forecast: .* another form than documented",
    "nan": "forecast of WattTime for CAISO_NORTH says nothing of the time from now on: not used",
    "absurd": "says nothing of the time from now on: not used",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_forecast_that_fails_or_lies_is_not_used_and_takes_nothing_from_the_readings(
    told, server, kind
):
    if kind in ("nan", "absurd"):
        server.foretold = lambda _t: math.nan if kind == "nan" else 1e5
    else:
        server.faults.append(Fault(kind, where="horizon_hours=24"))
    server.value = lambda _t: 30.0
    told.run(2 * HOUR + 960.0, every=60.0)
    assert told.newest is None, "the last good one is old by now"
    assert re.search(FAULTS[kind], told.feed.trouble)
    assert PASSWORD not in told.feed.trouble
    reading = told.feed.told("oslo")[-1]
    assert reading.value == pytest.approx(30.0)
    assert reading.age_s(told.now) < 400.0

    server.faults.clear()
    server.foretold = None
    server.go_on.set()
    assert told.run(900.0 + 2 * LAST_RETRY_S) is not None, (
        "and it is believed again once all is well"
    )
    assert told.feed.trouble is None


def test_a_forecast_that_is_never_renewed_grows_old(told, server):
    answered = server.answer
    (first,) = [r for r in server.requests if r.query.get("horizon_hours") == "24"]
    frozen = answered(first)
    server.answer = lambda r: frozen if r.query.get("horizon_hours") == "24" else answered(r)
    told.run(2 * HOUR + 60.0, every=60.0)
    assert told.newest is None
    assert "min old: not used" in told.feed.trouble
    assert len(told.kept) == 4, "two forecasts of two sites: the same again is not written again"


def test_a_reading_that_contradicts_it_sets_it_aside_until_they_agree(told, server):
    server.foretold = lambda _t: 500.0
    assert told.run(960.0) is None, "it said dirty of a time that was clean"
    server.foretold = None
    assert told.run(960.0) is not None


def test_what_a_forecast_says_ends_when_it_does(told):
    end = told.newest.until
    assert told.forecasts.renewed(told.now) < end
    assert told.forecasts.renewed(told.now) > told.now + HOUR
    assert told.forecasts.renewed(end + 1e9) == math.inf


def test_electricity_maps_forecasts_by_the_hour(world, server):
    server.value = lambda t: 30.0 if t < START + 2 * HOUR else 500.0
    world.follow(ElectricityMaps(TOKEN, url=server.url), region="DE")
    forecast = world.run(60.0)
    assert forecast.clean_until(world.now, 120.0) == START + 2 * HOUR - LAG_S


def live(energy, **sections):
    body = {
        "name": "live",
        "energy": energy,
        "sites": {"oslo": {"region": "CAISO_NORTH"}},
        "train": {"budget_tokens": 1000},
        **sections,
    }
    return config.parse(body, "live.toml")


PROMETHEUS = {"source": "prometheus", "prometheus_url": "http://h:9090", "prometheus_query": "x"}


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        ({**PROMETHEUS, "forecast": "source"},
         "source 'prometheus' publishes no forecast (watttime and electricitymaps do): set "
         'energy.forecast to "persistence" or "climatology"'),
        ({"source": "synthetic", "forecast": "source"},
         'set energy.forecast to "noisy" or "perfect"'),
        ({"source": "watttime", "forecast": "perfect"},
         "forecast 'perfect' needs to know what comes, and source 'watttime' is live: set "
         'energy.forecast to "source", "persistence" or "climatology"'),
        ({**PROMETHEUS, "forecast": "noisy"},
         'is live: set energy.forecast to "persistence" or "climatology"'),
        ({"source": "watttime", "forecast": "source", "forecast_edge_sd_s": -1},
         "forecast_edge_sd_s = -1"),
    ],
)  # fmt: skip
def test_a_forecast_that_its_source_cannot_make_is_refused_with_the_remedy(energy, message):
    with pytest.raises(ConfigError) as refusal:
        live(energy)
    assert message in str(refusal.value)


def heard(*values):
    """A feed that was told these values, five minutes apart."""
    energy = live({"source": "watttime", "forecast": "persistence"})
    source = WattTime(USER, PASSWORD, url="http://127.0.0.1:9")
    poller = Poller(source, [], every_wall_s=60.0, stale_after_s=900.0, seed=0)
    feed = LiveFeed({"oslo": "CAISO_NORTH"}, poller, source.signal, START, wall=lambda: START)
    rows = [Reading("oslo", START + 300.0 * n, value) for n, value in enumerate(values)]
    feed.told("oslo").extend(rows)
    return energy, feed


def forecasts(settings, feed, recorded=()) -> Any:
    forecaster = sourcing.live_forecaster(settings, feed, recorded, START, nothing_is_kept)
    assert forecaster is not None
    return lambda now: forecaster.forecast("oslo", now)


def nothing_is_kept(_forecast, _made):
    raise AssertionError("only what a source said is kept")


def test_persistence_goes_on_with_what_was_heard_last():
    settings, feed = heard(20.0, 500.0)
    said = forecasts(settings, feed)
    assert said(START + 10.0).clean_until(START, 120.0) == START + 86400.0
    later = START + 910.0  # issued at 900 s, from the reading of 300 s
    assert said(later).clean_from(later, 100.0) == math.inf
    assert said(START + 1810.0) is None, "by then nothing is known"


def test_climatology_learns_from_what_earlier_coordinators_heard():
    settings, feed = heard(20.0)
    settings = live({"source": "watttime", "forecast": "climatology"})
    day = [
        Reading("oslo", START - 2 * 86400.0 + 300.0 * n, 10.0 if n % 288 < 144 else 600.0)
        for n in range(576)
    ]
    assert forecasts(settings, feed)(START + 10.0) is None, "less than a day was heard"
    forecast = forecasts(settings, feed, day)(START + 10.0)
    assert forecast.mean(START + 6 * HOUR, START + 7 * HOUR) == pytest.approx(10.0)
    assert forecast.mean(START + 18 * HOUR, START + 19 * HOUR) == pytest.approx(600.0)


def test_what_was_heard_before_a_pause_keeps_its_hour_of_the_day():
    readings = [Reading("oslo", START, 20.0, START - 60.0)]
    events = [RoundSkipped(t=START - 10.0, wall_s=START - 5.0, round=1)]  # it lagged by 5 s
    at_once = sourcing.recalled(readings, events, START, wall_s=START + 5.0)
    assert at_once == readings
    (moved,) = sourcing.recalled(readings, events, START, wall_s=START + 5.0 + 8 * HOUR)
    assert (moved.t, moved.published) == (START - 8 * HOUR, START - 60.0 - 8 * HOUR)
    assert sourcing.recalled(readings, [], START, wall_s=START) == readings


def test_a_forecast_is_one_line_of_the_run_folder(told, tmp_path):
    folder = RunFolder(tmp_path / "run-1")
    journal = Journal(folder)
    assert folder.read_forecasts() == []
    for forecast, made in told.kept:
        journal.forecast(forecast, made)
    journal.close()
    rows = folder.read_forecasts()
    assert [row["site"] for row in rows] == ["oslo", "rome"]
    issued = told.kept[0][0].issued
    assert rows[0]["g_per_kwh"] == [
        [0.0, 30.0],
        [pytest.approx(START + HOUR - LAG_S - issued), 500.0],
    ]
    text = (folder.series / "forecasts.jsonl").read_text()
    assert max(map(len, text.splitlines())) < 300, "only changes are written"


def test_a_virtual_run_has_no_source_to_ask():
    with pytest.raises(ConfigError, match="publishes no forecast"):
        virtual_experiment(energy={"forecast": "source"})
