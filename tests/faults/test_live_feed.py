"""A whole run on a live source that fails, freezes and lies: it trains on known power alone.

The real loop, journal, commits, Vessim and HTTP; virtual time, and the source on loopback.
"""

import math
from itertools import pairwise

import pytest

from tests import virtual
from tests.signalserver import PASSWORD, USER, Fault, serving
from tests.virtual import START, Polled, Virtual, experiment
from uncurtail.adapters import clock
from uncurtail.adapters.poller import Poller
from uncurtail.adapters.watttime import WattTime
from uncurtail.core.events import RunEnded, SitePhase, Trouble, WindowClosed, WindowOpened, unix
from uncurtail.verify import verify

BEGAN = unix(START)
HOUR = 3600.0
SITE = "oslo"


@pytest.fixture
def server():
    with serving(value=lambda _t: 30.0) as signals:
        yield signals


@pytest.fixture
def run(tmp_path, server, monkeypatch):
    holder: dict[str, Virtual] = {}

    def now():
        return holder["run"].t if "run" in holder else BEGAN

    def live(_traces, start):
        source = WattTime(USER, PASSWORD, url=server.url, read_s=0.3)
        poller = Poller(
            source, ["CAISO_NORTH"], every_wall_s=60.0, stale_after_s=900.0, seed=1, wall=now
        )
        return Polled({SITE: "CAISO_NORTH"}, poller, source.signal, start, now)

    server.now = now
    monkeypatch.setattr(clock, "monotonic", now)
    monkeypatch.setattr(clock, "wall", now)
    monkeypatch.setattr(virtual, "VessimFeed", live)
    settings = experiment(
        sites={"duck": {"preset": "duck"}}, run={"duration_s": 2.5 * HOUR}, energy={"seed": 0}
    )
    body = settings.model_copy(update={"sites": {SITE: settings.sites["duck"]}})
    holder["run"] = Virtual(tmp_path, body, traces={})
    yield holder["run"]
    holder["run"].close()


def kinds(run, kind):
    return [event for event in run.folder.read_events() if isinstance(event, kind)]


def trained_between(run, start, end):
    """Seconds in which the site was training."""
    total, since = 0.0, None
    for event in [*kinds(run, SitePhase), None]:
        t = run.t if event is None else event.t
        if since is not None:
            total += max(0.0, min(t, BEGAN + end) - max(since, BEGAN + start))
        since = t if event is not None and event.phase == "training" else None
    return total


def check(run):
    broken = [c for c in verify(run.folder, recompute_tokens=False) if c.passed is False]
    assert broken == []
    assert isinstance(run.folder.read_events()[-1], RunEnded)


def lie(server, value):
    server.value = lambda _t: value


BREAKS = {
    "503": lambda server: server.faults.append(Fault("503")),
    "hangs": lambda server: server.faults.append(Fault("slow")),
    "truncated": lambda server: server.faults.append(Fault("truncated")),
    "frozen": lambda server: setattr(server, "frozen_at", server.now()),
    "skewed": lambda server: setattr(server, "skew_s", 2 * HOUR),
    "nan": lambda server: lie(server, math.nan),
    "negative": lambda server: lie(server, -1.0),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_run_trains_on_known_power_alone_and_goes_on_when_all_is_well(run, server, kind):
    def mend(_run):
        server.faults.clear()
        server.go_on.set()
        server.frozen_at, server.skew_s, server.value = None, 0.0, lambda _t: 30.0

    run.until(
        BEGAN + 3 * HOUR,
        [(BEGAN + HOUR, lambda _run: BREAKS[kind](server)), (BEGAN + 1.5 * HOUR, mend)],
    )
    assert run.loop.finished
    check(run)
    # Of the half hour, what was known before counts for 15 minutes at most.
    assert trained_between(run, HOUR + 901.0, 1.5 * HOUR) == 0.0
    assert trained_between(run, 0.0, HOUR) > 0.5 * HOUR
    assert trained_between(run, 1.5 * HOUR, 2.5 * HOUR) > 0.5 * HOUR
    opened, closed = kinds(run, WindowOpened), kinds(run, WindowClosed)
    assert len(opened) == 2
    assert closed[0].intensity_g_per_kwh is None
    troubles = [event for event in kinds(run, Trouble) if event.source == "energy"]
    assert troubles
    assert all(b.wall_s - a.wall_s > 60.0 for a, b in pairwise(troubles))
    assert not any(PASSWORD in event.message for event in troubles)


def test_a_coordinator_that_dies_meanwhile_knows_no_more_than_the_one_before(run, server):
    run.until(
        BEGAN + 3 * HOUR,
        [
            (BEGAN + HOUR, lambda _run: server.faults.append(Fault("503"))),
            (BEGAN + HOUR + 300.0, Virtual.restart),
            (BEGAN + HOUR + 1200.0, Virtual.restart),
            (BEGAN + 1.5 * HOUR, lambda _run: server.faults.clear()),
        ],
    )
    assert run.loop.finished
    check(run)
    assert trained_between(run, HOUR + 901.0, 1.5 * HOUR) == 0.0
    assert trained_between(run, 1.5 * HOUR, 2.5 * HOUR) > 0.5 * HOUR


def test_a_dirty_half_hour_is_waited_out_and_costs_no_clean_one(run, server):
    server.value = lambda t: 500.0 if HOUR <= t - BEGAN < 1.5 * HOUR else 30.0
    run.until(BEGAN + 3 * HOUR)
    assert run.loop.finished
    check(run)
    assert trained_between(run, HOUR + 70.0, 1.5 * HOUR) == 0.0, "known within a minute"
    assert trained_between(run, 0.0, HOUR) > 0.5 * HOUR
    assert trained_between(run, 1.5 * HOUR, 2.5 * HOUR) > 0.5 * HOUR
