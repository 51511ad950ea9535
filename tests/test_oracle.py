"""The oracle: the least that whole slots allow, never less, and never with unknown power."""

import itertools
import math
import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.paperdata import FOLDER, needs_paper
from uncurtail.adapters.traces import load_csv
from uncurtail.core.grids import synthetic
from uncurtail.core.ledger import emissions_g
from uncurtail.core.policy import Capped, Costs
from uncurtail.core.signals import Trace
from uncurtail.plan import oracle
from uncurtail.plan.oracle import Bound, Problem, floor_kg, solve
from uncurtail.plan.program import slot_means

NAN = math.nan
SLOT = 300.0
START = 1_768_150_800.0
COST = Costs(2024.0, 468.0, 468.0, SLOT)
KG_PER_W_SLOT = SLOT / 3.6e9  # times gCO2/kWh


def trace(values, slot_s=SLOT):
    times = START + slot_s * np.arange(len(values))
    return Trace(times, np.array(values, dtype=float), START + slot_s * len(values))


def problem(values, slots, *, cost=COST, deadline=None, **rest):
    """`values`: {site: one intensity a slot}; work and deadline in slots."""
    traces = {site: trace(row) for site, row in values.items()}
    length = max(len(row) for row in values.values()) if deadline is None else deadline
    sites = dict.fromkeys(values, cost)
    return Problem(sites, traces, START, length * SLOT, slots * SLOT, **rest)


# -- the published trace --

TABLE = [
    (0.0, None, {18: 0.373, 16: 0.388, 15: 0.509, 14.6: 0.634, 14: 0.825, 13: 1.668, 12: 3.469}),
    (1 - 504 / 648, 2, {18: 0.698, 16: 0.747, 15: 0.921, 14.6: 1.254}),
    (0.02, None, {18: 0.393, 16: 0.409, 14.6: 0.668, 14: 0.849, 13.67: 0.964, 13.25: 1.356}),
]


@needs_paper
@pytest.mark.slow
@pytest.mark.parametrize(
    ("overhead", "max_sites", "deadline_h", "kg"),
    [
        pytest.param(overhead, most, hours, kg, id=f"{overhead:.2f}-{hours}h")
        for overhead, most, row in TABLE
        for hours, kg in row.items()
    ],
)
def test_the_published_trace_has_the_known_limits(overhead, max_sites, deadline_h, kg):
    """Computed once before, by another program, to three digits and 0.2 % (see architecture.md)."""
    traces = load_csv(FOLDER / "mci.csv", ["CAISO_NORTH", "SPP_TX", "NEM_SA"])
    start = float(traces["NEM_SA"].times[0])
    sites = dict.fromkeys(traces, COST)
    bound = solve(
        Problem(
            sites, traces, start, deadline_h * 3600, 17.858 * 3600, overhead, max_sites=max_sites
        )
    )
    assert bound is not None
    assert bound.emissions_kg == pytest.approx(kg, rel=0.01)
    assert bound.gap <= 0.01
    assert bound.makespan_h <= deadline_h


# -- against every schedule there is --


def schedules(row, lead, capped=None):
    """Every valid (kg, states) of one site: o off, p provisioning, i idle, t training, c capped."""
    found = []
    for states in itertools.product("opit" if capped is None else "opitc", repeat=len(row)):
        text = "".join(states)
        runs = ["".join(group) for _, group in itertools.groupby(text, lambda s: s in "itc")]
        before = ""
        valid = True
        for run in runs:
            if set(run) <= set("itc"):
                valid &= len(before) >= lead and before[len(before) - lead :] == "p" * lead
                before = ""
            else:
                before = run
        provisions = sum(text.count(s) for s in "p")
        comes_up = sum(set(run) <= set("itc") for run in runs)
        unknown = any(s != "o" and math.isnan(v) for s, v in zip(text, row, strict=True))
        if not valid or provisions != lead * comes_up or unknown:
            continue
        watts = {"o": 0.0, "p": 468.0, "i": 468.0, "t": 2024.0, "c": capped[0] if capped else 0.0}
        used = zip(text, row, strict=True)
        kg = sum(watts[s] * v * KG_PER_W_SLOT for s, v in used if s != "o")
        found.append((kg, text))
    return found


def least(rows, lead, needed, overhead, max_sites, capped=None):
    """The least kg over every combination of schedules; infinite when none does the work."""
    best = math.inf
    levels = {"t": (2024.0, 1.0)} | ({} if capped is None else {"c": capped})
    for combination in itertools.product(*(schedules(row, lead, capped) for row in rows)):
        kg, work = sum(kg for kg, _ in combination), 0.0
        for slot in range(len(rows[0])):
            states = [text[slot] for _, text in combination]
            if max_sites is not None and sum(s != "o" for s in states) > max_sites:
                break
            trains = [(levels[s], row) for s, row in zip(states, rows, strict=True) if s in levels]
            share = overhead if len(trains) > 1 else 0.0
            for (watts, speed), row in trains:
                work += speed * (1.0 - share)
                kg -= share * (watts - 468.0) * row[slot] * KG_PER_W_SLOT
        else:
            if work >= needed - 1e-6:
                best = min(best, kg)
    return best


intensity = st.one_of(st.integers(0, 800).map(float), st.just(NAN))


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.lists(intensity, min_size=4, max_size=4), min_size=2, max_size=2),
    lead=st.integers(0, 2),
    needed=st.integers(1, 12).map(lambda n: n / 2.0),
    overhead=st.sampled_from([0.0, 0.02, 0.25]),
    max_sites=st.sampled_from([None, 1]),
)
def test_nothing_beats_it_and_it_exists(rows, lead, needed, overhead, max_sites):
    cost = Costs(2024.0, 468.0, 468.0, lead * SLOT)
    named = {"a": rows[0], "b": rows[1]}
    task = problem(named, needed, cost=cost, overhead_share=overhead, max_sites=max_sites)
    bound = solve(task)
    best = least(rows, lead, needed, overhead, max_sites)
    if bound is None:
        assert best == math.inf
    else:
        assert bound.emissions_kg == pytest.approx(best, rel=2e-3, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.lists(intensity, min_size=3, max_size=3), min_size=2, max_size=2),
    lead=st.integers(0, 1),
    needed=st.integers(1, 12).map(lambda n: n / 3.0),
    overhead=st.sampled_from([0.0, 0.25]),
    max_sites=st.sampled_from([None, 1]),
    capped=st.tuples(st.sampled_from([500.0, 1200.0, 2024.0]), st.sampled_from([0.4, 0.8])),
)
@example([[100.0] * 3] * 2, 0, 4.0, 0.25, None, (500.0, 0.4))  # both, together, most of the time
@example([[100.0, NAN, NAN]] * 2, 0, 1.2, 0.25, None, (1200.0, 0.8))  # one of the two capped
def test_nothing_beats_it_where_sites_can_be_capped_and_it_exists(
    rows, lead, needed, overhead, max_sites, capped
):
    cost = Costs(2024.0, 468.0, 468.0, lead * SLOT, Capped(*capped))
    named = {"a": rows[0], "b": rows[1]}
    task = problem(named, needed, cost=cost, overhead_share=overhead, max_sites=max_sites)
    bound = solve(task)
    best = least(rows, lead, needed, overhead, max_sites, capped)
    if bound is None:
        assert best == math.inf
        return
    assert bound.emissions_kg == pytest.approx(best, rel=2e-3, abs=1e-9)
    floor = floor_kg(task)
    assert floor is not None
    assert floor[0] <= bound.emissions_kg + 1e-9


def test_a_fleet_of_which_one_site_can_be_capped_has_that_choice_there_alone():
    """Four slots capped at half the speed do two slots' work, here at a quarter of the power."""
    values = {"a": [100.0] * 5, "b": [100.0] * 5}
    task = problem(values, 2.0)
    one = COST._replace(capped=Capped(506.0, 0.5))
    mixed = replace(task, sites={"a": one, "b": COST})
    bound = solve(mixed)
    assert bound is not None
    assert bound.plan == {"a": ((START + SLOT, START + 5 * SLOT),), "b": ()}
    start_kg = 468.0 * 100.0 * KG_PER_W_SLOT
    assert bound.emissions_kg == pytest.approx(start_kg + 4 * 506.0 * 100.0 * KG_PER_W_SLOT)


# -- against feasible schedules of a real length, priced by the ledger --


def grids(seed, slots=140):
    return {
        name: synthetic(
            name, seed=seed, start=START, duration_s=slots * SLOT, utc_offset_h=offset_h
        )
        for name, offset_h in (("duck", -8), ("windy", -6))
    }


def priced_kg(traces, site, spans):
    """(start, end, watts) by the ledger's own arithmetic."""
    grams = [emissions_g(traces[site], start, end, watts) for start, end, watts in spans]
    assert None not in grams
    return math.fsum(g for g in grams if g is not None) / 1000.0


def random_sessions(rng, slots):
    """A feasible schedule of one site: slot ranges in which it trains after a start of one slot."""
    sessions, at = [], 1
    while at < slots:
        at += rng.randrange(0, 30)
        end = min(slots, at + rng.randrange(1, 40))
        if at < end:
            sessions.append((at, end))
        at = end + 1
    return sessions


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6))
def test_no_feasible_schedule_emits_less_and_the_floor_is_below(seed):
    rng = random.Random(seed)
    slots = 140
    traces = grids(seed, slots)
    work, kg = 0, 0.0
    for site in traces:
        for first, last in random_sessions(rng, slots):
            begin, end = START + first * SLOT, START + last * SLOT
            kg += priced_kg(traces, site, [(begin - SLOT, begin, 468.0), (begin, end, 2024.0)])
            work += last - first
    task = Problem(dict.fromkeys(traces, COST), traces, START, slots * SLOT, work * SLOT)
    bound, floor = solve(task), floor_kg(task)
    assert bound is not None
    assert floor is not None
    assert bound.emissions_kg <= kg * (1 + 2e-3) + 1e-9
    assert floor[0] <= bound.emissions_kg * (1 + 1e-9) + 1e-9
    assert floor[1] <= bound.makespan_h + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_its_plan_costs_what_it_says_by_the_ledger(seed):
    traces = grids(seed)
    task = Problem(dict.fromkeys(traces, COST), traces, START, 140 * SLOT, 90.3 * SLOT)
    bound = solve(task)
    assert bound is not None
    trained_s, kg = 0.0, 0.0
    for site, spans in bound.plan.items():
        trained_s += sum(end - start for start, end in spans)
        kg += priced_kg(traces, site, [(start, end, 2024.0) for start, end in spans])
        for (_, left), (right, _) in pairwise([(START, START - SLOT), *spans]):
            idle_kg = priced_kg(traces, site, [(left, right, 468.0)]) if left >= START else math.inf
            again_kg = priced_kg(traces, site, [(right - SLOT, right, 468.0)])
            kg += min(idle_kg, again_kg) if right - left >= SLOT else idle_kg
    assert trained_s == 91 * SLOT
    assert bound.emissions_kg == pytest.approx(kg, rel=1e-6)
    last = max(spans[-1][1] for spans in bound.plan.values() if spans)
    assert bound.makespan_h == pytest.approx((last - START) / 3600)


@pytest.mark.parametrize(
    ("overhead", "max_sites"), [(0.0, None), (0.02, None), (0.22, 2), (0.0, 1)]
)
def test_a_large_problem_is_solved_by_its_relaxation_to_the_same_limit(
    monkeypatch, overhead, max_sites
):
    traces = grids(7)
    sites = dict.fromkeys(traces, COST)
    task = Problem(sites, traces, START, 140 * SLOT, 90.3 * SLOT, overhead, max_sites)
    direct = solve(task)
    monkeypatch.setattr(oracle, "DIRECT_CELLS", 0)
    relaxed = solve(task)
    assert direct is not None
    assert relaxed is not None
    assert relaxed.gap <= 0.01
    slack_kg = 0.012 * direct.emissions_kg + 1e-9
    assert abs(relaxed.emissions_kg - direct.emissions_kg) <= slack_kg


@pytest.mark.slow
@pytest.mark.parametrize("sites", [("duck",), ("duck", "solar", "windy")], ids=["one", "three"])
def test_a_month_is_proven_to_a_percent(sites):
    offset_h = {"duck": -8, "solar": 9.5, "windy": -6}
    month_s = 30 * 86400.0
    traces = {
        site: synthetic(site, seed=1, start=START, duration_s=month_s, utc_offset_h=offset_h[site])
        for site in sites
    }
    bound = solve(Problem(dict.fromkeys(traces, COST), traces, START, month_s, 131.2 * 3600.0))
    assert bound is not None
    assert bound.gap <= 0.01


# -- what it may not do --


@pytest.mark.parametrize(
    ("values", "slots", "deadline"),
    [
        pytest.param([10.0] * 8, 8, None, id="no-time-left-for-the-start"),
        pytest.param([10.0] * 8, 3, 3, id="deadline-too-near"),
        pytest.param([10.0] * 8, 1, 0, id="no-deadline-at-all"),
        pytest.param([10.0, NAN] * 8, 1, None, id="a-start-needs-known-power-too"),
        pytest.param([NAN] * 8, 1, None, id="nothing-known"),
        pytest.param([10.0] * 4, 6, 12, id="past-the-end-of-the-trace"),
    ],
)
def test_work_that_cannot_be_done_has_no_oracle(values, slots, deadline):
    assert solve(problem({"a": values}, slots, deadline=deadline)) is None


def test_unknown_power_is_never_used_however_cheap_the_neighbours():
    values = [0.0, 0.0, NAN, 0.0, 0.0, 500.0, 500.0, 500.0]
    bound = solve(problem({"a": values}, 3))
    assert bound is not None
    assert bound.plan["a"] == (
        (START + SLOT, START + 2 * SLOT),
        (START + 4 * SLOT, START + 6 * SLOT),
    )
    assert bound.emissions_kg == pytest.approx(500 * 2024 * KG_PER_W_SLOT)


def test_a_short_dirty_gap_is_idled_through_and_a_long_one_is_not():
    cost = Costs(2000.0, 100.0, 1000.0, SLOT)
    short = solve(problem({"a": [50.0] * 4 + [400.0] + [50.0] * 4}, 7, cost=cost))
    long = solve(problem({"a": [50.0] * 4 + [400.0] * 9 + [50.0] * 4}, 6, cost=cost))
    assert short is not None
    assert long is not None
    work = 2000.0 * 50.0
    assert short.emissions_kg / KG_PER_W_SLOT == pytest.approx(7 * work + 1000 * 50.0 + 100 * 400.0)
    assert long.emissions_kg / KG_PER_W_SLOT == pytest.approx(6 * work + 1000 * 50.0 + 1000 * 50.0)


def test_a_start_that_ends_within_a_slot_pays_its_part_of_it():
    cost = Costs(2000.0, 500.0, 600.0, 1.5 * SLOT)
    bound = solve(problem({"a": [100.0, 200.0, 0.0]}, 1, cost=cost))
    assert bound is not None
    assert bound.emissions_kg == pytest.approx((600 * 200 + 0.5 * 600 * 100) * KG_PER_W_SLOT)
    assert bound.plan["a"] == ((START + 2 * SLOT, START + 3 * SLOT),)


def test_work_is_rounded_up_to_whole_slots_and_no_further():
    values = {"a": [100.0] * 9}
    for slots, expected in ((3.0, 3), (3.0000000001, 3), (2.01, 3)):
        bound = solve(problem(values, slots))
        assert bound is not None
        assert sum(end - start for start, end in bound.plan["a"]) == expected * SLOT


def test_no_work_costs_nothing():
    assert solve(problem({"a": [NAN] * 3}, 0)) == Bound(0.0, 0.0, 0.0, {"a": ()})


def test_when_time_is_up_the_floor_is_told_with_no_plan():
    month_s = 30 * 86400.0
    traces = {"duck": synthetic("duck", seed=1, start=START, duration_s=month_s)}
    task = Problem({"duck": COST}, traces, START, month_s, 100 * 3600.0)
    bound = solve(task, time_limit_s=0.0)
    assert bound is not None
    assert bound.gap == math.inf
    assert bound.plan == {}
    assert (bound.emissions_kg, bound.makespan_h) == floor_kg(task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overhead_share": 1.0}, "overhead_share"),
        ({"slot_s": 0.0}, "slot_s"),
    ],
)
def test_a_problem_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        solve(problem({"a": [1.0] * 3}, 1, **changes))


def test_a_site_without_a_trace_is_refused():
    with pytest.raises(ValueError, match="a trace for each"):
        solve(Problem({"a": COST}, {}, START, 3600.0, 300.0))


# -- slots --


def test_a_slot_is_the_mean_of_what_was_published_in_it():
    held = Trace(np.array([0.0, 100.0, 400.0]) + START, np.array([10.0, 40.0, 70.0]), START + 900)
    assert slot_means(held, START, 4, 300.0).tolist() == pytest.approx(
        [(100 * 10 + 200 * 40) / 300, (100 * 40 + 200 * 70) / 300, 70.0, NAN], nan_ok=True
    )


def test_a_slot_with_an_unknown_second_is_unknown():
    held = Trace(np.array([1.0, 300.0, 599.0]) + START, np.array([1.0, 2.0, NAN]), START + 1200)
    assert np.isnan(slot_means(held, START, 4, 300.0)).tolist() == [True, True, True, True]
    endless = Trace(np.array([0.0]) + START, np.array([5.0]), math.inf)
    assert slot_means(endless, START, 3, 300.0).tolist() == [5.0] * 3


@settings(deadline=None)
@given(st.lists(st.integers(0, 500).map(float), min_size=1, max_size=20), st.integers(0, 3000))
def test_slots_price_a_constant_load_as_the_ledger_does(values, offset):
    held = trace(values, slot_s=170.0)
    means = slot_means(held, START + offset, 8, SLOT)
    for slot, mean in enumerate(means):
        begin = START + offset + slot * SLOT
        grams = emissions_g(held, begin, begin + SLOT, 1000.0)
        if grams is None:
            assert math.isnan(mean)
        else:
            assert mean * SLOT / 3600.0 == pytest.approx(grams)


def test_the_solver_is_loaded_by_solving_and_by_nothing_else():
    code = "import sys, uncurtail, uncurtail.plan.oracle as o; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
