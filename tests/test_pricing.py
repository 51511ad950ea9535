"""What power costs: by a file or a query where one says, else as declared; never a guess."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.signalserver import TOKEN, serving
from tests.virtual import START, Virtual, experiment
from uncurtail import config as configuration
from uncurtail import sourcing, wiring
from uncurtail.adapters import clock
from uncurtail.adapters.prices import PriceTraces
from uncurtail.config import ConfigError
from uncurtail.core import pricing
from uncurtail.core.events import RunEnded, SitePhase, StopRequested, Trouble, iso, unix
from uncurtail.core.ledger import J_PER_KWH, Ledger
from uncurtail.core.pricing import Price, filled, price_at, unknown
from uncurtail.core.signals import Reading, Signal, Trace
from uncurtail.plan.compare import compare
from uncurtail.report.summary import summarise
from uncurtail.verify import verify

T0 = unix(START)
HOUR = 3600.0
EUR = pricing.signal("csv")


def paid(value, published=None) -> Reading:
    return Reading("oslo", T0, value, published, EUR)


@pytest.mark.parametrize(
    ("reading", "age_s", "price"),
    [
        pytest.param(paid(0.2), 0.0, Price(0.2, declared=False), id="fresh"),
        pytest.param(paid(-0.05), 0.0, Price(-0.05, declared=False), id="negative"),
        pytest.param(paid(0.0), 0.0, Price(0.0, declared=False), id="nothing"),
        pytest.param(paid(0.2), 7201.0, Price(0.5, declared=True), id="stale"),
        pytest.param(paid(0.2, T0 - 7300.0), 0.0, Price(0.5, declared=True), id="late"),
        pytest.param(paid(None), 0.0, Price(0.5, declared=True), id="unknown"),
        pytest.param(paid(math.nan), 0.0, Price(0.5, declared=True), id="nan"),
        pytest.param(paid(85.0), 0.0, Price(0.5, declared=True), id="a-price-per-MWh"),
        pytest.param(Reading("oslo", T0, 20.0), 0.0, Price(0.5, declared=True), id="no-price"),
        pytest.param(None, 0.0, Price(0.5, declared=True), id="none-yet"),
    ],
)
def test_a_price_is_what_was_read_or_else_what_was_declared(reading, age_s, price):
    assert price_at(reading, T0 + age_s, 7200.0, 0.5) == price


def test_without_either_there_is_no_price():
    assert price_at(None, T0, 7200.0, None) == Price(None, declared=True)


def test_what_is_not_known_is_said_with_what_counts_instead():
    prices = {"a": Price(0.5, declared=True), "b": Price(0.1, declared=False)}
    assert unknown(prices) == "no price: a at its declared 0.5 EUR/kWh"
    prices["c"] = Price(None, declared=True)
    assert "c without a price: their cost is not known" in str(unknown(prices))
    assert unknown({"b": Price(0.1, declared=False)}) is None


def test_a_trace_is_filled_with_what_was_declared_wherever_it_does_not_know():
    trace = Trace(
        np.array([T0 + HOUR * h for h in range(4)]),
        np.array([0.1, math.nan, 0.3, 0.4]),
        T0 + 4 * HOUR,
    )
    whole = filled(trace, 0.9, T0 - HOUR, math.inf)
    hours = [whole.at(T0 + HOUR * h) for h in (-1, 0, 1, 2, 3, 4, 1000)]
    assert hours == [0.9, 0.1, 0.9, 0.3, 0.4, 0.9, 0.9]
    assert filled(trace, 0.9, T0 + 0.5 * HOUR, math.inf).at(T0 + 0.6 * HOUR) == 0.1


def write(path, columns, hours=48, step_s=HOUR, start=T0):
    lines = [",".join(["time", *columns])]
    for n in range(hours):
        t = start + n * step_s
        lines.append(",".join([iso(t), *(f"{price(t):g}" for price in columns.values())]))
    path.write_text("\n".join(lines) + "\n")
    return path


SITES = {
    "duck": {"preset": "duck", "utc_offset_h": -8, "price_eur_per_kwh": 0.5, "region": "CAL"},
    "windy": {"preset": "windy", "utc_offset_h": -6, "price_eur_per_kwh": 0.5},
}


def settings(path, sites=SITES, **sections):
    sections.setdefault("run", {"duration_s": 24 * HOUR})
    policy = sections.pop("policy", {"kind": "always"})
    body = json.loads(configuration.dump(experiment(**sections)))
    body["energy"]["price"] = {"source": "csv", "path": str(path)}
    return configuration.parse({**body, "sites": sites, "policy": policy}, "test")


def played(tmp_path, chosen) -> Virtual:
    virtual = Virtual(tmp_path, chosen, steps_per_epoch=10**6)
    virtual.until(T0 + 25 * HOUR)
    virtual.close()
    assert virtual.loop.finished
    return virtual


def broken(virtual):
    checks = verify(virtual.folder, recompute_tokens=False)
    assert [c for c in checks if c.passed is False] == []
    return {check.name: check.passed for check in checks}


def by_hour(t):
    return 0.1 + 0.02 * ((t - T0) // HOUR % 24)


def cost_by_events(virtual, site, price):
    """EUR by the phase events alone, to the second."""
    events = [e for e in virtual.folder.read_events() if isinstance(e, SitePhase)]
    rows = [e for e in events if e.site == site]
    total = 0.0
    for left, right in pairwise(rows):
        for second in range(int(left.t), int(right.t)):
            total += left.power_w / J_PER_KWH * price(second)
    return total


def test_the_ledger_counts_each_hour_at_its_own_price(tmp_path):
    path = write(tmp_path / "prices.csv", {"CAL": by_hour, "windy": lambda _t: -0.05})
    virtual = played(tmp_path, settings(path))
    ledger = virtual.loop.meter.ledger
    duck = ledger.total(site="duck")
    assert duck.cost_eur == pytest.approx(cost_by_events(virtual, "duck", by_hour), rel=1e-3)
    assert duck.uncosted_j == 0.0
    windy = ledger.total(site="windy")
    assert windy.cost_eur == pytest.approx(-0.05 * windy.energy_j / J_PER_KWH)
    assert broken(virtual)["cost-adds-up"] is True
    resumed = Ledger.from_json(ledger.to_json(), 100.0)
    assert resumed.total().cost_eur == pytest.approx(ledger.total().cost_eur)


def test_a_price_that_ends_is_counted_as_declared_and_said(tmp_path):
    columns = {"duck": lambda _t: 0.1, "windy": lambda _t: 0.1}
    virtual = played(tmp_path, settings(write(tmp_path / "p.csv", columns, hours=6)))
    total = virtual.loop.meter.ledger.total(site="duck")
    assert 0.1 < total.cost_eur / (total.energy_j / J_PER_KWH) < 0.5
    said = [e for e in virtual.folder.read_events() if isinstance(e, Trouble)]
    prices = [e for e in said if e.source == "price"]
    assert prices
    assert prices[0].t == pytest.approx(T0 + 6 * HOUR, abs=2.0)
    assert "duck at its declared 0.5 EUR/kWh" in prices[0].message
    account = summarise(virtual.folder)["footprint"]
    whole = virtual.loop.meter.ledger.total()
    assert account["total"]["cost"] == pytest.approx(whole.cost_eur, rel=1e-6)
    assert any("counted at declared prices" in note for note in account["notes"])
    assert broken(virtual)["cost-adds-up"] is True


def test_a_budget_of_money_ends_by_what_was_really_paid(tmp_path):
    columns = {"duck": by_hour, "windy": by_hour}
    budget = {"kind": "budget", "max_eur": 2.0}
    virtual = played(tmp_path, settings(write(tmp_path / "p.csv", columns), policy=budget))
    (stop,) = [e for e in virtual.folder.read_events() if isinstance(e, StopRequested)]
    assert stop.reason == "cost"
    assert 2.0 <= virtual.loop.meter.ledger.total().cost_eur < 2.1


def test_a_coordinator_that_is_killed_goes_on_with_the_price_of_the_hour(tmp_path):
    columns = {"duck": by_hour, "windy": by_hour}
    virtual = Virtual(tmp_path, settings(write(tmp_path / "p.csv", columns)), 10**6)
    kills = [(T0 + h * HOUR, Virtual.restart) for h in (2.3, 7.0 + 1e-4, 7.9, 15.0)]
    virtual.until(T0 + 25 * HOUR, kills)
    virtual.close()
    duck = virtual.loop.meter.ledger.total(site="duck")
    assert duck.uncosted_j == 0.0
    assert duck.cost_eur == pytest.approx(cost_by_events(virtual, "duck", by_hour), rel=1e-3)
    assert broken(virtual)["cost-adds-up"] is True


CHEAP_AT_NIGHT = {
    "duck": lambda t: 0.05 if 6 <= (t - T0) / HOUR < 12 else 0.6,
    "windy": lambda _t: 0.55,
}


def test_the_cheapest_plan_and_the_live_loop_wait_for_the_cheap_hours(tmp_path):
    path = write(tmp_path / "p.csv", CHEAP_AT_NIGHT)
    tokens = int(4 * HOUR * 0.05) * 2048
    chosen = settings(
        path,
        policy={"kind": "deadline", "deadline_s": 14 * HOUR, "objective": "cost", "site_hours": 4},
        train={"budget_tokens": tokens},
        plan={"train_site_h": 4.0},
    )
    virtual = played(tmp_path, chosen)
    (end,) = [e for e in virtual.folder.read_events() if isinstance(e, RunEnded)]
    assert end.reason == "budget"
    live = virtual.loop.meter.ledger.total()
    assert live.cost_eur / (live.energy_j / J_PER_KWH) < 0.15
    assert virtual.loop.meter.ledger.total(site="windy").energy_j == 0.0

    traces = wiring.traces(chosen, T0)
    found = compare(chosen, traces, T0, ["deadline"], sourcing.price_traces(chosen))
    (row,) = found.rows
    assert row.outcome.energy.cost_eur == pytest.approx(live.cost_eur, rel=0.1)
    assert found.notes == [f"electricity: deadline {row.outcome.energy.cost_eur:.2f} EUR"]
    declared = compare(chosen, traces, T0, ["deadline"]).rows[0].outcome.energy
    assert declared.cost_eur == pytest.approx(0.5 * declared.energy_j / J_PER_KWH)


PROMETHEUS = {"source": "prometheus", "prometheus_query": "day_ahead{region='{region}'}"}
LIVE = {"clock": {"start": "now", "speed": 1.0}}


@pytest.mark.parametrize(
    ("price", "sections", "message"),
    [
        ({"source": "csv"}, {}, "source 'csv' needs path: --set energy.price.path=FILE"),
        ({"source": "prometheus"}, LIVE, "source 'prometheus' needs prometheus_query"),
        (PROMETHEUS, LIVE, "price.source 'prometheus' needs prometheus_url: http://HOST:9090"),
        ({**PROMETHEUS, "url": "http://h:9090"}, {}, "unknown key"),
        ({"source": "watttime"}, {}, "Input should be 'csv' or 'prometheus'"),
    ],
)
def test_a_price_that_cannot_be_asked_for_is_refused_with_the_remedy(price, sections, message):
    with pytest.raises(ConfigError) as refusal:
        experiment(energy={"price": price}, **sections)
    assert message in str(refusal.value)


def test_a_live_price_is_of_now_alone():
    energy = {"price": PROMETHEUS, "prometheus_url": "http://h:9090"}
    with pytest.raises(ConfigError, match="tells only what is now: set clock"):
        experiment(energy=energy)


def test_a_policy_that_counts_money_needs_a_declared_price_for_when_nobody_knows(tmp_path):
    sites = {"duck": {"preset": "duck"}}
    with pytest.raises(ConfigError, match="also while energy"):
        settings(tmp_path / "p.csv", sites, policy={"kind": "budget", "max_eur": 1.0})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"duck": by_hour}, "energy.price: .* has no region 'windy'"),
        ({"duck": by_hour, "windy": lambda _t: 85.0}, "outside -20..20 EUR/kWh: check the unit"),
    ],
)
def test_a_file_of_prices_that_cannot_be_used_is_said_before_the_start(tmp_path, columns, message):
    chosen = settings(write(tmp_path / "p.csv", columns))
    with pytest.raises(ConfigError, match=message):
        wiring.check_energy(chosen, T0)


def test_prices_of_a_file_are_told_once_each_and_from_the_start_on():
    trace = Trace(
        np.array([T0 + HOUR * h for h in range(3)]), np.array([0.1, 0.2, 0.3]), T0 + 3 * HOUR, EUR
    )
    prices = PriceTraces({"oslo": trace}, T0 + 600.0)
    first = prices.readings(T0 + 599.0, T0 + 600.0)
    assert [(r.t, r.value, r.signal.unit) for r in first] == [(T0 + 600.0, 0.1, "EUR/kWh")]
    later = prices.readings(T0 + 600.0, T0 + 4 * HOUR)
    assert [(r.t - T0, r.value) for r in later] == [(HOUR, 0.2), (2 * HOUR, 0.3), (3 * HOUR, None)]
    assert prices.readings(T0, T0 + 60.0) == []
    assert prices.next_change(T0 + 600.0) == T0 + HOUR


def test_a_live_price_comes_from_prometheus_and_is_expected_to_last(monkeypatch):
    monkeypatch.setenv("UNCURTAIL_PROMETHEUS_TOKEN", TOKEN)
    with serving(value=lambda _t: 0.25) as server:
        energy = {"price": PROMETHEUS, "prometheus_url": server.url}
        chosen = experiment(energy=energy, **LIVE)
        start = clock.wall()
        live = sourcing.prices(chosen, start)
        assert live is not None
        told: list[Reading] = []
        while len(told) < 3:
            clock.pause(0.02)
            told += live.readings(start - 1.0, clock.wall())
        live.close()  # type: ignore[attr-defined]
    assert {reading.value for reading in told} == {0.25}
    assert {reading.signal for reading in told} == {pricing.signal("prometheus")}
    expected = live.expected("duck", start)
    assert expected is not None
    assert expected.at(start + 1e6) == 0.25
    assert live.expected("duck", clock.wall() + 7201.0) is None, "as it is counted: declared"
    assert Signal.plausible(EUR, 0.25)
    assert replace(told[0], value=99.0).signal.plausible(99.0) is False
