"""Metering of batteries and suns: cut where what flows changes, by the reading that is fresh."""

import numpy as np
import pytest

from tests.test_metering import FakeFeed, FakeRecord
from uncurtail.adapters.vessim_own import VessimOwnPower
from uncurtail.core.fleet import Phase, SiteSection
from uncurtail.core.ledger import Ledger
from uncurtail.core.measured import signal
from uncurtail.core.microgrid import Microgrid, MicrogridSection
from uncurtail.core.policy import Threshold
from uncurtail.core.signals import Reading, Trace
from uncurtail.instruments import Instruments, OwnSupply
from uncurtail.metering import Meter

START = 1_784_851_200.0
BATTERY = MicrogridSection(battery_wh=3000.0, battery_initial_soc=0.5, battery_c_rate=1.0)
SITE = SiteSection(idle_power_w=400.0, train_power_w=2000.0)


class PlainFeed(FakeFeed):
    """Draws exactly what it is asked for."""

    def draw(self, start, end, power_w):
        super().draw(start, end, power_w)
        return dict(power_w)


def metering(*published, phase=Phase.TRAINING, section=BATTERY, sun=None, **rest):
    own = {"a": Microgrid(section, sun)}
    supply = OwnSupply(own, VessimOwnPower(own, START, {}), Threshold())
    feed = PlainFeed([Reading("a", START + after, value) for after, value in published], START)
    record = FakeRecord()
    instruments = Instruments(feed, record, own=supply, **rest)  # type: ignore[arg-type]
    meter = Meter({"a": SITE}, {"a": phase}, instruments, Ledger(100.0), START)
    meter.begin()
    return meter, feed, record


def flows(record):
    """(seconds from the start, grid W, battery W) of every row."""
    return [
        (segment.end - START, segment.flow.grid_w, segment.flow.battery_w)
        for cut in record.cuts
        for segment, _ in cut
        if segment.flow is not None
    ]


def test_a_row_ends_where_the_battery_does_and_the_grid_takes_over():
    """1.2 kWh above the least carry 2 kW for 36 minutes."""
    meter, feed, record = metering((0, 500.0))
    meter.cut(START + 3600.0)
    assert flows(record) == [
        (pytest.approx(2160.0), pytest.approx(0.0, abs=1e-3), pytest.approx(2000.0)),
        (3600.0, pytest.approx(2000.0), pytest.approx(0.0, abs=1e-3)),
    ]
    assert [power["a"] for _, _, power in feed.drawn] == [row[1] for row in flows(record)]
    tally = meter.ledger.total()
    assert tally.grid_j == pytest.approx(2000.0 * 1440.0, rel=1e-6)
    assert tally.emissions_g == pytest.approx(tally.grid_j / 3.6e6 * 500.0)


def test_a_clean_grid_spares_the_battery_until_its_reading_is_stale():
    """The ledger prices by the newest value, however old; the battery goes by what is known."""
    meter, _, record = metering((0, 50.0))
    meter.cut(START + 1200.0)
    assert flows(record) == [
        (pytest.approx(900.001), pytest.approx(2000.0), 0.0),
        (1200.0, 0.0, pytest.approx(2000.0)),
    ]


def test_an_unknown_grid_charges_nothing_and_a_known_one_does():
    section = BATTERY.model_copy(update={"charge_from_curtailed": True})
    meter, _, record = metering((0, None), (600, 50.0), phase=Phase.RELEASED, section=section)
    meter.advance(START + 900.0)
    meter.cut(START + 900.0)
    assert flows(record) == [(600.0, 0.0, 0.0), (900.0, pytest.approx(3000.0), 0.0)]
    tally = meter.ledger.total(phase=Phase.RELEASED)
    assert (tally.energy_j, tally.stored_j) == (0.0, pytest.approx(3000.0 * 300.0))
    assert tally.emissions_g == pytest.approx(3000.0 * 300.0 / 3.6e6 * 50.0)


def test_what_is_left_is_known_between_cuts_without_cutting():
    times = START + np.array([0.0, 300.0, 600.0])
    sun = Trace(times, np.array([0.0, 1000.0, 3000.0]), START + 900.0)
    meter, feed, _ = metering((0, 500.0), sun=sun)
    own = meter.own(START + 700.0)["a"]
    used_wh = (300 * 2000 + 300 * 1000 - 100 * 1000) / 3600
    assert own.soc == pytest.approx(0.5 - used_wh / 3000.0)
    assert own.surplus_w == pytest.approx(1000.0)
    assert feed.drawn == []
    meter.cut(START + 700.0)
    assert meter.own(START + 700.0)["a"] == pytest.approx(own)


def test_what_is_told_again_and_again_stays_known_and_a_gap_between_is_seen():
    meter, _, record = metering((0, 50.0), (600, 50.0), (1200, 50.0), (1800, 50.0), (3000, 50.0))
    for after in (600.0, 1200.0, 1800.0, 2400.0, 3000.0, 3600.0):
        meter.advance(START + after)
    meter.cut(START + 3600.0)
    assert flows(record) == [
        (pytest.approx(2700.001), pytest.approx(2000.0), 0.0),
        (3000.0, 0.0, pytest.approx(2000.0)),
        (3600.0, pytest.approx(2000.0), 0.0),
    ]


class Samples:
    """Measured watts, each told at its time."""

    trouble = None

    def __init__(self, *told):
        self.told = [Reading("a", START + t, watts, None, signal("nvml")) for t, watts in told]

    def readings(self, after, until):
        return [reading for reading in self.told if after < reading.t <= until]

    def next_change(self, now):
        return float("inf")


def test_a_measured_load_is_what_the_battery_carries_until_the_measurement_is_stale():
    samples = Samples((0, 2500.0), (300, 2500.0))
    meter, _, record = metering((0, 500.0), power=[samples], power_stale_after_s=600.0)
    meter.advance(START + 1200.0)
    own = meter.own(START + 1200.0)["a"]
    meter.cut(START + 1200.0)
    assert flows(record) == [
        (pytest.approx(900.001), pytest.approx(0.0), pytest.approx(2500.0)),
        (1200.0, pytest.approx(0.0), pytest.approx(2000.0)),
    ]
    assert own.soc == pytest.approx(0.5 - (2500 * 900 + 2000 * 300) / 3600 / 3000.0, abs=1e-5)


def test_own_power_must_last_for_what_training_was_measured_to_take():
    meter, _, _ = metering((0, 500.0), power=[Samples((0, 2500.0))], power_stale_after_s=600.0)
    meter.advance(START)
    assert meter.own(START)["a"].lasts_s == pytest.approx(1.2 * 3600.0 / 2.5)
    idle, _, _ = metering((0, 500.0), power=[Samples((0, 2500.0))], phase=Phase.IDLE)
    idle.advance(START)
    assert idle.own(START)["a"].lasts_s == pytest.approx(1.2 * 3600.0 / 2.0)
