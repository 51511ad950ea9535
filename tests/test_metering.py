"""Metering: each reading counts from its own time, however late the tick; phases from the tick."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncurtail.core import measured, pricing
from uncurtail.core.fleet import Phase, SiteSection
from uncurtail.core.ledger import Ledger, Segment
from uncurtail.core.signals import Reading
from uncurtail.instruments import Instruments
from uncurtail.metering import Meter

START = 1000.0
SITES = {
    "solar": SiteSection(idle_power_w=10.0, train_power_w=100.0),
    "windy": SiteSection(idle_power_w=20.0, train_power_w=200.0),
}
IDLE = {"solar": Phase.IDLE, "windy": Phase.IDLE}
TRAINING = {"solar": Phase.TRAINING, "windy": Phase.IDLE}


@dataclass
class FakeFeed:
    """Publishes what it is given; insists that loads tile the time, as Vessim does."""

    published: list[Reading]
    until: float = START
    drawn: list[tuple[float, float, dict[str, float]]] = field(default_factory=list)

    def readings(self, after, until):
        return [reading for reading in self.published if after < reading.t <= until]

    def next_change(self, now):
        raise AssertionError("metering never asks when")

    def draw(self, start, end, power_w):
        assert start == self.until
        assert end > start
        self.until = end
        self.drawn.append((start, end, dict(power_w)))
        return {site: watts + 0.5 for site, watts in power_w.items()}


@dataclass
class FakeRecord:
    """Keeps what was recorded."""

    cuts: list[list[tuple[Segment, float]]] = field(default_factory=list)
    told: list[Reading] = field(default_factory=list)

    def power(self, segments):
        self.cuts.append(list(segments))

    def reading(self, reading):
        self.told.append(reading)

    price = watts = reading

    def segments(self, site):
        return [
            (segment.start, segment.end, segment.phase, segment.intensity_g_per_kwh)
            for cut in self.cuts
            for segment, _ in cut
            if segment.site == site
        ]


def metering(*published, phases=IDLE, since=START):
    feed, record = FakeFeed([Reading(*row) for row in published], since), FakeRecord()
    instruments = Instruments(feed, record)  # type: ignore[arg-type]
    meter = Meter(SITES, phases, instruments, Ledger(100.0), since)
    return meter, feed, record


def test_a_late_tick_integrates_each_reading_from_its_own_time():
    meter, _, record = metering(
        ("solar", START, 50.0), ("solar", START + 300, 500.0), ("solar", START + 600, 40.0)
    )
    meter.begin()
    taken = meter.advance(START + 1000)
    meter.cut(START + 1000)
    assert [reading.t for reading in taken] == [START + 300, START + 600]
    assert record.segments("solar") == [
        (START, START + 300, "idle", 50.0),
        (START + 300, START + 600, "idle", 500.0),
        (START + 600, START + 1000, "idle", 40.0),
    ]
    assert meter.ledger.total(site="solar").emissions_g == pytest.approx(
        10.0 / 3.6e6 * (300 * 50.0 + 300 * 500.0 + 400 * 40.0)
    )


def test_the_value_in_force_at_the_start_is_taken_once():
    meter, _, record = metering(("solar", START, 50.0))
    assert [reading.value for reading in meter.begin()] == [50.0]
    assert meter.advance(START) == []
    assert meter.advance(START + 1) == []
    assert len(record.told) == 1


def test_a_reading_is_told_once_however_often_the_clock_ticks():
    meter, _, record = metering(("solar", START + 5, 50.0), ("solar", START + 9, 60.0))
    meter.begin()
    told = [len(meter.advance(START + seconds)) for seconds in (4, 5, 5, 6, 20, 20)]
    assert told == [0, 1, 0, 0, 1, 0]
    assert [reading.value for reading in record.told] == [50.0, 60.0]


def test_until_something_is_known_energy_counts_but_is_not_priced():
    meter, _, _ = metering(("windy", START, 50.0), ("solar", START + 100, 50.0))
    meter.begin()
    meter.advance(START + 200)
    meter.cut(START + 200)
    solar = meter.ledger.total(site="solar")
    assert (solar.energy_j, solar.unpriced_j) == (2000.0, 1000.0)


@pytest.mark.parametrize("value", [None, float("nan")], ids=["source-does-not-know", "nan"])
def test_a_value_that_becomes_unknown_is_unknown_from_then_on(value):
    meter, _, _ = metering(("solar", START, 50.0), ("solar", START + 100, value))
    meter.begin()
    meter.advance(START + 300)
    meter.cut(START + 300)
    solar = meter.ledger.total(site="solar")
    assert (solar.energy_j, solar.unpriced_j) == (3000.0, 2000.0)
    assert solar.emissions_g == pytest.approx(10.0 / 3.6e6 * 100 * 50.0)


def test_phases_change_at_ticks_only():
    meter, feed, record = metering(("solar", START, 50.0))
    meter.begin()
    meter.change(TRAINING, START + 10)
    meter.change(TRAINING, START + 20)
    meter.change(IDLE, START + 30)
    meter.cut(START + 40)
    assert record.segments("solar") == [
        (START, START + 10, "idle", 50.0),
        (START + 10, START + 30, "training", 50.0),
        (START + 30, START + 40, "idle", 50.0),
    ]
    assert [drawn[2]["solar"] for drawn in feed.drawn] == [10.0, 100.0, 10.0]


def test_the_callers_phases_are_not_shared():
    phases = dict(IDLE)
    meter, _, record = metering(phases=phases)
    phases["solar"] = Phase.TRAINING
    meter.cut(START + 10)
    assert record.segments("solar") == [(START, START + 10, "idle", None)]


def test_every_cut_holds_every_site_with_what_the_feed_drew():
    meter, _, record = metering(("solar", START, 50.0))
    meter.begin()
    meter.cut(START + 10)
    (cut,) = record.cuts
    assert [(s.site, s.power_w, drawn) for s, drawn in cut] == [
        ("solar", 10.0, 10.5),
        ("windy", 20.0, 20.5),
    ]


@pytest.mark.parametrize("until", [START, START - 1.0])
def test_a_cut_of_no_length_changes_nothing(until):
    meter, feed, record = metering()
    meter.cut(until)
    assert (feed.drawn, record.cuts, meter.since) == ([], [], START)


def test_a_value_that_is_published_again_is_told_but_cuts_nothing():
    meter, feed, record = metering(("solar", START, 50.0), ("solar", START + 300, 50.0))
    meter.begin()
    meter.advance(START + 400)
    assert len(record.told) == 2
    assert feed.drawn == []
    assert meter.readings["solar"].t == START + 300, "it renews the reading's age"


def test_a_new_coordinator_goes_on_where_the_old_one_stopped():
    """It was away from 400 to 1000; a reading came meanwhile, and the sites stayed as they were."""
    published = [("solar", START + 300, 50.0), ("solar", START + 600, 500.0)]
    meter, _, record = metering(*published, phases=TRAINING, since=START + 400)
    meter.resume({"solar": Reading("solar", START + 300, 50.0)})
    assert [reading.t for reading in meter.advance(START + 1000)] == [START + 600]
    meter.cut(START + 1000)
    assert record.segments("solar") == [
        (START + 400, START + 600, "training", 50.0),
        (START + 600, START + 1000, "training", 500.0),
    ]


def test_a_reading_of_before_the_last_cut_counts_from_the_cut():
    """A crash came between the cut and the reading that caused it: the reading is taken again."""
    meter, _, record = metering(("solar", START + 300, 500.0), since=START + 300)
    meter.resume({"solar": Reading("solar", START, 50.0)})
    meter.advance(START + 400)
    meter.cut(START + 400)
    assert record.segments("solar") == [(START + 300, START + 400, "idle", 500.0)]


seconds = st.integers(1, 2000).map(lambda s: START + s)
readings = st.lists(
    st.tuples(st.sampled_from(["solar", "windy"]), seconds, st.none() | st.floats(0, 2000)),
    max_size=8,
    unique_by=lambda row: row[:2],
).map(lambda rows: sorted(rows, key=lambda row: row[1]))


@settings(deadline=None)
@given(readings, st.sets(seconds, min_size=1), st.randoms(use_true_random=False))
def test_however_the_ticks_fall_the_same_energy_is_priced_the_same(rows, ticks, rng):
    """With phases that never change, ticking once or often gives one ledger."""
    end = START + 2000
    often, _, _ = metering(*rows)
    for tick in sorted(ticks):
        often.advance(tick)
        if rng.random() < 0.5:
            often.cut(tick)
    once, _, _ = metering(*rows)
    for meter in (often, once):
        meter.advance(end)
        meter.cut(end)
    for site in SITES:
        left, right = often.ledger.total(site=site), once.ledger.total(site=site)
        assert left.duration_s == pytest.approx(2000.0)
        assert left.energy_j == pytest.approx(right.energy_j)
        assert left.emissions_g == pytest.approx(right.emissions_g)
        assert left.unpriced_j == pytest.approx(right.unpriced_j)


@dataclass
class FakeSignals:
    """Prices or measurements, as they are given."""

    rows: list[Reading]
    trouble: str | None = None

    def readings(self, after, until):
        return [row for row in self.rows if after < row.t <= until]

    def next_change(self, now):
        raise AssertionError("metering never asks when")

    def expected(self, site, now):
        raise AssertionError("metering never looks ahead")


def priced(rows, stale_s, power=()):
    feed, record = FakeFeed([]), FakeRecord()
    signals = [Reading("solar", t, value, None, pricing.signal("csv")) for t, value in rows]
    samples = [Reading("solar", t, value, None, measured.signal("rapl")) for t, value in power]
    prices, meters = FakeSignals(signals), [FakeSignals(samples)]
    instruments = Instruments(feed, record, prices, stale_s, meters, 60.0)  # type: ignore[arg-type]
    return Meter(SITES, TRAINING, instruments, Ledger(100.0), START), record


def stretches(record, what):
    rows = [segment for cut in record.cuts for segment, _ in cut if segment.site == "solar"]
    return [(row.start - START, row.end - START, getattr(row, what)) for row in rows]


def test_a_price_that_goes_stale_ends_its_stretch_and_one_told_again_does_not():
    told = [(START, 0.1), (START + 100, 0.1), (START + 200, 0.1), (START + 500, 0.1)]
    meter, record = priced(told, stale_s=150.0)
    meter.begin()
    for seconds in range(50, 650, 50):
        meter.advance(START + seconds)
    meter.cut(START + 600)
    assert stretches(record, "price_eur_per_kwh") == [
        (0.0, pytest.approx(350.001), 0.1),
        (pytest.approx(350.001), 500.0, None),
        (500.0, 600.0, 0.1),
    ]


def test_a_power_that_is_measured_again_and_again_counts_for_all_of_a_long_stretch():
    power = [(START + 15.0 * n, 70.0) for n in range(1, 41)]
    meter, record = priced([], 1.0, power)
    meter.begin()
    for seconds in range(5, 605, 5):
        meter.advance(START + seconds)
    meter.cut(START + 600)
    assert stretches(record, "power_w") == [(0.0, 15.0, 100.0), (15.0, 600.0, 70.0)]
    assert stretches(record, "power_from") == [(0.0, 15.0, "model"), (15.0, 600.0, "rapl")]
    assert meter.spent(START + 600).kg_per_s == 0.0


def test_a_released_site_draws_nothing_whatever_was_measured_last():
    power = [(START + 10.0, 70.0)]
    meter, record = priced([], 1.0, power)
    meter.begin()
    meter.advance(START + 20)
    meter.change({"solar": Phase.RELEASED, "windy": Phase.IDLE}, START + 20)
    meter.change({"solar": Phase.PROVISIONING, "windy": Phase.IDLE}, START + 30)
    meter.advance(START + 40)
    meter.cut(START + 40)
    watts = [(start, end, w) for start, end, w in stretches(record, "power_w")]
    assert watts == [
        (0.0, 10.0, 100.0), (10.0, 20.0, 70.0), (20.0, 30.0, 0.0), (30.0, 40.0, 10.0),
    ]  # fmt: skip


def test_a_price_that_an_earlier_coordinator_took_in_is_not_taken_in_again():
    told = [(START, 0.1), (START + 50.0, 0.3)]
    meter, record = priced(told, 1e6)
    paid = Reading("solar", START, 0.1, None, pricing.signal("csv"))
    meter.resume({"solar": Reading("solar", START, 50.0)}, {"solar": paid})
    meter.advance(START + 60)
    meter.cut(START + 60)
    assert [reading.value for reading in record.told] == [0.3]
    assert stretches(record, "price_eur_per_kwh") == [(0.0, 50.0, 0.1), (50.0, 60.0, 0.3)]
