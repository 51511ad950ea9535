"""Two accounts of one run: ours, and Vessim's own metric over its own grid and signal.

Vessim samples at ticks, so both are given the run's power with its changes moved to whole ticks.
"""

from dataclasses import replace
from itertools import pairwise

import pandas as pd  # type: ignore[import-untyped]
import pytest
import vessim
from vessim.metrics import GridImportEmissions

from tests.virtual import START, Virtual, experiment
from uncurtail.core.events import unix
from uncurtail.core.ledger import Ledger
from uncurtail.report.rundata import RunData
from uncurtail.report.summary import summarise

STEP_S = 10


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    virtual = Virtual(
        tmp_path_factory.mktemp("vessim"), experiment(run={"duration_s": 18 * 3600.0})
    )
    virtual.finish()
    virtual.close()
    return virtual.folder


def offset_trace(times, values, end, scale=1.0):
    """A Vessim trace from the run's start on, in force until `end` (exclusive)."""
    start = unix(START)
    index = pd.TimedeltaIndex([pd.Timedelta(seconds=t - start) for t in [*times, end]])
    data = [value * scale for value in values]
    return vessim.Trace(pd.Series([*data, data[-1]], index=index))


def on_ticks(run):
    """The run's segments, by site, with every edge on a whole tick."""
    start = unix(START)

    def tick(t):
        return start + round((t - start) / STEP_S) * STEP_S

    moved = [replace(s, start=tick(s.start), end=tick(s.end)) for s in run.segments]
    return [segment for segment in moved if segment.end > segment.start]


def our_account(run):
    """(kgCO2, kWh) by site, by the ledger: segments cut at the readings."""
    ledger = Ledger(100.0)
    for segment in on_ticks(run):
        trace = run.traces[segment.site]
        inner = [t for t in trace.changes(segment.start, segment.end) if t < segment.end]
        for left, right in pairwise([segment.start, *inner, segment.end]):
            cut = replace(segment, start=left, end=right, intensity_g_per_kwh=trace.at(left))
            ledger.add(cut)
    tallies = {site: ledger.total(site=site) for site in run.sites}
    return {site: (t.emissions_g / 1000.0, t.energy_j / 3.6e6) for site, t in tallies.items()}


def vessim_account(run):
    """(kgCO2, kWh) by site, as Vessim counts what its grid delivered."""
    environment = vessim.Environment(START, step_size=STEP_S)
    segments = on_ticks(run)
    end = segments[-1].end
    metrics = {}
    for site, trace in run.traces.items():
        rows = [segment for segment in segments if segment.site == site]
        demand = offset_trace([s.start for s in rows], [s.power_w for s in rows], end + STEP_S)
        inside = trace.times < end
        signal = offset_trace(trace.times[inside], trace.values[inside], end + STEP_S, 1e-3)
        environment.add_microgrid(
            actors=[vessim.Consumer("gpu", demand)],
            dispatchables=[vessim.GridConnection()],
            grid_signals={"kg_per_kwh": signal},
            name=site,
        )
        metrics[site] = GridImportEmissions(site, "kg_per_kwh")
    recorder = vessim.Recorder(timeseries=False, custom_metrics=metrics)
    environment.add_controller(recorder)
    environment.run(until=end - unix(START))
    found = recorder.metrics
    return {
        site: (metrics[site].value, found["microgrids"][site]["grid_import"] / 1000.0)
        for site in metrics
    }


def test_our_ledger_and_vessims_own_metric_agree_to_a_tenth_of_a_percent(run):
    data = RunData(run)
    ours, theirs = our_account(data), vessim_account(data)
    assert min(kg for kg, _ in ours.values()) > 0
    for site, (kg, kwh) in theirs.items():
        assert kg == pytest.approx(ours[site][0], rel=1e-3)
        assert kwh == pytest.approx(ours[site][1], rel=1e-3)
    # Moving edges to ticks is no other run: the run's own ledger is near.
    assert sum(kg for kg, _ in ours.values()) == pytest.approx(data.emissions_kg(), rel=0.03)


def test_a_finished_run_says_how_far_it_was_from_the_best_possible(run):
    """18 hours of the demo's three grids: the oracle needs no more than the run's own readings."""
    summary = summarise(run)
    (numbers,) = summary["policies"].values()
    least_kg = summary["oracle"]["emissions_kg"]
    assert 0 < least_kg < numbers["emissions_kg"]
    assert numbers["gap_to_oracle"] == pytest.approx(numbers["emissions_kg"] / least_kg - 1)
    assert summary["oracle"]["makespan_h"] <= numbers["makespan_h"] + 0.1
