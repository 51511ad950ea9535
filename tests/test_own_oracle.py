"""The oracle with batteries and suns: by hand, below every game played, and when it is unsure."""

import math

import numpy as np
import pytest

from uncurtail.core.fleet import Phase
from uncurtail.core.grids import synthetic
from uncurtail.core.microgrid import Microgrid, MicrogridSection
from uncurtail.core.policy import Costs, Threshold
from uncurtail.core.signals import Trace
from uncurtail.core.solar import sunshine
from uncurtail.plan import oracle
from uncurtail.plan.oracle import Problem, solve
from uncurtail.plan.simulate import Scenario, simulate

SLOT = 300.0
START = 1_784_851_200.0
COST = Costs(2024.0, 468.0, 468.0, SLOT)
NAN = math.nan
# A battery that holds 1 kWh above its least, and gives it as fast as anybody wants.
KWH = MicrogridSection(
    battery_wh=2000.0, battery_initial_soc=0.6, battery_min_soc=0.1, battery_c_rate=10.0
)


def trace(values):
    times = START + SLOT * np.arange(len(values), dtype=np.float64)
    return Trace(times, np.array(values, dtype=float), START + SLOT * len(values))


def problem(values, slots, own, **rest):
    deadline_s = len(values) * SLOT
    return Problem(
        {"a": COST}, {"a": trace(values)}, START, deadline_s, slots * SLOT, microgrids={"a": own},
        **rest,
    )  # fmt: skip


def kwh(train_slots, start_slots=1):
    """What so many slots take."""
    return (train_slots * 2.024 + start_slots * 0.468) * SLOT / 3600.0


@pytest.mark.parametrize("slots", [5, 6, 10], ids=str)
def test_a_battery_saves_what_it_holds_and_no_more(slots):
    bound = solve(problem([500.0] * 14, slots, Microgrid(KWH)))
    assert bound is not None
    assert bound.emissions_kg == pytest.approx(max(0.0, kwh(slots) - 1.0) * 0.5, rel=1e-3, abs=1e-6)


def test_it_gives_no_faster_than_it_can():
    slow = KWH.model_copy(update={"battery_c_rate": 0.506})  # 1,012 W: half of the training
    bound = solve(problem([500.0] * 8, 4, Microgrid(slow)))
    assert bound is not None
    assert bound.emissions_kg == pytest.approx((kwh(4) - kwh(4, 0) / 2 - 0.039) * 0.5, rel=1e-3)


def test_the_sun_carries_what_it_yields_in_its_own_slots_or_by_the_battery_later():
    section = MicrogridSection(solar_peak_w=3000.0)
    sun = trace([0.0, 0.0, 3000.0, 3000.0, 3000.0, 0.0, 0.0, 0.0])
    bare = solve(problem([500.0] * 8, 3, Microgrid(section, sun)))
    assert bare is not None
    assert bare.emissions_kg == pytest.approx(kwh(0) * 0.5, rel=1e-3), "the start comes before"
    empty = KWH.model_copy(update={"battery_initial_soc": 0.1})
    stored = solve(problem([500.0] * 8, 5, Microgrid(empty, sun)))
    assert stored is not None
    # Three slots of sun hold a start and five slots of training but for a little.
    lacks_kwh = kwh(5) - 3 * 3.0 * SLOT / 3600.0
    assert stored.emissions_kg == pytest.approx(lacks_kwh * 0.5, rel=1e-3)


def test_only_what_may_be_charged_from_the_grid_is_and_it_costs_the_grid_s_grams():
    values = [10.0] * 4 + [500.0] * 8
    empty = KWH.model_copy(update={"battery_initial_soc": 0.1})
    alone = solve(problem(values, 8, Microgrid(empty)))
    filled = solve(
        problem(values, 8, Microgrid(empty.model_copy(update={"charge_from_curtailed": True})))
    )
    assert alone is not None
    assert filled is not None
    saved_kg = alone.emissions_kg - filled.emissions_kg
    dirty_kwh = kwh(8) - kwh(3)  # three slots beside the start are clean
    assert saved_kg == pytest.approx(min(dirty_kwh, 1.8) * 0.49, rel=1e-3)


def test_at_unknown_power_a_site_carries_itself_or_is_off():
    values = [NAN] * 10
    assert solve(problem(values, 4, Microgrid(KWH.model_copy(update={"battery_wh": 10.0})))) is None
    carried = solve(problem(values, 4, Microgrid(KWH)))
    assert carried is not None
    assert carried.emissions_kg == pytest.approx(0.0, abs=1e-9)
    assert solve(problem(values, 7, Microgrid(KWH))) is None, "more than the battery holds"


def test_a_large_problem_is_bounded_and_says_that_nobody_showed_it():
    """Two hours of it alone have a schedule, which all of it has, too."""
    values = [500.0, 20.0, 300.0] * 700
    small = solve(problem(values[:24], 10, Microgrid(KWH)))
    large = solve(problem(values, 10, Microgrid(KWH)))
    assert len(values) > oracle.DIRECT_CELLS
    assert small is not None
    assert large is not None
    assert (large.plan, large.gap) == ({}, math.inf)
    assert 0.0 < large.emissions_kg == large.proven_kg <= small.emissions_kg


@pytest.mark.parametrize("seed", range(4))
def test_no_game_on_own_power_emits_less(seed):
    """The work is what the game did in whole slots; the rest only costs it more."""
    hours = 10
    traces = {
        name: synthetic(name, seed=seed, start=START, duration_s=hours * 3600.0, utc_offset_h=-9.0)
        for name in ("duck", "windy")
    }
    sun = sunshine(5000.0, seed=seed, start=START, duration_s=hours * 3600.0, utc_offset_h=10.0)
    microgrids = {
        "duck": Microgrid(MicrogridSection(battery_wh=4000.0, solar_peak_w=5000.0), sun),
        "windy": Microgrid(MicrogridSection(battery_wh=9000.0, charge_from_curtailed=True)),
    }
    game = Scenario(
        policy=Threshold(),
        sites=dict.fromkeys(traces, COST),
        traces=traces,
        start=START,
        until=START + hours * 3600.0,
        microgrids=microgrids,
    )
    outcome = simulate(game)
    whole = sum(
        max(0.0, (end - START) // SLOT - -((START - begin) // SLOT))
        for site in outcome.sites.values()
        for phase, begin, end in site.phases
        if phase is Phase.TRAINING
    )
    assert whole > 10
    bound = solve(
        Problem(
            dict.fromkeys(traces, COST), traces, START, hours * 3600.0, whole * SLOT,
            microgrids=microgrids,
        ),
        time_limit_s=10.0,
    )  # fmt: skip
    assert bound is not None
    assert bound.proven_kg <= outcome.energy.emissions_g / 1000.0 + 1e-6
