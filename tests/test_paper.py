"""The ledger fed with the run of arXiv:2602.22760: its published figures, from its own events."""

import csv
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest

from tests.paperdata import FOLDER, needs_paper
from uncurtail.adapters.traces import load_csv
from uncurtail.core.footprint import Basis, FootprintSection, account, draws, embodied, total
from uncurtail.core.ledger import J_PER_KWH, Ledger, Segment, baselines_kg
from uncurtail.core.signals import Trace

pytestmark = needs_paper

REGIONS = {"client_0": "CAISO_NORTH", "client_1": "SPP_TX", "client_2": "NEM_SA"}
WATTS = {"idle": 468.0, "training": 2024.0}
HALF_PERCENT = 0.005


def rows(name):
    with (FOLDER / name).open(newline="") as file:
        return list(csv.DictReader(file))


def traces():
    found = load_csv(FOLDER / "mci.csv", [*REGIONS.values(), "DE"])
    return found, float(found["DE"].times[0])


def interpolated(trace, step_s):
    """As the authors did it: the series on a line between its rows, before it enters."""
    times = np.arange(trace.times[0], trace.times[-1] + step_s, step_s)
    return Trace(times, np.interp(times, trace.times, trace.values), trace.end)


def provisioned():
    """(start, end) in elapsed seconds, by site; the last round's end is the run's."""
    events = rows("events.csv")
    end = float([e for e in events if e["event_type"] == "ROUND_END"][-1]["elapsed_s"])
    open_since, spans = {}, defaultdict(list)
    for event in events:
        t, site = float(event["elapsed_s"]), event["client"]
        if event["event_type"] == "PROVISION_COMPLETE":
            open_since[site] = t
        elif event["event_type"] == "DEPROVISION":
            spans[site].append((open_since.pop(site), t))
    for site, since in open_since.items():
        spans[site].append((since, end))
    return spans


def segments(signals, start, every_s=60.0):
    """Each site's power, sampled every minute as the authors did, and cut at readings.

    Starts are not counted, as in the paper.
    """
    trained = defaultdict(list)
    for row in rows("train_intervals.csv"):
        trained[row["run"]].append((float(row["train_start_s"]), float(row["train_end_s"])))
    spans = provisioned()
    for site, region in REGIONS.items():
        trace = signals[region]
        for t in np.arange(0.0, max(end for _, end in spans[site]), every_s):
            if not any(a <= t < b for a, b in spans[site]):
                continue
            works = any(a <= t <= b for a, b in trained[site])
            phase = "training" if works else "idle"
            begin, end = start + t, start + t + every_s
            inner = [c for c in trace.changes(begin, end).tolist() if c < end]
            for left, right in pairwise([begin, *inner, end]):
                yield Segment(site, phase, left, right, WATTS[phase], trace.at(left))


def replay(signals, start):
    return Ledger.from_segments(segments(signals, start), 100.0).total()


def test_stepwise_intensity_and_energy():
    tally = replay(*traces())
    assert tally.emissions_g / 1000 == pytest.approx(1.344, rel=HALF_PERCENT)
    assert tally.energy_j / J_PER_KWH == pytest.approx(37.7, rel=HALF_PERCENT)
    assert tally.unpriced_j == 0.0


def test_interpolated_intensity_as_the_authors_had_it():
    found, start = traces()
    fine = {region: interpolated(trace, 60.0) for region, trace in found.items()}
    tally = replay(fine, start)
    assert tally.emissions_g / 1000 == pytest.approx(1.379, rel=HALF_PERCENT)
    assert tally.clean_j / tally.energy_j == pytest.approx(0.970, rel=HALF_PERCENT)


def test_the_four_baselines():
    found, start = traces()
    (run,) = [row for row in rows("train_intervals.csv") if row["run"] == "baseline_1_client"]
    begin, end = float(run["train_start_s"]), float(run["train_end_s"])
    kg = baselines_kg(found, start, end - begin, dict.fromkeys(found, WATTS["training"]))
    published = {"CAISO_NORTH": 11.41, "SPP_TX": 14.55, "NEM_SA": 12.33, "DE": 27.07}
    assert kg == {region: pytest.approx(x, rel=HALF_PERCENT) for region, x in published.items()}


def test_the_whole_account_says_the_same_and_adds_what_the_paper_left_out():
    """84 GPU-hours up are 0.35-0.61 kg; three sites of 4 reserved for 14.6 h are 0.72-1.27 kg."""
    found, start = traces()
    by_site = {site: found[region] for site, region in REGIONS.items()}
    accounts = account(draws(segments(found, start)), {Basis.MARGINAL: by_site}, {})
    everything = total(accounts)
    assert everything.amounts[Basis.MARGINAL] / 1000 == pytest.approx(1.344, rel=HALF_PERCENT)
    used_s = {site: total(accounts, site=site).duration_s for site in REGIONS}
    for kg_per_gpu, used_kg, reserved_kg in ((181.0, 0.35, 0.72), (318.0, 0.61, 1.27)):
        section = FootprintSection(embodied_kg_per_gpu=kg_per_gpu)
        made = embodied(section, used_s, 14.6 * 3600)
        assert made.used_gpu_h == pytest.approx(84, rel=0.01)
        assert made.used_kg == pytest.approx(used_kg, abs=0.005)
        assert made.reserved_kg == pytest.approx(reserved_kg, abs=0.005)
