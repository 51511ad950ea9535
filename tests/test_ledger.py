"""Energy adds up: stepwise intensity, every phase counted, unknown never priced as zero."""

import json
import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncurtail.core.ledger import Ledger, Segment, Tally, baselines_kg, emissions_g
from uncurtail.core.signals import Trace

HOUR = 3600.0
NAN = math.nan


def trace(times, values, end):
    return Trace(np.array(times, dtype=float), np.array(values, dtype=float), end)


def test_a_site_by_hand():
    """Two hours at 1 kW: one at 50 g/kWh (below 100), one at 300, then one that nobody knows."""
    ledger = Ledger.from_segments(
        [
            Segment("a", "training", 0.0, HOUR, 1000.0, 50.0),
            Segment("a", "training", HOUR, 2 * HOUR, 1000.0, 300.0),
            Segment("a", "training", 2 * HOUR, 3 * HOUR, 1000.0, None),
            Segment("a", "idle", 3 * HOUR, 3.5 * HOUR, 200.0, 100.0),
            Segment("b", "training", 0.0, HOUR, 500.0, 99.9),
        ],
        clean_below_g_per_kwh=100.0,
    )
    assert ledger.tallies["a", "training"] == Tally(
        duration_s=3 * HOUR,
        energy_j=10.8e6,
        emissions_g=350.0,
        clean_j=3.6e6,
        unpriced_j=3.6e6,
        uncosted_j=10.8e6,
    )
    assert ledger.tallies["a", "idle"] == Tally(
        duration_s=0.5 * HOUR, energy_j=0.36e6, emissions_g=10.0, uncosted_j=0.36e6
    )
    assert ledger.total(site="a").energy_j == pytest.approx(11.16e6)
    assert ledger.total(phase="training").duration_s == 4 * HOUR
    assert ledger.total(site="b", phase="training").clean_j == pytest.approx(1.8e6)
    assert ledger.total().emissions_g == pytest.approx(350.0 + 10.0 + 49.95)
    assert ledger.total(site="nobody") == Tally()


def test_exactly_the_threshold_is_not_below_it():
    ledger = Ledger.from_segments([Segment("a", "idle", 0, 1, 1.0, 100.0)], 100.0)
    assert ledger.total().clean_j == 0.0


def test_a_segment_of_no_length_changes_nothing():
    ledger = Ledger.from_segments([Segment("a", "idle", 5.0, 5.0, 9.0, 1.0)], 100.0)
    assert ledger.tallies == {}


def test_a_segment_that_runs_backwards_is_an_error_and_counts_nothing():
    ledger = Ledger(100.0)
    with pytest.raises(ValueError, match=r"ends 2\.0 s before it starts"):
        ledger.add(Segment("a", "idle", 5.0, 3.0, 9.0, 1.0))
    assert ledger.tallies == {}


segments = st.builds(
    lambda site, phase, start, length, power_w, intensity: Segment(
        site, phase, start, start + length, power_w, intensity
    ),
    site=st.sampled_from("ab"),
    phase=st.sampled_from(["training", "idle"]),
    start=st.integers(0, 10**6).map(float),
    length=st.integers(0, 10**5).map(float),
    power_w=st.floats(0, 1e5),
    intensity=st.none() | st.floats(0, 2000),
)


@settings(deadline=None)
@given(st.lists(segments, max_size=20), st.integers(0, 20))
def test_a_resumed_ledger_goes_on_to_the_very_same_sums(rows, cut):
    whole = Ledger.from_segments(rows, 100.0)
    first = Ledger.from_segments(rows[:cut], 100.0)
    resumed = Ledger.from_json(json.loads(json.dumps(first.to_json(), allow_nan=False)), 100.0)
    for row in rows[cut:]:
        resumed.add(row)
    assert resumed.tallies == whole.tallies
    assert resumed.to_json() == whole.to_json()


@settings(deadline=None)
@given(st.lists(segments, max_size=20))
def test_joules_are_the_integral_of_power_and_the_parts_make_the_whole(rows):
    ledger = Ledger.from_segments(rows, 100.0)
    energy_j = math.fsum(row.power_w * (row.end - row.start) for row in rows)
    assert ledger.total().energy_j == pytest.approx(energy_j)
    parts = [ledger.total(site=site).energy_j for site in "ab"]
    assert math.fsum(parts) == pytest.approx(energy_j)
    for tally in ledger.tallies.values():
        assert tally.clean_j + tally.unpriced_j <= tally.energy_j * (1 + 1e-9)


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_cutting_a_segment_anywhere_changes_no_sum(seed):
    rng = random.Random(seed)
    cuts = sorted([0.0, 1000.0, *(rng.uniform(0, 1000.0) for _ in range(5))])
    pieces = [Segment("a", "idle", left, right, 123.4, 77.0) for left, right in pairwise(cuts)]
    whole = Ledger.from_segments([Segment("a", "idle", 0.0, 1000.0, 123.4, 77.0)], 100.0).total()
    cut = Ledger.from_segments(pieces, 100.0).total()
    assert cut.energy_j == pytest.approx(whole.energy_j)
    assert cut.emissions_g == pytest.approx(whole.emissions_g)


def test_the_json_is_nested_by_site_and_phase_and_sorted():
    ledger = Ledger(100.0)
    for site, phase in (("b", "idle"), ("a", "training"), ("a", "idle")):
        ledger.add(Segment(site, phase, 0.0, 1.0, 1.0, 1.0))
    body = ledger.to_json()
    assert {site: list(phases) for site, phases in body.items()} == {
        "a": ["idle", "training"],
        "b": ["idle"],
    }


def test_a_constant_load_is_priced_at_each_value_for_as_long_as_it_held():
    held = trace([0, 100, 200], [360.0, 0.0, 720.0], end=300.0)
    # 1 kW for 50 s at 360, 100 s at 0, 60 s at 720 g/kWh
    expected_g = (50 * 360.0 + 60 * 720.0) / HOUR
    assert emissions_g(held, 50.0, 260.0, 1000.0) == pytest.approx(expected_g)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param(-1.0, 50.0, id="before-the-first-reading"),
        pytest.param(250.0, 300.1, id="past-the-end"),
        pytest.param(50.0, 160.0, id="into-an-unknown-stretch"),
        pytest.param(120.0, 130.0, id="inside-an-unknown-stretch"),
    ],
)
def test_where_the_readings_do_not_reach_there_is_no_number(start, end):
    assert emissions_g(trace([0, 100, 200], [1, NAN, 1], end=300.0), start, end, 1.0) is None


def test_the_very_end_of_the_readings_is_still_known():
    assert emissions_g(trace([0, 200], [36, 36], end=300.0), 100.0, 300.0, 1000.0) == 2.0


def test_each_baseline_is_its_own_site_always_on_from_the_start():
    traces = {
        "clean": trace([0, HOUR], [10.0, 30.0], end=4 * HOUR),
        "dirty": trace([0], [500.0], end=4 * HOUR),
        "short": trace([0], [1.0], end=HOUR),
        "late": trace([10.0], [1.0], end=4 * HOUR),
    }
    power_w = {"clean": 2000.0, "dirty": 1000.0, "short": 1.0, "late": 1.0}
    assert baselines_kg(traces, 0.0, 2 * HOUR, power_w) == {
        "clean": pytest.approx(2.0 * (10.0 + 30.0) / 1000.0),
        "dirty": pytest.approx(1.0),
        "short": None,
        "late": None,
    }
