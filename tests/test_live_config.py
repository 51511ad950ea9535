"""Live sources in an experiment: only in real time, with their secrets outside of every file."""

import json

import pytest

from tests.signalserver import PASSWORD, TOKEN, USER, serving
from uncurtail import config, sourcing, wiring
from uncurtail.adapters import clock
from uncurtail.adapters.livefeed import LiveFeed
from uncurtail.adapters.vessim import VessimFeed
from uncurtail.config import ConfigError
from uncurtail.core.events import RoundSkipped
from uncurtail.core.signals import Reading, usable

SITE = {"region": "CAISO_NORTH"}


def experiment(energy, **sections):
    body = {
        "name": "live",
        "energy": energy,
        "sites": {"oslo": SITE},
        "train": {"budget_tokens": 1000},
        **sections,
    }
    return config.parse(body, "live.toml")


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    monkeypatch.setenv("WATTTIME_USERNAME", USER)
    monkeypatch.setenv("WATTTIME_PASSWORD", PASSWORD)
    monkeypatch.setenv("ELECTRICITYMAPS_TOKEN", TOKEN)


HOURLY = {"policy": {"stale_after_s": 5400}}
PROMETHEUS = {"source": "prometheus", "prometheus_url": "http://h:9090", "prometheus_query": "x"}


@pytest.mark.parametrize(
    ("energy", "sections", "kind"),
    [
        ({"source": "watttime"}, {}, "marginal"),
        ({"source": "watttime", "kind": "average"}, {}, "average"),
        ({"source": "electricitymaps"}, HOURLY, "average"),
        (PROMETHEUS, {}, "marginal"),
        ({"source": "vessim", "vessim_url": "http://h:8700", "kind": "average"}, {}, "average"),
    ],
)
def test_a_live_source_is_opened_and_says_what_its_numbers_are(energy, sections, kind):
    settings = experiment(energy, **sections)
    wiring.check_energy(settings, 0.0)
    signal = sourcing.live_source(settings.energy).signal
    assert (signal.kind, signal.unit, signal.source) == (kind, "gCO2/kWh", energy["source"])


@pytest.mark.parametrize(
    ("energy", "sections", "message"),
    [
        ({"source": "watttime"}, {"clock": {"start": "2026-01-01T00:00:00+00:00"}},
         "energy.source 'watttime' tells only what is now: set clock.speed = 1 and clock.start = "
         '"now", or fetch a trace first with uncurtail energy fetch'),
        ({"source": "watttime"},
         {"clock": {"start": "2026-01-01T00:00:00+00:00", "speed": 60}}, "tells only what is now"),
        ({"source": "watttime"}, {"sites": {"oslo": {}}},
         "sites.oslo needs region, as watttime names it"),
        ({"source": "electricitymaps"}, {}, "by the hour: set policy.stale_after_s = 5400"),
        ({"source": "electricitymaps", "kind": "marginal"}, HOURLY, "leave out energy.kind"),
        ({"source": "prometheus"}, {}, "needs prometheus_url and prometheus_query"),
        ({"source": "vessim"}, {}, "needs vessim_url: http://HOST:8700"),
        ({"source": "vessim", "vessim_url": "h:8700"}, {}, "is no address: write http://HOST:PORT"),
        ({"source": "vessim", "vessim_url": "http://me:word@h"}, {}, "must not hold a password"),
        ({"source": "watttime", "poll_wall_s": 0}, {}, "poll_wall_s = 0"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_with_the_remedy(energy, sections, message):
    with pytest.raises(ConfigError) as refusal:
        experiment(energy, **sections)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("missing", "energy", "sections"),
    [
        ("WATTTIME_USERNAME", {"source": "watttime"}, {}),
        ("WATTTIME_PASSWORD", {"source": "watttime"}, {}),
        ("ELECTRICITYMAPS_TOKEN", {"source": "electricitymaps"}, HOURLY),
    ],
)
def test_a_credential_that_is_missing_is_named_before_anything_starts(
    monkeypatch, missing, energy, sections
):
    monkeypatch.delenv(missing)
    with pytest.raises(ConfigError, match=f"needs {missing}, or {missing}_FILE: a file with it"):
        wiring.check_energy(experiment(energy, **sections), 0.0)


def test_a_secret_may_lie_in_a_file(monkeypatch, tmp_path):
    (tmp_path / "word").write_text(f"{PASSWORD}\n")
    monkeypatch.delenv("WATTTIME_PASSWORD")
    monkeypatch.setenv("WATTTIME_PASSWORD_FILE", str(tmp_path / "word"))
    with serving() as server:
        energy = experiment({"source": "watttime", "watttime_url": server.url}).energy
        sourcing.live_source(energy).latest("CAISO_NORTH")


def test_no_secret_is_in_the_resolved_config():
    text = config.dump(experiment({"source": "watttime"}))
    assert USER not in text
    assert PASSWORD not in text
    assert config.parse(json.loads(text), "dumped").energy.source == "watttime"


def test_a_microgrid_may_be_named_as_its_site():
    settings = experiment(
        {"source": "vessim", "vessim_url": "http://h:8700"}, sites={"oslo": {}, "rome": SITE}
    )
    assert sourcing.regions(settings) == {"oslo": "oslo", "rome": "CAISO_NORTH"}


def test_a_live_run_is_fed_by_its_source_and_any_other_by_traces():
    with serving() as server:
        settings = experiment(
            {"source": "watttime", "watttime_url": server.url, "poll_wall_s": 0.05}
        )
        feed = sourcing.feed(settings, {}, 0.0)
        assert isinstance(feed, LiveFeed)
        while not server.asked("/v3/forecast"):
            clock.pause(0.01)
        feed.close()
    made_up = experiment({}, sites={"oslo": {"preset": "duck"}})
    assert isinstance(sourcing.feed(made_up, wiring.traces(made_up, 0.0), 0.0), VessimFeed)


def test_traces_say_what_they_are_and_a_live_source_has_none():
    made_up = experiment({"kind": "average"}, sites={"oslo": {"preset": "duck"}})
    signal = wiring.traces(made_up, 0.0)["oslo"].signal
    assert (signal.kind, signal.source) == ("average", "synthetic")
    with pytest.raises(ConfigError, match="is live, and this needs a trace: get one with"):
        wiring.traces(experiment({"source": "watttime"}), 0.0)


def test_what_was_known_before_a_pause_is_older_after_it_though_simulated_time_stood_still():
    t = 1_790_078_400.0
    before = {"oslo": Reading("oslo", t, 20.0, t - 60.0)}
    events = [RoundSkipped(t=t + 10.0, wall_s=t + 15.0, round=1)]  # it lagged by 5 s
    at_once = sourcing.aged(before, events, t + 2.0, wall_s=t + 18.0)
    assert at_once["oslo"].published == t - 63.0
    assert usable(at_once["oslo"], t + 10.0, 900.0) == 20.0
    next_day = sourcing.aged(before, events, t + 2.0, wall_s=t + 86_400.0)
    assert usable(next_day["oslo"], t + 10.0, 900.0) is None
    assert sourcing.aged(before, [], t, wall_s=t) == before
