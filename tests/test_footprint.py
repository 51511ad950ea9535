"""The whole account: every signal, measured power, the building, the network, the machines."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uncurtail.core.counterfactual import RunNow, run_now, together_kg
from uncurtail.core.footprint import (
    Basis,
    Draw,
    FootprintSection,
    account,
    carbon_intensity,
    draws,
    embodied,
    network,
    to_json,
    total,
)
from uncurtail.core.ledger import J_PER_KWH, Ledger, Segment, emissions_g, integrate
from uncurtail.core.signals import Trace

HOUR = 3600.0
NAN = math.nan


def trace(times, values, end):
    return Trace(np.array(times, dtype=float), np.array(values, dtype=float), end)


def test_both_intensities_and_the_price_by_hand():
    """1 kW for two hours: the margin is clean in the first, the mix is not, power costs less."""
    drawn = draws([Segment("a", "training", 0.0, 2 * HOUR, 1000.0, None)])
    signals = {
        Basis.MARGINAL: {"a": trace([0, HOUR], [10, 500], 2 * HOUR)},
        Basis.AVERAGE: {"a": trace([0], [300], 2 * HOUR)},
        Basis.PRICE: {"a": trace([0, HOUR], [-0.02, 0.12], 2 * HOUR)},
    }
    body = to_json(account(drawn, signals, {})["a", "training"])
    assert body == {
        "hours": 2.0,
        "energy_kwh": 2.0,
        "measured_share": 0.0,
        "marginal_kg": pytest.approx(0.51),
        "marginal_known_share": 1.0,
        "average_kg": pytest.approx(0.6),
        "average_known_share": 1.0,
        "cost": pytest.approx(0.10),
        "price_known_share": 1.0,
    }


def test_a_signal_nobody_has_is_unknown_and_one_with_a_hole_says_how_much_it_knows():
    drawn = draws([Segment("a", "idle", 0.0, 4 * HOUR, 500.0, None)])
    signals = {Basis.MARGINAL: {"a": trace([0, HOUR, 2 * HOUR], [100, NAN, 100], 4 * HOUR)}}
    body = to_json(account(drawn, signals, {})["a", "idle"])
    assert body["marginal_kg"] == pytest.approx(0.15)
    assert body["marginal_known_share"] == pytest.approx(0.75)
    assert (body["average_kg"], body["average_known_share"]) == (None, 0.0)
    assert (body["cost"], body["price_known_share"]) == (None, 0.0)


def test_a_site_without_a_trace_is_unknown_and_not_free():
    drawn = draws([Segment(site, "idle", 0.0, HOUR, 500.0, None) for site in "ab"])
    accounts = account(drawn, {Basis.MARGINAL: {"a": trace([0], [100], HOUR)}}, {})
    assert to_json(accounts["b", "idle"])["marginal_kg"] is None
    assert to_json(total(accounts))["marginal_known_share"] == pytest.approx(0.5)


def test_the_building_multiplies_energy_and_all_that_follows_from_it():
    segments = [Segment(site, "idle", 0.0, HOUR, 1000.0, 100.0) for site in "ab"]
    signals = {Basis.MARGINAL: {site: trace([0], [100], HOUR) for site in "ab"}}
    accounts = account(draws(segments), signals, {"a": 1.5})
    assert accounts["a", "idle"].energy_j == pytest.approx(1.5 * J_PER_KWH)
    assert accounts["a", "idle"].amounts[Basis.MARGINAL] == pytest.approx(150.0)
    assert accounts["b", "idle"].amounts[Basis.MARGINAL] == pytest.approx(100.0)


def test_measured_power_counts_where_there_is_any_and_each_stretch_says_which():
    segment = Segment("a", "training", 0.0, 100.0, 2000.0, 50.0)
    watts = {"a": trace([20, 40, 60], [1500, NAN, 1700], 80.0)}
    assert draws([segment], watts) == [
        Draw("a", "training", 0.0, 20.0, 2000.0, measured=False),
        Draw("a", "training", 20.0, 40.0, 1500.0, measured=True),
        Draw("a", "training", 40.0, 60.0, 2000.0, measured=False),
        Draw("a", "training", 60.0, 80.0, 1700.0, measured=True),
        Draw("a", "training", 80.0, 100.0, 2000.0, measured=False),
    ]
    body = to_json(account(draws([segment], watts), {}, {})["a", "training"])
    measured_j, all_j = 20 * 1500 + 20 * 1700, 20 * 1500 + 20 * 1700 + 60 * 2000
    assert body["energy_kwh"] == pytest.approx(all_j / J_PER_KWH)
    assert body["measured_share"] == pytest.approx(measured_j / all_j)


values = st.one_of(st.just(NAN), st.integers(0, 900).map(float))


@st.composite
def held(draw):
    times = sorted(draw(st.sets(st.integers(0, 5000), min_size=1, max_size=8)))
    row = draw(st.lists(values, min_size=len(times), max_size=len(times)))
    return trace(times, row, draw(st.sampled_from([2500.0, 6000.0, math.inf])))


@settings(deadline=None)
@given(held(), st.lists(st.integers(0, 6000), min_size=2, max_size=6, unique=True))
def test_integrals_are_those_of_the_ledger_wherever_cut(signal, cuts):
    edges = [float(c) for c in sorted(cuts)]
    sums, known_s = integrate(signal, np.array(edges[:-1]), np.array(edges[1:]))
    for i, (start, end) in enumerate(pairwise(edges)):
        grams = emissions_g(signal, start, end, 1000.0)
        if grams is None:
            assert known_s[i] < end - start
        else:
            assert known_s[i] == pytest.approx(end - start)
            assert sums[i] / HOUR == pytest.approx(grams)


@settings(deadline=None)
@given(held(), held())
def test_with_no_building_and_no_meter_it_is_the_ledger(first, second):
    segments = []
    for site, signal in (("a", first), ("b", second)):
        edges = [0.0, *(t for t in signal.changes(0.0, 6000.0).tolist() if t < 6000.0), 6000.0]
        segments += [
            Segment(site, "idle", start, end, 700.0, signal.at(start))
            for start, end in pairwise(edges)
        ]
    ledger = Ledger.from_segments(segments, 100.0).total()
    signals = {Basis.MARGINAL: {"a": first, "b": second}}
    everything = total(account(draws(segments), signals, {}))
    assert everything.energy_j == pytest.approx(ledger.energy_j)
    assert everything.amounts[Basis.MARGINAL] == pytest.approx(ledger.emissions_g, abs=1e-6)
    assert everything.unknown_j[Basis.MARGINAL] == pytest.approx(ledger.unpriced_j, abs=1e-3)


def test_the_making_of_gpus_is_told_by_hours_used_and_by_hours_reserved():
    section = FootprintSection(
        gpus=4, site_gpus={"b": 8}, embodied_kg_per_gpu=100.0, gpu_life_years=1.0
    )
    made = embodied(section, {"a": 2 * HOUR, "b": 0.0}, 10 * HOUR)
    assert (made.used_gpu_h, made.reserved_gpu_h) == (8.0, 120.0)
    assert made.used_kg == pytest.approx(8 * 100 / 8766)
    assert made.reserved_kg == pytest.approx(120 * 100 / 8766)


def test_the_network_is_bytes_times_declared_energy():
    section = FootprintSection(network_kwh_per_gb=0.06)
    assert network(section, 50e9, 200.0).kg == pytest.approx(50 * 0.06 * 0.2)
    assert network(section, 50e9, None).kg is None


def test_software_carbon_intensity_is_per_million_tokens():
    assert carbon_intensity(1.5, 0.5, 4_000_000) == pytest.approx(0.5)
    assert carbon_intensity(1.5, 0.5, 0) is None


def test_all_sites_at_once_share_the_hours_evenly():
    traces = {"a": trace([0], [100], 9 * HOUR), "b": trace([0, HOUR], [300, 500], 9 * HOUR)}
    watts = {"a": 1000.0, "b": 2000.0}
    kg = together_kg(traces, 0.0, 4 * HOUR, watts)
    assert kg == pytest.approx((2 * 100 + 2.0 * 300 + 2.0 * 500) / 1000)
    assert together_kg(traces, 0.0, 40 * HOUR, watts) is None
    assert together_kg({}, 0.0, HOUR, watts) is None


def test_not_waiting_takes_the_cleanest_site_of_the_first_moment_and_stays():
    traces = {
        "clean-at-first": trace([0, HOUR], [10, 900], 9 * HOUR),
        "clean-later": trace([0, HOUR], [20, 0], 9 * HOUR),
        "unknown": trace([HOUR], [0], 9 * HOUR),
    }
    watts = dict.fromkeys(traces, 1000.0)
    now = run_now(traces, 0.0, 2 * HOUR, watts)
    assert now is not None
    assert now.site == "clean-at-first"
    assert now.kg == pytest.approx(0.91)
    assert run_now(traces, -HOUR, 2 * HOUR, watts) is None
    late = run_now(traces, 0.0, 20 * HOUR, watts)
    assert late == RunNow("clean-at-first", None)
