"""The feed of a real run: whatever its source does, no tick fails and unknown is not green."""

import math
import socket
import threading

import pytest

from tests.signalserver import PASSWORD, TOKEN, USER, Fault, serving
from uncurtail.adapters import clock
from uncurtail.adapters.electricitymaps import ElectricityMaps
from uncurtail.adapters.http import SourceError
from uncurtail.adapters.livefeed import LiveFeed
from uncurtail.adapters.poller import FIRST_RETRY_S, LAST_RETRY_S, Arrival, Poller
from uncurtail.adapters.prometheus import Prometheus
from uncurtail.adapters.sources import Point
from uncurtail.adapters.watttime import WattTime
from uncurtail.core.policy import PolicySection, stale_at, window
from uncurtail.core.signals import Reading, Signal

START = 1_790_078_400.0
STALE_S = 900.0
POLICY = PolicySection(stale_after_s=STALE_S)
LAG_S = 4.0  # of simulated time behind the wall clock


class World:
    """A wall clock that we turn, and a coordinator's view of one site."""

    def __init__(self, monkeypatch):
        self.wall = START
        self.read_until = START - LAG_S - 1.0
        self.reading: Reading | None = None
        self.open = False
        self.drawn_until = self.now
        monkeypatch.setattr(clock, "monotonic", lambda: self.wall)
        monkeypatch.setattr(clock, "wall", lambda: self.wall)

    @property
    def now(self) -> float:
        return self.wall - LAG_S

    def follow(self, source, *, seed=0, sites=None):
        sites = sites or {"oslo": "CAISO_NORTH"}
        self.poller = Poller(
            source,
            sorted(set(sites.values())),
            every_wall_s=60.0,
            stale_after_s=STALE_S,
            seed=seed,
            wall=lambda: self.wall,
        )
        self.feed = LiveFeed(sites, self.poller, source.signal, self.now, wall=lambda: self.wall)

    def tick(self):
        """What loop and meter do with one site; returns what they were told."""
        told = self.feed.readings(self.read_until, self.now)
        self.read_until = self.now
        for reading in told:
            self.reading = reading
            self.open = window(POLICY, reading, was_open=self.open, now=reading.t)
        self.open = window(POLICY, self.reading, was_open=self.open, now=self.now)
        self.feed.draw(self.drawn_until, self.now, {"oslo": 100.0})
        self.drawn_until = self.now
        return told

    def run(self, seconds, every=20.0):
        """Time passes; the thread's work is done here, so that nothing depends on its pace."""
        self.drawn_until = self.now
        opened = []
        end = self.wall + seconds
        while self.wall < end:
            self.wall = min(end, self.wall + every)
            self.poller.poll()
            self.tick()
            opened.append((self.wall, self.open))
        return opened


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


@pytest.fixture
def server(world):
    with serving(now=lambda: world.wall) as signals:
        yield signals


@pytest.fixture
def green(world, server):
    """A site whose window is open, by a value from WattTime."""
    world.follow(WattTime(USER, PASSWORD, url=server.url, read_s=0.3))
    world.run(400.0)
    assert world.open
    assert world.feed.trouble is None
    return world


def break_server(server, kind):
    """What goes wrong from now on; the words of the trouble."""
    match kind:
        case "401":
            server.faults.append(Fault("401", where=""))
            return "refuses the user name or password"
        case "frozen":
            server.frozen_at = server.now()
            return "answers, but its newest value of CAISO_NORTH is of .* min old: taken as unknown"
        case "skewed":
            server.skew_s = 7200.0
            return r"newest value .* 1\d\d min ahead of our clock"
        case "nan" | "infinite" | "text" | "null" | "negative" | "absurd":
            value = {"nan": math.nan, "infinite": math.inf, "text": "low", "null": None,
                     "negative": -5.0, "absurd": 1e5}[kind]  # fmt: skip
            server.value = lambda _t: value
            said = "says .* gCO2/kWh" if kind in ("infinite", "negative", "absurd") else "no number"
            return f"{said} for CAISO_NORTH: taken as unknown"
        case _:
            server.faults.append(Fault(kind))
            return {
                "403": "may not read CAISO_NORTH",
                "429": "asks for fewer requests",
                "500": r"fails \(500\)",
                "503": r"fails \(503\)",
                "slow": "does not answer in time",
                "truncated": "broke off its answer",
                "not-json": "no JSON",
                "nonsense": "another form than documented",
            }[kind]


KINDS = ["401", "403", "429", "500", "503", "slow", "truncated", "not-json", "nonsense",
         "frozen", "skewed", "nan", "infinite", "text", "null", "negative", "absurd"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_never_reaches_the_tick_and_closes_the_window(green, server, kind):
    said = break_server(server, kind)
    broke_at = green.wall
    opened = green.run(1500.0, every=60.0)
    last_open = max((wall for wall, is_open in opened if is_open), default=broke_at)
    assert last_open <= broke_at + STALE_S, "a value counts for so long and no longer"
    assert not green.open
    assert not window(POLICY, green.reading, was_open=True, now=green.now)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(green.feed.trouble)
    assert PASSWORD not in (green.feed.trouble or "")

    server.faults.clear()
    server.frozen_at, server.skew_s, server.value = None, 0.0, lambda _t: 30.0
    server.go_on.set()
    green.run(2 * LAST_RETRY_S + 60.0)
    assert green.open, "and it opens again once all is well"
    assert green.feed.trouble is None


def test_a_source_that_is_gone_closes_the_window(world):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    world.follow(WattTime(USER, PASSWORD, url=url))
    world.reading = Reading("oslo", world.now, 20.0)
    world.open = True
    opened = world.run(1000.0)
    assert opened[0][1], "what an earlier coordinator knew still counts for a while"
    assert not world.open
    assert "cannot be reached at 127.0.0.1" in world.feed.trouble


def test_a_value_counts_from_its_arrival_and_ages_from_its_publication(green):
    green.run(310.0, every=17.0)
    reading = green.reading
    assert reading.t > reading.published
    assert reading.published == (reading.t + LAG_S) // 300 * 300 - LAG_S
    assert stale_at(POLICY, reading) == reading.published + STALE_S
    assert reading.signal == Signal(source="watttime")


def test_each_publication_is_told_once_to_every_site_of_its_region(world, server):
    source = WattTime(USER, PASSWORD, url=server.url)
    world.follow(source, sites={"oslo": "CAISO_NORTH", "rome": "CAISO_NORTH"})
    told = []
    for _ in range(60):
        world.wall += 30.0
        world.poller.poll()
        told += world.feed.readings(world.read_until, world.now)
        world.read_until = world.now
    for site in ("oslo", "rome"):
        published = [reading.published + LAG_S for reading in told if reading.site == site]
        assert published == [START + 300.0 * n for n in range(len(published))]
        assert len(published) >= 6
    assert len(server.asked("/v3/forecast")) < 35, "one question for both"


def test_asking_again_for_the_same_times_gives_the_same(green):
    everything = green.feed.readings(-math.inf, green.now)
    assert len(everything) >= 2
    assert green.feed.readings(-math.inf, green.now) == everything
    assert green.feed.readings(everything[0].t, green.now) == everything[1:]
    assert green.feed.readings(green.now, green.now - 50.0) == []


def test_what_arrives_becomes_known_at_the_next_tick_and_nothing_is_rewritten(world):
    arrivals = Scripted([Point(START - 60.0, 20.0)])
    world.follow(arrivals)
    world.poller.poll()
    world.wall += 10.0
    assert world.feed.readings(world.now - 20.0, world.now - 15.0) == [], "before the start"
    first = world.feed.readings(world.now - 20.0, world.now)
    assert [(r.t, r.value) for r in first] == [(world.now, 20.0)]
    arrivals.points = [Point(START, 30.0)]
    world.wall += 100.0
    world.poller.poll()
    assert world.feed.readings(first[0].t - 1.0, first[0].t) == first, "that is answered for"
    world.wall += 1.0
    second = world.feed.readings(first[0].t, world.now)
    assert [(r.t, r.value) for r in second] == [(world.now, 30.0)]
    assert world.feed.readings(-math.inf, world.now) == first + second


def test_of_two_arrivals_within_a_tick_the_later_holds(world):
    world.follow(Scripted([Point(START - 300.0, 20.0), Point(START, 30.0)]))
    world.poller.poll()
    world.wall += 70.0
    world.poller.poll()
    assert [r.value for r in world.feed.readings(-math.inf, world.now)] == [30.0]


class Scripted:
    """A source that says what it is told to; the last value again and again."""

    name, period_s, poll_wall_s, longest_s = "Scripted", 300.0, 60.0, 86_400.0
    signal = Signal(source="scripted")

    def __init__(self, points):
        self.points = list(points)

    def latest(self, region):
        point = self.points.pop(0) if len(self.points) > 1 else self.points[0]
        if isinstance(point, Exception):
            raise point
        return point

    def history(self, region, start, end):
        return []

    def forecast(self, region, now):
        return None


def told_by(world, points):
    world.follow(Scripted(points))
    told = []
    for _ in points:
        world.wall += 70.0
        world.poller.poll()
        told += world.feed.readings(world.read_until, world.now)
        world.read_until = world.now
    return [(reading.published + LAG_S - START, reading.value) for reading in told]


def test_an_older_publication_never_takes_the_place_of_a_newer_one(world):
    points = [Point(START, 20.0), Point(START - 300.0, 10.0), Point(START, 20.0)]
    assert told_by(world, points) == [(0.0, 20.0)]


def test_a_value_that_is_unknown_again_and_again_is_told_once(world):
    assert told_by(world, [Point(START, math.nan)] * 3) == [(0.0, None)]


def test_a_value_that_was_corrected_is_told(world):
    points = [Point(START, 20.0), Point(START, 400.0), Point(START, 400.0)]
    assert told_by(world, points) == [(0.0, 20.0), (0.0, 400.0)]


def test_one_wrong_stamp_from_the_future_does_not_keep_out_what_is_right(world):
    points = [Point(START + 86_400.0, 20.0), Point(START + 60.0, 30.0), Point(START + 90.0, 31.0)]
    assert told_by(world, points) == [(86_400.0, 20.0), (60.0, 30.0), (90.0, 31.0)]


def test_a_bug_in_an_adapter_is_trouble_and_not_a_dead_thread(world):
    world.follow(Scripted([ZeroDivisionError("a bug"), Point(START, 20.0)]))
    world.poller.poll()
    assert world.feed.trouble == "Scripted: ZeroDivisionError: a bug"
    world.run(30.0)
    assert world.open


def pauses(world, errors, seed):
    world.follow(Scripted(errors), seed=seed)
    found = []
    for _ in errors:
        world.poller.poll()
        found.append(world.poller.due_in_s())
        world.wall += found[-1]
    return found


def test_retries_come_ever_later_up_to_a_cap_and_equal_seeds_give_equal_pauses(world):
    down = [SourceError("down")] * 14
    found = pauses(world, down, seed=1)
    full = [min(LAST_RETRY_S, FIRST_RETRY_S * 2.0**n) for n in range(14)]
    assert all(0.5 * most <= pause <= most for pause, most in zip(found, full, strict=True))
    assert len(set(found)) == 14
    assert pauses(world, down, seed=1) == pytest.approx(found)
    assert pauses(world, down, seed=2) != pytest.approx(found)


def test_a_server_that_asks_to_be_left_alone_is(world):
    busy = [SourceError("busy", status=429, retry_after_s=1234.0)]
    assert pauses(world, busy, seed=1) == pytest.approx([1234.0])
    forever = [SourceError("busy", status=429, retry_after_s=1e9)]
    assert pauses(world, forever, seed=1) == pytest.approx([3600.0])


def test_what_a_user_must_mend_is_not_asked_for_every_few_seconds(world):
    (pause,) = pauses(world, [SourceError("no", status=403)], seed=1)
    assert pause >= LAST_RETRY_S / 2


def test_troubles_of_several_regions_are_one_line(world):
    world.follow(Scripted([SourceError("down")]), sites={"oslo": "A", "rome": "B", "bonn": "C"})
    world.poller.poll()
    assert world.feed.trouble == "down (and 2 more)"


def test_the_next_change_is_when_the_source_is_asked_next(green):
    due = green.feed.next_change(green.now)
    assert 1.0 <= due - green.now <= 66.0
    green.wall += 500.0
    assert green.feed.next_change(green.now) == green.now + 1.0, "it may come any moment"


def test_a_site_draws_through_its_microgrid_whether_its_intensity_is_known_or_not(world, server):
    world.follow(WattTime(USER, PASSWORD, url=server.url))
    start = world.now
    assert world.feed.draw(start, start + 60.0, {"oslo": 70.0}) == {"oslo": 70.0}
    world.wall += 60.0
    world.poller.poll()
    world.feed.readings(start, world.now)
    assert world.feed.draw(start + 60.0, start + 120.0, {"oslo": 0.0}) == {"oslo": 0.0}
    with pytest.raises(ValueError, match="tile the time"):
        world.feed.draw(start, start + 60.0, {"oslo": 70.0})


def test_no_tick_waits_for_a_source_that_hangs(world, server):
    server.faults.append(Fault("slow"))
    world.follow(WattTime(USER, PASSWORD, url=server.url, read_s=30.0))
    world.poller.start()
    asked = threading.Event()
    while not server.asked("/v3/forecast"):
        asked.wait(0.01)
    # The source still hangs: it is let go only below.
    assert not server.go_on.is_set()
    assert world.feed.readings(world.now - 1.0, world.now) == []
    assert world.feed.draw(world.now, world.now + 1.0, {"oslo": 5.0}) == {"oslo": 5.0}
    assert world.feed.trouble is None
    world.feed.close()


def test_the_thread_fetches_by_itself_until_it_is_closed():
    with serving() as signals:
        source = Prometheus(signals.url, "x", credentials=TOKEN)
        poller = Poller(source, ["R"], every_wall_s=0.01, stale_after_s=STALE_S, seed=0)
        poller.start()
        came: list[Arrival] = []
        while len(came) < 3:
            came += poller.take()
        poller.close()
        assert {arrival.region for arrival in came} == {"R"}


def test_an_average_is_followed_as_an_average(world, server):
    world.follow(ElectricityMaps(TOKEN, url=server.url), sites={"oslo": "DE"})
    world.run(60.0)
    assert world.reading.signal.kind == "average"
