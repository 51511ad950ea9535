"""A whole run that looks ahead by its source's own forecast, which may be right, wrong or gone.

The real loop, journal, commits, Vessim and HTTP; virtual time, and the source on loopback.
"""

import math
from typing import Any

import pytest

from tests import virtual
from tests.signalserver import PASSWORD, USER, Fault, serving
from tests.virtual import START, Polled, Virtual, experiment
from uncurtail import sourcing, wiring
from uncurtail.adapters import clock
from uncurtail.adapters.foresight import Bands, SourceForecasts
from uncurtail.adapters.poller import Foresight, Poller
from uncurtail.adapters.watttime import WattTime
from uncurtail.core.events import SitePhase, Trouble, unix
from uncurtail.core.received import Trust
from uncurtail.verify import verify

BEGAN = unix(START)
HOUR = 3600.0
SITE = "oslo"
SITES = {SITE: "CAISO_NORTH"}


def grid(t):
    """Clean in the first and the third hour, and from the sixth on."""
    return 500.0 if 1 <= (t - BEGAN) // HOUR % 6 < 2 or 3 <= (t - BEGAN) // HOUR % 6 < 5 else 30.0


@pytest.fixture
def server():
    with serving(value=grid) as signals:
        yield signals


@pytest.fixture
def play(tmp_path, server, monkeypatch):
    holder: dict[str, Any] = {}

    def now():
        return holder["run"].t if "run" in holder else BEGAN

    def live(_traces, start):
        source = WattTime(USER, PASSWORD, url=server.url, read_s=0.3)
        poller = Poller(
            source, ["CAISO_NORTH"], every_wall_s=60.0, stale_after_s=900.0, seed=1, wall=now
        )
        poller.foresee(Foresight(900.0, 86400.0, 7200.0))
        holder["feed"] = Polled(SITES, poller, source.signal, start, now)
        return holder["feed"]

    def forecaster(settings, _traces, began):
        if settings.energy.forecast != "none":  # a live config would be refused: no real time
            return sourcing.live_forecaster(settings, holder["feed"], [], began, keep)
        return SourceForecasts(
            SITES, holder["feed"], Trust(7200.0, 86400.0, 0.0), Bands(100.0, 120.0), keep, now
        )

    def keep(forecast, made):
        holder["run"].journal.forecast(forecast, made) if "run" in holder else None

    server.now = now
    monkeypatch.setattr(clock, "monotonic", now)
    monkeypatch.setattr(clock, "wall", now)
    monkeypatch.setattr(virtual, "VessimFeed", live)
    monkeypatch.setattr(wiring, "forecaster", forecaster)

    def playing(policy, forecast="none"):
        settings = experiment(
            sites={"duck": {"preset": "duck"}},
            run={"duration_s": 4 * HOUR},
            energy={"seed": 0, "forecast": forecast},
            policy=policy,
        )
        body = settings.model_copy(update={"sites": {SITE: settings.sites["duck"]}})
        holder["run"] = Virtual(tmp_path, body, traces={})
        return holder["run"]

    yield playing
    holder["run"].close()


LOOKAHEAD = {"kind": "lookahead", "leave_before_s": 60.0, "start_ahead": False}


def entered(run, phase):
    """Seconds after the start at which the site entered a phase."""
    events = run.folder.read_events()
    return [e.t - BEGAN for e in events if isinstance(e, SitePhase) and e.phase == phase]


def check(run):
    assert run.loop.finished
    broken = [c for c in verify(run.folder, recompute_tokens=False) if c.passed is False]
    assert broken == []


def test_a_site_leaves_before_its_window_ends_because_the_source_said_so(play):
    run = play(LOOKAHEAD)
    run.until(BEGAN + 5 * HOUR)
    check(run)
    first, second = entered(run, "draining")[:2]
    assert first == pytest.approx(HOUR - 60.0, abs=2.0)
    assert second == pytest.approx(3 * HOUR - 60.0, abs=2.0)
    rows = run.folder.read_forecasts()
    assert len(rows) == pytest.approx(17, abs=2), "one line each quarter of an hour"
    assert rows[0]["g_per_kwh"][1][1] == 500.0


def leaves_late(run):
    """Whether it stays until the readings say that the window is over, a poll later at most."""
    left = entered(run, "draining")[0]
    return HOUR <= left <= HOUR + 70.0


@pytest.mark.parametrize("kind", ["503", "slow", "truncated", "nonsense"])
def test_a_forecast_that_does_not_come_leaves_the_policy_as_it_is_without_one(play, server, kind):
    server.faults.append(Fault(kind, where="horizon_hours=24"))
    run = play(LOOKAHEAD)
    run.until(BEGAN + 5 * HOUR)
    check(run)
    assert leaves_late(run)
    said = [e.message for e in run.folder.read_events() if isinstance(e, Trouble)]
    assert any(message.startswith("no forecast: ") for message in said)


@pytest.mark.parametrize("value", [math.nan, 1e5, -3.0])
def test_a_forecast_of_what_cannot_be_leaves_the_policy_as_it_is_without_one(play, server, value):
    server.foretold = lambda _t: value
    run = play(LOOKAHEAD)
    run.until(BEGAN + 5 * HOUR)
    check(run)
    assert leaves_late(run)
    assert run.folder.read_forecasts() == []


def test_a_forecast_that_calls_clean_power_dirty_is_not_followed(play, server):
    server.foretold = lambda _t: 500.0
    run = play(LOOKAHEAD)
    run.until(BEGAN + 5 * HOUR)
    check(run)
    assert entered(run, "training"), "the readings said clean"
    assert leaves_late(run)


def test_a_forecast_never_makes_unknown_power_green(play, server):
    server.foretold = lambda _t: 30.0
    server.faults.append(Fault("503", where="horizon_hours=0"))
    run = play({**LOOKAHEAD, "start_ahead": True})
    run.until(BEGAN + 5 * HOUR)
    check(run)
    assert entered(run, "training") == []


def test_a_plan_to_a_deadline_follows_the_source(play):
    run = play({"kind": "deadline", "deadline_s": 4 * HOUR, "site_hours": 1.0})
    run.until(BEGAN + 5 * HOUR)
    check(run)
    assert entered(run, "training")
    assert run.loop.meter.ledger.total(phase="training").clean_j > 0.0


@pytest.mark.parametrize("kind", ["persistence", "climatology"])
@pytest.mark.parametrize("policy", ["lookahead", "deadline"])
def test_a_live_run_may_learn_from_its_own_readings(play, kind, policy):
    more = {"deadline_s": 4 * HOUR, "site_hours": 1.0} if policy == "deadline" else {}
    run = play({"kind": policy, **more}, forecast=kind)
    run.until(BEGAN + 5 * HOUR)
    check(run)
    assert entered(run, "training")
    assert run.folder.read_forecasts() == [], "what it makes itself can be made again"
